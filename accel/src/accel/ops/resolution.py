"""Resolution: which implementation serves a request, and why every other one does not.

User order, then shape invariance where exactness is asked, then priority, then id. Pure: it reads
the catalogue, a policy and a request, and loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from accel.contracts import CONTRACTS
from accel.errors import OpRefusedError, OpResolutionError, UnknownOpError, close_matches
from accel.op_builder import Impl, OpBuilder, Request
from accel.ops import catalog
from accel.ops.catalog import Entry
from accel.ops.orders import Order, position
from accel.ops.policy import Policy
from accel.refusal import Refusal
from accel.torch_impls import ANY_DEVICE

# Refusals that say "this machine", not "this request": serving something else then is a fallback.
MACHINE_CODES = frozenset({"compiler", "build", "cache", "load", "reasons"})


@dataclass(frozen=True)
class Verdict:
    """One candidate and why it was refused; accepted if there is no reason."""

    entry: Entry
    refusals: tuple[Refusal, ...]

    @property
    def impl(self) -> Impl:
        return self.entry.impl

    @property
    def accepted(self) -> bool:
        return not self.refusals

    def to_dict(self) -> dict[str, Any]:
        return {
            "implementation": self.impl.id,
            "priority": self.impl.priority,
            "shape_invariant": self.impl.shape_invariant,
            "accepted": self.accepted,
            "refusals": [refusal.to_dict() for refusal in self.refusals],
        }


@dataclass(frozen=True)
class Decision:
    """A request, the verdict on every candidate in the order they were asked, and the choice."""

    request: Request
    verdicts: tuple[Verdict, ...]
    chosen: Entry | None
    fallback: str | None = None  # why serving `chosen` is a fallback
    varies: bool = False  # exactness was asked for and only a variant implementation exists

    def __str__(self) -> str:
        lines = [str(self.request)]
        for verdict in self.verdicts:
            served = self.chosen is verdict.entry
            mark = "*" if served else ("-" if verdict.refusals else " ")
            state = "serves" if served else ("accepts" if verdict.accepted else "refuses")
            invariant = "" if verdict.impl.shape_invariant else ", rows vary with shape"
            lines.append(
                f"  {mark} {verdict.impl.id:24} {state} (priority {verdict.impl.priority}"
                f"{invariant})"
            )
            lines += [f"      {refusal}" for refusal in verdict.refusals]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "request": str(self.request),
            "chosen": self.chosen.impl.id if self.chosen else None,
            "fallback": self.fallback,
            "rows_vary": self.varies,
            "candidates": [verdict.to_dict() for verdict in self.verdicts],
        }


def decide(
    request: Request, policy: Policy, failed: Mapping[Impl, Refusal] | None = None
) -> Decision:
    """The decision for a request; ``failed`` are implementations that could not be loaded."""
    order = policy.order(request.op)
    ranked = sorted(
        (entry for entry in catalog.entries(request.op) if _named(order, entry)),
        key=lambda e: (position(order, e.impl.id), -e.impl.priority, e.impl.id),
    )
    verdicts = tuple(Verdict(e, _refusals(e, request, policy, failed or {})) for e in ranked)
    accepted = [verdict.entry for verdict in verdicts if verdict.accepted]
    invariant = [entry for entry in accepted if entry.impl.shape_invariant]
    # An order is the user's word: within it, only what accepts and how it is ranked count.
    preferred = invariant if policy.exact and invariant and not order.only else accepted
    chosen = preferred[0] if preferred else None
    return Decision(
        request,
        verdicts,
        chosen,
        fallback=_fallback(verdicts, chosen) if not order.only else None,
        varies=chosen is not None and policy.exact and not chosen.impl.shape_invariant,
    )


def _named(order: Any, entry: Entry) -> bool:
    return position(order, entry.impl.id) is not None


def _refusals(
    entry: Entry, request: Request, policy: Policy, failed: Mapping[Impl, Refusal]
) -> tuple[Refusal, ...]:
    impl, builder = entry.impl, entry.builder
    if builder.device_type not in (ANY_DEVICE, request.device.type):
        return (Refusal("device", builder.device_type, request.device.type, "move the tensors"),)
    if entry.plugin_refusals:
        return entry.plugin_refusals
    found = []
    if request.dtype not in impl.dtypes:
        listed = ", ".join(sorted(str(d).removeprefix("torch.") for d in impl.dtypes))
        have = str(request.dtype).removeprefix("torch.")
        found.append(Refusal("dtype", listed, have, "cast, or let another serve"))
    if request.grad and not impl.differentiable:
        found.append(
            Refusal("grad", "a request without gradient", "one that records it",
                    "torch.no_grad() with accel.ops.use(exact=False)")
        )  # fmt: skip
    if policy.strict and not impl.shape_invariant:
        found.append(
            Refusal("shape_invariant", "rows that do not depend on their neighbours",
                    "a kernel chosen by shape", "permit it with accel.ops.use(strict=False)")
        )  # fmt: skip
    if impl in failed:
        found.append(failed[impl])
    if not found:
        seen = request if impl.reads_shapes else replace(request, shapes=(), strides=())
        found += _asked(builder, impl, seen)
    return tuple(found)


def _asked(builder: OpBuilder, impl: Impl, request: Request) -> list[Refusal]:
    """The builder's own reasons; one that cannot say them is refused for that."""
    try:
        found = builder.reasons(impl, request)
        if isinstance(found, (list, tuple)) and all(isinstance(r, Refusal) for r in found):
            return list(found)
        have = f"{type(found).__name__}: {found!r:.80}"
    except Exception as error:
        have = f"{type(error).__name__}: {error}"
    remedy = "report it to the plugin's authors"
    return [Refusal("reasons", "a list of Refusal from reasons()", have, remedy)]


def _fallback(verdicts: tuple[Verdict, ...], chosen: Entry | None) -> str | None:
    """Why the choice is a fallback: a better one failed on this machine, or only the reference
    is left although a plugin offers the op for the device."""
    if chosen is None:
        return None
    ours = [v for v in verdicts if not any(r.code == "device" for r in v.refusals)]
    for verdict in ours:
        if verdict.entry is chosen:
            break
        for refusal in verdict.refusals:
            if refusal.code in MACHINE_CODES:
                return f"{verdict.impl.id} was refused: {refusal}"
    if chosen.is_reference:
        refused = "; ".join(
            f"{v.impl.id}: {r}" for v in ours for r in v.refusals if v.entry is not chosen
        )
        return f"nothing but the reference serves ({refused or 'no other accepts'})"
    return None


def unserved(decision: Decision, order: Order) -> OpRefusedError | OpResolutionError:
    """The error for a decision without a choice."""
    if order.only:
        return OpRefusedError(f"the order {order} leaves no implementation for {decision}")
    return OpResolutionError(f"no implementation serves {decision}")


def contract_of(op: str) -> Any:
    """The contract of an op by name; UnknownOpError offers near names."""
    if op not in CONTRACTS:
        raise UnknownOpError(f"unknown op {op!r}; {close_matches(op, CONTRACTS)}")
    return CONTRACTS[op]
