"""Splitting: a dimension into parts of nearly equal size, a tensor along its last dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from accel.contracts.checks import describe, refuse_nontensor
from accel.errors import OpArgumentError


def partition_uniform(num_items: int, num_parts: int) -> list[int]:
    """Boundaries of ``num_parts`` consecutive parts of ``num_items``, from 0 to ``num_items``.

    Sizes differ by one at most, the larger ones first; of fewer items than parts the last parts are
    empty. OpArgumentError for a negative number of items or no parts.
    """
    if num_items < 0 or num_parts < 1:
        raise OpArgumentError(
            f"partition_uniform: items must be at least 0 and parts at least 1; found {num_items} "
            f"items and {num_parts} parts"
        )
    size, larger = num_items // num_parts, num_items % num_parts  # torch.compile traces no divmod
    return [part * size + min(part, larger) for part in range(num_parts + 1)]


def sizes(boundaries: Sequence[int]) -> list[int]:
    """Of consecutive parts, from their boundaries."""
    return [stop - start for start, stop in pairwise(boundaries)]


def check_splits(which: str, splits: int, features: int) -> None:
    """OpArgumentError or TypeError unless ``features`` can be cut into ``splits`` parts."""
    if isinstance(splits, bool) or not isinstance(splits, int):
        raise TypeError(f"{which}_splits must be an int, not {type(splits).__name__}")
    if not 1 <= splits <= features:
        raise OpArgumentError(
            f"{which}_splits must be in range [1, {which}_features] = [1, {features}]; found "
            f"{splits}"
        )


def split_tensor_along_last_dim(
    tensor: Tensor, partitions: Sequence[int], contiguous_split_chunks: bool = False
) -> tuple[Tensor, ...]:
    """Parts of ``tensor`` ``[..., sum(partitions)]``, the i-th ``[..., partitions[i]]``.

    Views, or contiguous tensors if asked. OpArgumentError where the sizes do not add up.
    """
    refuse_nontensor("split_tensor_along_last_dim", {"tensor": tensor}, optional=())
    fits = tensor.dim() > 0 and sum(partitions) == tensor.shape[-1]
    if not fits or any(size < 0 for size in partitions):
        raise OpArgumentError(
            f"split_tensor_along_last_dim: sizes must be at least 0 and add up to the last "
            f"dimension; found {list(partitions)} for {describe(tensor)}"
        )
    parts = torch.split(tensor, list(partitions), dim=-1)
    return tuple(part.contiguous() for part in parts) if contiguous_split_chunks else parts
