"""Products over tiles: of a weight, of the vocabulary, of the tokens."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from accel.contracts import LOGPROB
from accel.ops import door

_logprob: Callable[..., tuple[Tensor, Tensor]] = door.of(LOGPROB)


def logprob(
    x: Tensor,
    ids: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(log-probability of each id, entropy), fp32: a token's value, wherever one is needed.

    Of the logits ``softcap·tanh((x @ w.T + b)·scale / softcap) / temperature``, which are fp32 and
    never held all at once; without w, x ``[..., V]`` is the product. x ``[..., H]``, ids int64
    ``[...]``, w ``[V, H]``, b ``[V]``; both results have the shape of ids.
    """
    return _logprob(x, ids, w, b, scale, softcap, temperature)
