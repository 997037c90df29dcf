"""Sequences: where the real tokens of a padded batch lie, and what each of them sees.

Layers work on rows and know nothing of sequences; attention packs the real rows together, so that
a token's value cannot depend on the padding around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.errors import OpArgumentError


@dataclass(frozen=True)
class Sequences:
    """A batch ``[B, S]``.

    ``positions``  int64 ``[B, S]``, counted from each sequence's first real token; 0 where padded
    ``spans``      int64 ``[B, 4]`` for :func:`accel.ops.attention`, over packed rows
    ``rows``       int64, which of the ``B * S`` rows are real, in order; None if all are
    ``slots``      int64, where the KV cache keeps each real row; None without a cache
    """

    positions: Tensor
    spans: Tensor
    rows: Tensor | None = None
    slots: Tensor | None = None

    @classmethod
    def of(
        cls, mask: Tensor | None, shape: Sequence[int], device: torch.device,
        positions: Tensor | None = None,
    ) -> Sequences:  # fmt: skip
        """From an attention mask ``[B, S]`` of ones and zeros, or None for no padding."""
        batch, length = shape
        real = _real(mask, shape, device)
        if real is None:
            counted = torch.arange(length, device=device).expand(batch, length)
            starts = torch.arange(batch, device=device) * length
            lengths = torch.full_like(starts, length)
            rows = None
        else:
            counted = (real.cumsum(1) - 1).clamp_(min=0)
            lengths = real.sum(1)
            starts = lengths.cumsum(0) - lengths
            rows = real.flatten().nonzero().squeeze(1)
        spans = torch.stack((starts, lengths, starts, lengths), dim=1)
        if positions is None:
            return cls(counted, spans, rows)
        return cls(_given(positions, counted, real), spans, rows)

    def pack(self, x: Tensor) -> Tensor:
        """``[B, S, ...]`` to the rows of real tokens ``[T, ...]``."""
        flat = x.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def unpack(self, x: Tensor) -> Tensor:
        """``[T, ...]`` back to ``[B, S, ...]``, zero where padded."""
        batch, length = self.positions.shape
        if self.rows is not None:
            x = x.new_zeros((batch * length, *x.shape[1:])).index_copy(0, self.rows, x)
        return x.view(batch, length, *x.shape[1:])

    def successions(self) -> tuple[Tensor, Tensor]:
        """Of the ``B * S`` rows, those of real tokens that follow another, and of the one each
        follows, whatever padding lies between them: ``(before, after)``, int64."""
        starts, lengths = self.spans[:, 0], self.spans[:, 1]
        rows = self.rows
        if rows is None:
            rows = torch.arange(self.positions.numel(), device=starts.device)
        follows = torch.ones_like(rows, dtype=torch.bool)
        follows[starts[lengths > 0]] = False
        after = follows.nonzero().squeeze(1)
        return rows[after - 1], rows[after]

    def last(self) -> Tensor:
        """Of the packed rows, each sequence's last; int64 ``[B]``."""
        return self.spans[:, 0] + self.spans[:, 1] - 1


def _real(mask: Tensor | None, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """The mask as booleans on the device; None if nothing is padded."""
    if mask is None:
        return None
    if tuple(mask.shape) != tuple(shape):
        raise OpArgumentError(
            f"attention_mask must be {list(shape)} like the tokens, one for a real token and zero "
            f"for padding; found {list(mask.shape)}"
        )
    real: Tensor = mask.to(device=device) != 0
    if not bool((mask.to(device=device) == real).all()):
        raise OpArgumentError("attention_mask must hold ones and zeros only")
    return None if bool(real.all()) else real


def _given(positions: Tensor, counted: Tensor, real: Tensor | None) -> Tensor:
    """Positions the caller chose: any first one, then one more for each real token."""
    positions = positions.to(counted.device).expand_as(counted)
    apart = positions - counted
    first = apart[:, :1]
    if real is not None:  # the position of the first real token, which holes may follow
        first = apart.gather(1, real.to(torch.int8).argmax(1, keepdim=True))
    even = apart == first
    if not bool((even if real is None else even | ~real).all()):
        raise OpArgumentError(
            "position_ids must count a row's real tokens one by one; several sequences packed "
            "into one row are not served so far, give each a row of its own"
        )
    found: Tensor = positions if real is None else positions.where(real, 0)
    return found
