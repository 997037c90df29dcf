"""KVCache: the keys and values of what was generated so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from accel.engine.sequences import Sequences
from accel.engine.spec import DecoderSpec
from accel.errors import CapacityError, UnsupportedCapability

# Room is made in steps of this many tokens, so that answers of similar length share an allocation.
BUCKET = 64


class KVCache:
    """Rows ``[B * capacity, kv_heads, head_dim]`` of keys and of values per layer, in the model's
    dtype: the token at position p of a sequence lies in row ``start + p``, where the sequence stays
    when others leave.

    ``starts``   int64 ``[B]`` of the sequences still going, ``lengths`` how many tokens are kept
    ``held``     what lies there since the last rollout, where that has said it; a reservation and a
                 release forget it

    Kept from one rollout to the next while it is large enough; :meth:`release` gives it back.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.capacity = 0
        self.starts: Tensor | None = None
        self.lengths: Tensor | None = None
        self.held: Any = None
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._reserved: tuple[DecoderSpec, int, int, Tensor] | None = None
        self._used = Lock()

    def __deepcopy__(self, memo: object) -> KVCache:
        return KVCache(self.limit)

    def __reduce__(self) -> tuple[Callable[..., KVCache], tuple[int | None]]:
        return KVCache, (self.limit,)

    @contextmanager
    def used(self) -> Iterator[None]:
        """By the body alone. UnsupportedCapability if somebody uses it already."""
        taken = False
        try:
            taken = self._used.acquire(blocking=False)
            if not taken:
                raise UnsupportedCapability(
                    "the model's KV cache is used by another call of generate, in another thread "
                    "or around this one (a processor, streamer, abort or hook of it calls this); "
                    "wait for that one, or take a deepcopy of the model, which has its own"
                )
            yield
        finally:
            if taken:
                self._used.release()

    @property
    def bytes(self) -> int:
        """What is allocated."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))

    def most(self, spec: DecoderSpec, tokens: int, like: Tensor) -> int | None:
        """How many sequences of up to ``tokens`` tokens the limit has room for; None without one.

        CapacityError if there is room for none.
        """
        if self.limit is None:
            return None
        found = self.limit // _needed(spec, 1, tokens, like)
        if not found:
            self._require(spec, 1, tokens, like)
        return found

    def reserve(
        self, spec: DecoderSpec, batch: int, tokens: int, like: Tensor,
        beginnings: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """Make room for ``batch`` sequences of up to ``tokens`` tokens, all empty but the first:
        of those ``beginnings`` says in which row another began and how many tokens of that one
        they keep.

        CapacityError if that exceeds the limit; what was there before is then kept.
        """
        self._require(spec, batch, tokens, like)
        self.held = None
        capacity = _capacity(tokens)
        shape = (batch * capacity, spec.kv_heads, spec.head_dim)
        layers = len(spec.scales)
        starts = torch.arange(batch, device=like.device) * capacity
        lengths = torch.zeros_like(starts)
        if any(count for _, count in beginnings):
            first, kept = torch.tensor(beginnings, device=like.device).unbind(1)
            lengths[: len(kept)] = kept
            self._move(_rows(first, kept), _rows(starts[: len(kept)], kept), shape, like)
        elif not self._fits(shape, layers, like):
            self.release()
            self._keys, self._values = (
                [_empty(shape, like) for _ in range(layers)] for _ in range(2)
            )
        self._reserved = (spec, batch, tokens, like.new_empty(0))
        self.capacity, self.starts, self.lengths = capacity, starts, lengths

    def retake(self) -> None:
        """Make the room again that was last asked for; none if there was none."""
        if self._reserved is not None:
            self.reserve(*self._reserved)

    def release(self) -> None:
        """Give the memory back."""
        self._keys, self._values, self.capacity = [], [], 0
        self.starts = self.lengths = self.held = None

    def keep(self, sequences: Tensor | slice) -> None:
        """Go on with these of the sequences only, by their place among those that were going."""
        assert self.starts is not None
        assert self.lengths is not None
        self.starts, self.lengths = self.starts[sequences], self.lengths[sequences].clone()

    def fork(self, which: Tensor) -> None:
        """Go on with as many sequences as ``which`` says, each with a copy of what the one it names
        has kept. Only those that lie first, where :meth:`reserve` left them, may be going."""
        assert self.lengths is not None
        longest, count = int(self.lengths.max()), len(which)
        for rows in (*self._keys, *self._values):
            kept = rows[: count * self.capacity].view(count, self.capacity, *rows.shape[1:])
            kept[:, :longest] = kept[which, :longest]
        self.starts = torch.arange(count, device=which.device) * self.capacity
        self.lengths = self.lengths[which]

    def admit(self, fed: Sequences) -> Sequences:
        """The sequences of one step as continuations of what is kept; their rows get a slot each.

        Afterwards the new tokens count as kept, and each layer must :meth:`extend` once.
        """
        assert self.starts is not None
        assert self.lengths is not None
        q_start, q_len = fed.spans[:, 0], fed.spans[:, 1]
        positions = fed.positions + self.lengths[:, None]
        slots = fed.pack(self.starts[:, None] + positions)
        self.lengths.add_(q_len)  # in its place, where a replay of this looks for it
        spans = torch.stack((q_start, q_len, self.starts, self.lengths), dim=1)
        return Sequences(positions, spans, fed.rows, slots)

    def extend(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new rows of one layer; returns all its keys and values."""
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(0, slots, k)
        values.index_copy_(0, slots, v)
        return keys, values

    def _move(self, old: Tensor, new: Tensor, shape: tuple[int, int, int], like: Tensor) -> None:
        """Rows ``old`` of every layer to where ``new`` says, in room of that shape; a layer's own
        is given back before the next is made."""
        fits = self._fits(shape, len(self._keys), like)
        if fits and torch.equal(old, new):
            return
        try:
            for kept in (self._keys, self._values):
                for layer in range(len(kept)):
                    rows = kept[layer].index_select(0, old)
                    if not fits:
                        kept[layer] = rows[:0]
                        kept[layer] = _empty(shape, like)
                    kept[layer].index_copy_(0, new, rows)
        except BaseException:  # some have moved
            self.release()
            raise

    def _fits(self, shape: tuple[int, int, int], layers: int, like: Tensor) -> bool:
        if len(self._keys) != layers:
            return False
        kept = self._keys[0]
        return (
            kept.dtype == like.dtype
            and kept.device == like.device
            and kept.shape[1:] == shape[1:]
            and kept.shape[0] >= shape[0]
        )

    def _require(self, spec: DecoderSpec, batch: int, tokens: int, like: Tensor) -> None:
        needed = _needed(spec, batch, tokens, like)
        if self.limit is not None and needed > self.limit:
            raise CapacityError(
                f"a KV cache for {batch} sequences of {tokens} tokens takes {needed} bytes, "
                f"kv_cache_bytes permits {self.limit}; generate shorter ones"
            )


def _empty(shape: tuple[int, int, int], like: Tensor) -> Tensor:
    with torch.inference_mode(False):  # so that later rollouts may write to it outside
        return torch.empty(shape, dtype=like.dtype, device=like.device)


def _rows(starts: Tensor, counts: Tensor) -> Tensor:
    """``starts[i]`` and the ``counts[i] - 1`` numbers behind it, for every i."""
    before = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum()), device=starts.device)
    return within + (starts - before).repeat_interleave(counts)


def _capacity(tokens: int) -> int:
    return -(-tokens // BUCKET) * BUCKET


def _needed(spec: DecoderSpec, batch: int, tokens: int, like: Tensor) -> int:
    """Bytes of such a cache."""
    numbers = batch * _capacity(tokens) * spec.kv_heads * spec.head_dim
    return 2 * len(spec.scales) * numbers * like.element_size()
