"""KVCache: the keys and values of what was generated so far."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel.engine.sequences import Sequences
from accel.engine.spec import DecoderSpec
from accel.errors import CapacityError

# Room is made in steps of this many tokens, so that answers of similar length share an allocation.
BUCKET = 64


class KVCache:
    """Rows ``[B * capacity, kv_heads, head_dim]`` of keys and of values per layer, in the model's
    dtype: sequence b's token at position p lies in row ``b * capacity + p``.

    Kept from one rollout to the next while it is large enough; :meth:`release` gives it back.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.capacity = 0
        self.lengths: Tensor | None = None
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def __deepcopy__(self, memo: object) -> KVCache:
        return KVCache(self.limit)

    def __reduce__(self) -> tuple[Callable[..., KVCache], tuple[int | None]]:
        return KVCache, (self.limit,)

    @property
    def bytes(self) -> int:
        """What is allocated."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))

    def reserve(self, spec: DecoderSpec, batch: int, tokens: int, like: Tensor) -> None:
        """Make room for ``batch`` sequences of up to ``tokens`` tokens, all empty.

        CapacityError if that exceeds the limit; what was there before is then kept.
        """
        capacity = -(-tokens // BUCKET) * BUCKET
        shape = (batch * capacity, spec.kv_heads, spec.head_dim)
        layers = len(spec.scales)
        needed = 2 * layers * shape[0] * shape[1] * shape[2] * like.element_size()
        if self.limit is not None and needed > self.limit:
            raise CapacityError(
                f"a KV cache for {batch} sequences of {tokens} tokens takes {needed} bytes, "
                f"kv_cache_bytes permits {self.limit}; generate fewer sequences at once or "
                "shorter ones"
            )
        if not self._fits(shape, layers, like):
            self.release()
            self._keys, self._values = (
                [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(layers)]
                for _ in range(2)
            )
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=like.device)

    def release(self) -> None:
        """Give the memory back."""
        self._keys, self._values, self.lengths, self.capacity = [], [], None, 0

    def admit(self, fed: Sequences) -> Sequences:
        """The sequences of one step as continuations of what is kept; their rows get a slot each.

        Afterwards the new tokens count as kept, and each layer must :meth:`extend` once.
        """
        assert self.lengths is not None
        q_start, q_len = fed.spans[:, 0], fed.spans[:, 1]
        batch = torch.arange(len(q_len), device=q_len.device)
        positions = fed.positions + self.lengths[:, None]
        slots = fed.pack(batch[:, None] * self.capacity + positions)
        self.lengths = self.lengths + q_len
        spans = torch.stack((q_start, q_len, batch * self.capacity, self.lengths), dim=1)
        return Sequences(positions, spans, fed.rows, slots)

    def extend(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new rows of one layer; returns all its keys and values."""
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(0, slots, k)
        values.index_copy_(0, slots, v)
        return keys, values

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
