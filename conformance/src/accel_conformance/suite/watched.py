"""Ops in what watches torch: opcheck, torch.compile, functorch and autocast.

An implementation is there a torch op of its own, whose schema, fake, gradient and batching rule
come from the contract. One sample says it all: a small one that gives as many arguments as any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract, Sample
from accel.contracts.checks import WIDE
from accel.torch_impls import ANY_DEVICE
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite import gradients, numerics
from accel_conformance.suite.per_sample import has_elements
from accel_conformance.target import Args, Results, Target, each, name_of, same_bits, tensors

NOWHERE = torch.device("meta")
STRIDED, EMPTY = "layout_transposed", "no_rows"  # samples that a fake may be wrong of
REGISTRATION = "test_autograd_registration"
OF_EVERY_SAMPLE = ("test_schema", REGISTRATION, "test_faketensor")
TRACED = ("test_aot_dispatch_dynamic",)
LOWER = torch.bfloat16
Check = Callable[[Target, Sample, Args, Evidence], None]


def cases(subject: Subject) -> Iterator[Case]:
    sorted_samples: dict[str, tuple[list[Sample], list[Sample]]] = {}
    for target in subject.targets:
        if target.op not in sorted_samples:
            sorted_samples[target.op] = _sorted_samples(target.contract)
        by_arguments, by_size = sorted_samples[target.op]
        for dtype in subject.dtypes(target):
            for check in _checks(target, dtype):
                samples = by_size if check is traced else by_arguments
                yield Case(
                    f"torch/{target.op}/{target.impl.id}/{name_of(dtype)}/{check.__name__}",
                    partial(_run, check, target, samples, dtype),
                    target.op,
                    target.impl.id,
                    name_of(dtype),
                )


def _checks(target: Target, dtype: torch.dtype) -> list[Check]:
    """All in fp32, in other dtypes what may differ there. The core's implementations are traced
    when their ops are tested; compiled they are here too."""
    checks: list[Check] = [opcheck]
    if dtype is torch.float32:
        checks += [opcheck_of_layouts, compiled, transforms, autocast]
        checks += [] if target.builder.device_type == ANY_DEVICE else [traced]
    return checks


def _run(
    check: Check, target: Target, samples: list[Sample], dtype: torch.dtype, seen: Evidence
) -> None:
    """With the first of the samples that the implementation serves."""
    grad = target.impl.differentiable
    with target.alone():
        for sample in samples:
            args = sample.make(dtype, target.device)
            if not target.refusals(args, grad=grad):
                break
        if target.declines(seen, args, grad=grad):
            return
        seen.ran = target.bound(args)  # loads it, which defines the torch op
        check(target, sample, args, seen)


def opcheck(target: Target, sample: Sample, args: Args, seen: Evidence) -> None:
    """What torch itself has to say of the torch op."""
    _opcheck(seen, target, sample.name, args, OF_EVERY_SAMPLE)


def opcheck_of_layouts(target: Target, sample: Sample, args: Args, seen: Evidence) -> None:
    """The same of no rows and of strided ones, where a fake is easily wrong."""
    for other in target.contract.samples():
        if other.name.startswith((STRIDED, EMPTY)):
            made = other.make(torch.float32, target.device)
            if not target.declines(seen, made, grad=target.impl.differentiable):
                _opcheck(seen, target, other.name, made, OF_EVERY_SAMPLE)
    _opcheck(seen, target, sample.name, args, OF_EVERY_SAMPLE)


def traced(target: Target, sample: Sample, args: Args, seen: Evidence) -> None:
    """Forward and backward with symbols for sizes are the eager ones; of a small sample, for the
    tracing of a backward may take seconds."""
    _opcheck(seen, target, sample.name, args, TRACED)


def compiled(target: Target, sample: Sample, args: Args, seen: Evidence) -> None:
    """The public function in one graph of one node, results and gradients."""
    given = gradients.with_leaves(args) if target.impl.differentiable else args
    graph = _Graph()
    with _kept(seen, "compiled"), _compiler_afresh():
        results = each(torch.compile(target.call, backend=graph, fullgraph=True)(given))
        if target.impl.differentiable:
            grads = gradients.incoming(target, sample.name, results)
            found = torch.autograd.grad(results, list(filter(gradients.floats, given)), grads)
            gradients.judge(seen, target, args, grads, found, rule="compiled")
        node = target.torch_op.replace("::", ".") + ".default"
        says = f"the graph must call {node} alone; it calls {', '.join(graph.calls)}"
        seen.expect("compiled", graph.calls == [node], says)
        _as_eager(seen, "compiled", target, results, target.call(args), args)


def transforms(target: Target, sample: Sample, args: Args, seen: Evidence) -> None:
    """vmap over the tensor an op is keyed by; vjp over all floating point ones."""
    with _kept(seen, "transforms"):
        _vmap(target, args, seen)
        if target.impl.differentiable:
            _vjp(target, sample, args, seen)


def _vmap(target: Target, args: Args, seen: Evidence) -> None:
    at = list(target.contract.parameters).index(target.contract.keyed_by)
    halved = (*args[:at], args[at] / 2, *args[at + 1 :])
    both = torch.stack((args[at], halved[at]))
    batched = torch.vmap(lambda one: target.call((*args[:at], one, *args[at + 1 :])))(both)
    for i, one in enumerate((args, halved)):
        found = tuple(result[i] for result in batched)
        _as_eager(seen, "transforms", target, found, target.call(one), one)


def _vjp(target: Target, sample: Sample, args: Args, seen: Evidence) -> None:
    floating = [i for i, arg in enumerate(args) if gradients.floats(arg)]

    def function(*leaves: Tensor) -> Results:
        given = dict(zip(floating, leaves))
        return target.call(tuple(given.get(i, arg) for i, arg in enumerate(args)))

    results, pull = torch.func.vjp(function, *(args[i] for i in floating))
    grads = gradients.incoming(target, sample.name, results)
    gradients.judge(seen, target, args, grads, pull(grads), rule="transforms")


def autocast(target: Target, sample: Sample, args: Args, seen: Evidence) -> None:
    """As without it, of arguments that were cast before as the contract says."""
    contract = target.contract
    key = contract.key(args)
    if contract.autocast != "keep":  # which the tensors that are not the key need not share
        args = tuple(a.to(LOWER) if gradients.floats(a) and a is not key else a for a in args)
    meant = {"lower": LOWER, "input": key.dtype, "keep": None}[contract.autocast]

    def cast(name: str, arg: Any) -> Any:
        if meant is None or not gradients.floats(arg):
            return arg
        return arg.to(WIDE[meant] if name in contract.wide else meant)

    wanted = tuple(cast(name, arg) for name, arg in zip(contract.parameters, args))
    if target.declines(seen, wanted):
        return
    with torch.no_grad(), torch.autocast(target.device.type, dtype=LOWER):
        found = target.call(args)
    says = f"under autocast the result is not that of arguments cast to {meant}"
    seen.expect("autocast", same_bits(found, target.call(wanted)), says)


@contextmanager
def _kept(seen: Evidence, rule: str) -> Iterator[None]:
    """Whatever is raised in the body breaks the rule: a tracer has exceptions of many kinds."""
    try:
        yield
    except Exception as error:
        seen.expect(rule, False, f"raised {type(error).__name__}: {error!s:.400}")


@contextmanager
def _compiler_afresh() -> Iterator[None]:
    """Nothing compiled before counts in the body, nor what is compiled there afterwards."""
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


class _Graph:
    """A compile backend: aot_eager, which notes the calls of what it is given."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._dynamo import lookup_backend  # imports dynamo: two seconds

        nodes = [node for node in module.graph.nodes if node.op == "call_function"]
        self.calls += [str(node.target) for node in nodes if "getitem" not in str(node.target)]
        return lookup_backend("aot_eager")(module, inputs)


def _opcheck(
    seen: Evidence, target: Target, sample: str, args: Args, tests: tuple[str, ...]
) -> None:
    namespace, _, name = target.torch_op.partition("::")
    op = getattr(getattr(torch.ops, namespace), name).default
    if target.impl.differentiable:
        args = gradients.with_leaves(args)
    said = torch.library.opcheck(op, args, test_utils=tests, raise_exception=False)
    for test, result in said.items():
        if test == REGISTRATION and isinstance(result, NotImplementedError):
            continue  # torch can tell it of its own devices only
        says = f"{test} of {sample}: {result!s:.400}"
        seen.expect("opcheck", result == "SUCCESS", says)


def _as_eager(
    seen: Evidence, rule: str, target: Target, found: Results, eager: Results, args: Args
) -> None:
    """Bit for bit where shape is no matter, else as right as any result."""
    if target.impl.shape_invariant:
        seen.expect(rule, same_bits(found, eager), "results have other bits than eager ones")
    else:
        numerics.accuracy(seen, target.contract, found, args, rule)


def _sorted_samples(contract: Contract) -> tuple[list[Sample], list[Sample]]:
    """The samples that have elements: first what gives the most arguments, and first the small."""
    defaults = [p.default for p in contract.parameters.values()]
    every = [(sample, sample.make(torch.float32, NOWHERE)) for sample in contract.samples()]

    def elements(made: tuple[Sample, Args]) -> int:
        return sum(tensor.numel() for tensor in tensors(made[1]))

    def given(made: tuple[Sample, Args]) -> int:
        return sum(isinstance(a, Tensor) or a != d for a, d in zip(made[1], defaults))

    by_size = sorted((made for made in every if has_elements(contract, made[1])), key=elements)
    by_arguments = sorted(by_size, key=given, reverse=True)
    return [sample for sample, _ in by_arguments], [sample for sample, _ in by_size]
