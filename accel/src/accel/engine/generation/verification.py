"""A rollout's values, looked at again by a forward of the kind that trains: the same bits, or an
error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from accel.engine.call import Call
from accel.engine.calls import score
from accel.engine.generation.prompts import Prompts
from accel.engine.generation.rollout import Rollout
from accel.engine.planning import plan
from accel.engine.spec import DecoderSpec
from accel.errors import ExactnessError

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@torch.no_grad()
def verify(
    model: nn.Module, spec: DecoderSpec, prompts: Prompts, rollout: Rollout,
    adapter: str | None, rows: int | None,
    forward: Callable[[], AbstractContextManager[None]],
) -> None:  # fmt: skip
    """ExactnessError unless the rollout's ``logprobs`` are those of whole sequences, bit for bit.

    One forward without gradient or dropout for every ``rows`` of them; None: for all, each
    within a ``forward()``.
    """
    new = rollout.logprobs.shape[1]
    if not new:  # aborted before the first
        return
    fed = prompts.mask.repeat_interleave(prompts.each, 0)
    mask = torch.cat((fed.to(torch.int64), rollout.response_mask), 1)
    answers = rollout.sequences[:, -new:]
    ids, embeds = rollout.sequences, None
    if prompts.embeds is not None:
        ids = torch.cat((answers.new_zeros(fed.shape), answers), 1)
        embeds = prompts.embeds.repeat_interleave(prompts.each, 0)
        with Call().active(answers.device):
            embeds = torch.cat((embeds, model.get_submodule(spec.tokens)(answers)), 1)
    values, _ = score(model, ids, mask, rows, embeds=embeds, forward=forward, adapter=adapter)
    again, made = values[:, -new:], rollout.logprobs
    bits = _BITS[made.dtype]
    differ = again.contiguous().view(bits) != made.view(bits)
    if differ.any():
        raise ExactnessError(_report(model, answers, made, again, differ))


def _report(model: nn.Module, answers: Tensor, made: Tensor, again: Tensor, differ: Tensor) -> str:
    row, column = differ.nonzero()[0].tolist()
    one, other = (float(values[row, column]) for values in (made, again))
    served = ", ".join(f"{op}: {impl}" for op, impl in plan(model).served_by.items())
    return (
        f"check_exact: row {row}, new token {column} (id {int(answers[row, column])}) was made "
        f"with log-probability {one!r} ({one.hex()}), and is {other!r} ({other.hex()}) in a "
        f"forward of whole sequences; of {differ.numel()} values {int(differ.sum())} differ, by "
        f"{float((made - again).abs().max()):.3g} at most. Served by {served}. Something makes a "
        "token's value depend on what stands beside it, or changed between the two: a kernel that "
        "says shape_invariant and is not (accel conform proves them; accel.ops.use or ACCEL_OPS "
        "choose others), a hook, or parameters somebody wrote to. check_exact=False does not look"
    )
