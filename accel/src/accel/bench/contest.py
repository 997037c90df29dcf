"""Contest: who computes a case, each ready to be called, and those who do not, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice, repeat
from typing import Any

import torch
from torch import Tensor

from accel import ops
from accel.accelerator import Accelerator
from accel.bench import case as _case
from accel.bench.case import Arguments, Case
from accel.bench.offers import Peer
from accel.bench.peers import LIBRARIES
from accel.bench.sizes import COLD, Draw
from accel.bench.timing import PATIENCE
from accel.contracts import Contract
from accel.ops import catalog
from accel.ops.resolution import Decision
from accel.torch_impls import ANY_DEVICE, REFERENCE

# What a contender is: the implementation that serves the op, another that is registered, what one
# writes in plain torch, the contract's reference compiled by torch, or another library.
SERVES, IMPLEMENTATION, PLAIN, COMPILED, LIBRARY = (
    "serves", "implementation", "plain", "compiled", "library",
)  # fmt: skip
OURS = (SERVES, IMPLEMENTATION)

Prepare = Callable[..., Callable[[], Any]]


@dataclass(frozen=True)
class Contender:
    """``calls`` compute the case, one for each set of arguments, in ``context``. ``turn`` says
    whose turn it is; all contenders share it, or one would find in a cache what another has just
    read. ``results`` are of the first set, with the gradients of ``leaves``."""

    name: str
    kind: str
    calls: Sequence[Callable[[], Any]]
    leaves: Sequence[Tensor] = ()
    context: Context = field(default_factory=copy_context)
    turn: Iterator[int] = field(default_factory=lambda: repeat(0))

    def results(self) -> tuple[Tensor, ...]:
        return self.context.run(self._results)

    def _results(self) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(bool(self.leaves)):
            found = _tuple(self.calls[0]())
            gradients = self._gradients(found) if self.leaves else ()
        return tuple(t.detach() for t in (*found, *gradients))

    def _gradients(self, found: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(found, self.leaves, [upstream_of(y) for y in found])

    def timed(self) -> Callable[[int], None]:
        """What is timed: so many calls in a row."""
        loop: Callable[[int], None] = self._forward
        if self.leaves:
            loop = partial(self._forward_and_backward, [])
        return lambda repeats: self.context.run(loop, repeats)

    def _forward(self, repeats: int) -> None:
        with torch.no_grad():
            for turn in islice(self.turn, repeats):
                self.calls[turn]()

    def _forward_and_backward(self, upstream: list[Tensor], repeats: int) -> None:
        """``upstream`` is made the first time, which nobody counts."""
        for turn in islice(self.turn, repeats):
            found = _tuple(self.calls[turn]())
            if not upstream:
                upstream += map(upstream_of, found)
            torch.autograd.grad(found, self.leaves, upstream)


@dataclass(frozen=True)
class Refused:
    """A peer that is not measured, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Work:
    """What a call has to do: bytes and flops, None where nobody counts them; ``cold`` if its
    arguments come from memory."""

    bytes: int | None
    flops: int | None
    cold: bool


@dataclass(frozen=True)
class Goal:
    """What serves promises: at most so many times a peer's ``"time"``, or its ``"memory"``."""

    beside: str
    what: str
    at_most: float


@dataclass(frozen=True)
class Contest:
    """``wanted`` makes, in float64, what every contender must compute first of all its results;
    None where everyone draws random numbers of their own. With ``memory`` the bytes at a call's
    highest point are taken too, above its arguments and their gradients."""

    contenders: Sequence[Contender]
    refused: Sequence[Refused]
    work: Work
    wanted: Callable[[], tuple[Tensor, ...]] | None
    memory: bool = False
    patience: float = PATIENCE


def contest(case: Case, dtype: torch.dtype, accelerator: Accelerator) -> Contest:
    """Everyone who can compute a case on the accelerator, ours first."""
    args = case.make(Draw(dtype, accelerator.device()))
    leaves: list[Tensor] = []
    if case.backward:
        args, leaves = case.leaves(args)
    count = _case.turns(case, args)
    sets, turn = [args, *(_case.copy(args) for _ in range(count - 1))], cycle(range(count))
    found: list[Contender] = []
    refused: list[Refused] = []
    for name, kind, prepare, context, reason in _candidates(case, args, dtype, accelerator):
        if not reason:
            try:
                calls = [context.run(prepare, *given) for given in sets]
                found.append(Contender(name, kind, calls, leaves, context, turn))
                continue
            except Exception as error:
                reason = said(error)
        refused.append(Refused(name, kind, reason))
    wanted = None if case.random else partial(_wanted, case, args)
    return Contest(found, refused, _work(case, args, count), wanted)


_Candidate = tuple[str, str, Prepare, Context, str]


def _candidates(
    case: Case, args: Arguments, dtype: torch.dtype, accelerator: Accelerator
) -> Iterator[_Candidate]:
    """(name, kind, how to prepare it, where it runs, why it cannot serve if so)"""
    decision = _decision(case, args, dtype)
    here = copy_context()
    for verdict in decision.verdicts:
        if verdict.impl.id == REFERENCE or any(r.code == "device" for r in verdict.refusals):
            continue
        with ops.use(f"{case.op}={verdict.impl.id}", exact=False):
            context = copy_context()
        serves = verdict.entry is decision.chosen
        reason = "; ".join(map(str, verdict.refusals))
        kind = SERVES if serves else IMPLEMENTATION
        yield verdict.impl.id, kind, partial(_op, case.contract), context, reason
    yield case.text, PLAIN, partial(partial, case.plain), here, ""
    if case.compiled:
        reason = "a row or two are all overhead to it" if case.size.steps else ""
        yield "torch.compile(reference)", COMPILED, partial(_compiled, case.contract), here, reason
    # Not the decision's own, which is of a forward as if it were trained too.
    request = replace(decision.request, grad=case.backward)
    for peer in _libraries(case.op, accelerator):
        reasons = peer.reasons(request)
        yield peer.name, LIBRARY, peer.prepare, here, "; ".join(map(str, reasons))


def _decision(case: Case, args: Arguments, dtype: torch.dtype) -> Decision:
    contract, count = case.contract, case.contract.tensor_count
    tensors, options = args[:count], args[count:]
    return ops.explain(
        case.op, device=contract.key(tensors).device, dtype=dtype, grad=case.backward,
        shapes=tuple(None if t is None else tuple(t.shape) for t in tensors),
        **contract.asked(contract.facts(tensors), options),
    )  # fmt: skip


def _libraries(op: str, accelerator: Accelerator) -> Iterator[Peer]:
    builders = {id(e.builder): e.builder for e in catalog.entries() if not e.plugin_refusals}
    for builder in builders.values():
        if builder.device_type in (ANY_DEVICE, accelerator.device_type):
            yield from (peer for peer in builder.peers() if peer.op == op)
    yield from (peer for peer in LIBRARIES if peer.op == op)


def _op(contract: Contract, *args: Any) -> Callable[[], Any]:
    """The op as users call it, of whatever implementation is in force."""
    count = contract.tensor_count
    options = dict(zip(list(contract.parameters)[count:], args[count:]))
    return partial(getattr(ops, contract.name), *args[:count], **options)


def _compiled(contract: Contract, *args: Any) -> Callable[[], Any]:
    return partial(torch.compile(contract.reference, dynamic=False), *args)


def _wanted(case: Case, args: Arguments) -> tuple[Tensor, ...]:
    wide = _case.widened(args)
    leaves: list[Tensor] = []
    if case.backward:
        wide, leaves = case.leaves(wide)
    return Contender("", PLAIN, [partial(case.contract.reference, *wide)], leaves).results()


def _work(case: Case, args: Arguments, turns: int) -> Work:
    """Of forward and backward only a product's flops are counted: two more products."""
    with torch.no_grad():
        cost = case.contract.cost(*args)
    if case.backward:
        return Work(None, 3 * cost.flops if case.product else None, cold=False)
    return Work(cost.bytes, cost.flops, turns > 1 or (case.size.cold and cost.bytes > COLD))


def upstream_of(y: Tensor) -> Tensor:
    """A gradient like y, normally distributed, the same for all contenders and every dtype."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(y.shape, generator=generator)  # smooth ones cancel in a softmax or a norm
    return values.to(torch.bfloat16).to(y.dtype).to(y.device)


def _tuple(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def said(error: Exception) -> str:
    """The first two lines of an error, short enough for a table."""
    first = " ".join(str(error).split("\n")[:2])
    return f"{type(error).__name__}: {first:.160}".strip()
