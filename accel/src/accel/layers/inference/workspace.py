"""WorkspaceOp: the keys and values that attention keeps from one call to the next, of one owner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from accel.contracts import checks
from accel.errors import CapacityError, OpArgumentError
from accel.layers.inference.base import BaseOp
from accel.layers.inference.config import InferenceConfig
from accel.selection import get_accelerator


class Room(NamedTuple):
    """The keys of one layer, and as much again for its values, before there is memory for them."""

    batch: int
    capacity: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, k: Tensor, capacity: int) -> Room:
        """Room for keys ``[B, S, G, D]`` and those that follow."""
        batch, _, heads, size = k.shape
        return cls(batch, capacity, heads, size, k.dtype, k.device)

    def __str__(self) -> str:
        return (
            f"{self.batch} sequences, {self.heads} heads of {self.size} elements, "
            f"{checks.name_of(self.dtype)} on {self.device}"
        )

    def make(self) -> Kept:
        """Memory for it, nothing in it."""
        # Not self[:4]: torch 2.8 does not compile that.
        shape, device = (self.batch, self.capacity, self.heads, self.size), self.device
        with torch.inference_mode(False):  # what is made inside can never be written to outside
            keys, values = (torch.empty(shape, dtype=self.dtype, device=device) for _ in range(2))
        return Kept(keys, values)


@dataclass(frozen=True)
class Kept:
    """What one layer keeps: the keys and values of each sequence's first ``length`` tokens, in
    tensors ``[B, capacity, G, D]`` whose other tokens are free."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @property
    def room(self) -> Room:
        return Room.of(self.keys, self.keys.shape[1])

    def again(self) -> Kept:
        """As much room, empty. In new memory, where tokens lie in this one: views of them were
        returned, and what was returned is never written to."""
        return self.room.make() if self.length else self

    def extended(self, k: Tensor, v: Tensor) -> Kept:
        """With further tokens ``[B, S, G, D]``; what was kept before stays as it was."""
        end = self.length + k.shape[1]
        with torch.no_grad():
            self.keys[:, self.length : end] = k
            self.values[:, self.length : end] = v
        return replace(self, length=end)

    def spans(self, queries: int, capacity: int) -> Tensor:
        """int64 [B, 4]: each sequence's last ``queries`` tokens, in rows ``[B * queries]``, and
        all its keys, in rows ``[B * capacity]``."""
        batch = torch.arange(self.keys.shape[0], device=self.keys.device)
        counts = torch.full_like(batch, queries), torch.full_like(batch, self.length)
        return torch.stack((batch * queries, counts[0], batch * capacity, counts[1]), 1)


class WorkspaceOp(BaseOp):
    """What the SoftmaxContextOps keep that are given it, or the one that made it.

    A layer takes its room when its first prompt comes, or all layers do by
    :meth:`allocate_workspace`. There is no other one behind it: two models never meet.
    """

    def __init__(self, config: InferenceConfig | None = None) -> None:
        super().__init__(config)
        self._layers: dict[int, Kept] = {}
        self._released: dict[int, Room] = {}

    def allocate_workspace(
        self, hidden_dim: int, num_heads: int, prompt_length: int, batch_size: int,
        num_layers: int, mp_size: int = 1, external_cache: bool = False, rank: int | None = None,
        max_out_tokens: int | None = None, min_out_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """Make room in ``num_layers`` layers for ``batch_size`` sequences of ``max_out_tokens``
        tokens, on device ``rank``, in place of what was there. An ``external_cache`` needs none.

        ``rank`` and the tokens are by default the config's; the heads of keys are. CapacityError
        where the prompt leaves less than ``min_out_tokens``; nothing changes then.
        """
        config = self.config
        tokens = config.max_out_tokens if max_out_tokens is None else max_out_tokens
        answer = config.min_out_tokens if min_out_tokens is None else min_out_tokens
        _require_room(prompt_length, tokens, answer)
        kv_heads = config.num_kv if config.num_kv > 0 else num_heads
        if num_heads < 1 or mp_size < 1 or hidden_dim % num_heads or kv_heads % mp_size:
            raise OpArgumentError(
                f"WorkspaceOp: num_heads must divide hidden_dim, and mp_size the {kv_heads} heads "
                f"of keys; found hidden_dim={hidden_dim}, num_heads={num_heads}, mp_size={mp_size}"
            )
        index = config.local_rank if rank is None else rank
        room = Room(
            batch_size, tokens, kv_heads // mp_size, hidden_dim // num_heads,
            torch.float16 if config.dtype is torch.int8 else config.dtype,
            get_accelerator().device(index if index >= 0 else None),
        )  # fmt: skip
        self._layers = {n: room.make() for n in range(0 if external_cache else num_layers)}
        self._released = {}

    def is_allocated(self) -> bool:
        """Whether it holds memory."""
        return bool(self._layers)

    @property
    def bytes(self) -> int:
        """How much."""
        keys = (kept.keys for kept in self._layers.values())
        return sum(2 * t.numel() * t.element_size() for t in keys)

    def reset_cache(self) -> None:
        """Forget all tokens; the room stays."""
        self._layers = {layer: kept.again() for layer, kept in self._layers.items()}

    def release_workspace(self) -> None:
        """Give the memory back; the tokens in it are forgotten."""
        self._released |= {layer: kept.room for layer, kept in self._layers.items()}
        self._layers = {}

    def retake_workspace(self) -> bool:
        """Take the room again that was released; whether there was any."""
        self._layers = {n: room.make() for n, room in self._released.items()} | self._layers
        taken, self._released = bool(self._released), {}
        return taken

    def begun(self, layer: int, k: Tensor) -> Kept:
        """Empty room of a layer for prompts with keys ``[B, S, G, D]``: its own where that fits."""
        config, found = self.config, self._layers.get(layer)
        capacity = found.room.capacity if found else config.max_out_tokens
        _require_room(k.shape[1], capacity, config.min_out_tokens)
        wanted = Room.of(k, capacity)
        return found.again() if found and found.room == wanted else wanted.make()

    def continued(self, layer: int, k: Tensor) -> Kept:
        """What a layer keeps of the sequences whose next keys are ``[B, S, G, D]``.

        OpArgumentError where it keeps none or others, CapacityError where they do not fit.
        """
        found = self._layers.get(layer)
        if found is None or not found.length:
            raise OpArgumentError(f"WorkspaceOp: layer {layer} has had no prompt to continue")
        fed = Room.of(k, found.room.capacity)
        if found.room != fed:
            raise OpArgumentError(
                f"WorkspaceOp: layer {layer} keeps {found.room}; found as their continuation {fed}"
            )
        _require_room(found.length + k.shape[1], fed.capacity, 1)
        return found

    def keep(self, layer: int, kept: Kept) -> None:
        """From now on this is what a layer keeps."""
        self._layers[layer] = kept

    def length(self, layer: int) -> int:
        """How many tokens of each sequence a layer keeps."""
        return self._layers[layer].length if layer in self._layers else 0


def _require_room(tokens: int, capacity: int, answer: int) -> None:
    # The last token of an answer is never kept.
    if tokens + answer - 1 > capacity:
        raise CapacityError(
            f"{tokens} tokens and an answer of at least {answer} do not fit into a workspace of "
            f"{capacity} tokens for each sequence; raise max_out_tokens"
        )
