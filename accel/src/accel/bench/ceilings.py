"""What the device can do at most, measured beside the ops: memory read and copied, products.

Every figure is the best of several tries, of several ways: torch's own operations on any device,
and what its plugin brings (:meth:`accel.Accelerator.ceilings`), such as a loop of nothing but
multiply-adds. All ways are kept, each with how it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from accel.accelerator import Accelerator
from accel.bench.offers import Ceiling
from accel.bench.sizes import COLD
from accel.bench.timing import Clock
from accel.contracts.checks import name_of

BY_TORCH = "torch.mm, the best size"
TRIES = 5
SIDES = (512, 1024, 2048, 4096, 8192)
PATIENCE = 0.3  # seconds: a larger product is not tried once one takes so long


@dataclass(frozen=True)
class Ceilings:
    """All that were measured; the highest of its kind is the ceiling."""

    measured: tuple[Ceiling, ...]

    def best(self, what: str) -> Ceiling:
        return max((c for c in self.measured if c.what == what), key=lambda c: c.rate)

    @property
    def memory(self) -> float:
        """Bytes a second: of reading or of copying, whichever is more."""
        return max(self.best("read").rate, self.best("copy").rate)

    def product(self, dtype: str) -> float:
        """Flops a second in a dtype, by its name."""
        return self.best(dtype).rate

    def best_of_torch(self, dtype: torch.dtype) -> float:
        """Flops a second of torch's own products."""
        return next(
            c.rate for c in self.measured if c.what == name_of(dtype) and c.method == BY_TORCH
        )

    def and_again(self, other: Ceilings) -> Ceilings:
        """Of each way the better of two measurements."""
        both: dict[tuple[str, str], Ceiling] = {}
        for one in sorted((*self.measured, *other.measured), key=lambda c: c.rate):
            both[one.what, one.method] = one
        return Ceilings(tuple(both.values()))

    def to_list(self) -> list[dict[str, Any]]:
        return [asdict(c) | {"best": c is self.best(c.what)} for c in self.measured]


def measure(
    accelerator: Accelerator, dtypes: Sequence[torch.dtype], bytes_moved: int = COLD,
    sides: Sequence[int] = SIDES,
) -> Ceilings:  # fmt: skip
    """All ways once; torch's products only with the ``sides`` of their matrices."""
    clock = Clock(accelerator)
    with torch.no_grad():
        generic = [*_memory(clock, accelerator.device(), bytes_moved)]
        if sides:
            generic += [_product(clock, accelerator.device(), dtype, sides) for dtype in dtypes]
    return Ceilings((*generic, *accelerator.ceilings(dtypes)))


def _memory(clock: Clock, device: torch.device, size: int) -> Iterator[Ceiling]:
    x = torch.ones(size // 4, device=device)
    y = torch.empty_like(x)
    mib = f"{x.nbytes >> 20} MiB"
    yield Ceiling("read", x.nbytes / _best(clock, x.sum), f"torch.sum of {mib}, fp32")
    yield Ceiling("read", x.nbytes / _best(clock, lambda: torch.dot(x, x)), f"torch.dot of {mib}")
    copied = 2 * x.nbytes / _best(clock, lambda: y.copy_(x))
    yield Ceiling("copy", copied, f"Tensor.copy_ of {mib}, read and written")


def _product(
    clock: Clock, device: torch.device, dtype: torch.dtype, sides: Sequence[int]
) -> Ceiling:
    """The best square product of torch's; sides grow until one takes long."""
    found = []
    for side in sides:
        a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        seconds = _best(clock, lambda a=a, b=b: a @ b)  # type: ignore[misc]
        found.append(2 * side**3 / seconds)
        if seconds > PATIENCE:
            break
    return Ceiling(name_of(dtype), max(found), BY_TORCH)


def _best(clock: Clock, call: Callable[[], object]) -> float:
    """Seconds: a first time that nobody counts, then the least of some tries."""

    def loop(repeats: int) -> None:
        for _ in range(repeats):
            call()

    first = clock.seconds(loop)
    tries = TRIES if first < PATIENCE else 1
    return min(clock.seconds(loop) for _ in range(tries))
