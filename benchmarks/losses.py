"""A language model's head: tiled_cross_entropy and ops.logprob beside the paths with all logits.

2048 tokens, hidden 1024, a vocabulary of 131072, fp32; forward and backward. Memory is what is
allocated above parameters and their gradients.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from timing import in_turn, ratio
from torch import Tensor

from accel import ops
from accel.accelerator import Accelerator
from accel.layers import tiled_cross_entropy

TOKENS, HIDDEN, VOCABULARY = 2048, 1024, 131072


def plain_loss(x: Tensor, w: Tensor, ids: Tensor, upstream: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, w), ids)


def tiled_loss(x: Tensor, w: Tensor, ids: Tensor, upstream: Tensor) -> Tensor:
    return tiled_cross_entropy(x, w, ids)


def plain_logprob(x: Tensor, w: Tensor, ids: Tensor, upstream: Tensor) -> Tensor:
    logs = torch.log_softmax(F.linear(x, w), -1)
    return (logs.gather(-1, ids[:, None])[:, 0] * upstream).sum()


def tiled_logprob(x: Tensor, w: Tensor, ids: Tensor, upstream: Tensor) -> Tensor:
    return (ops.logprob(x, ids, w)[0] * upstream).sum()


# what -> (with all logits, in tiles, times the plain path's time that are allowed)
CASES = {
    "mean loss": (plain_loss, tiled_loss, 1.1),
    "log-probabilities": (plain_logprob, tiled_logprob, 1.4),
}


def rows(acc: Accelerator) -> Iterator[dict[str, Any]]:
    """Time and memory of each case; at least three rounds each, some three minutes in all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).requires_grad_()
    w = torch.randn(VOCABULARY, HIDDEN, generator=generator).mul_(HIDDEN**-0.5).requires_grad_()
    ids = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    upstream = torch.rand(TOKENS, generator=generator)
    for what, (plain, tiled, allowed) in CASES.items():
        peaks: dict[str, list[int]] = {"plain": [], "tiled": []}

        def step(name: str, loss: Callable[..., Tensor], peaks: Any = peaks) -> None:
            peaks[name].append(_peak(acc, loss, x, w, ids, upstream))

        times = in_turn(
            {"plain": lambda: step("plain", plain), "tiled": lambda: step("tiled", tiled)},  # noqa: B023
            warm=False,
        )
        yield {
            "what": what,
            "plain_s": statistics.median(times["plain"]),
            "tiled_s": statistics.median(times["tiled"]),
            "time": 1 / ratio(times["plain"], times["tiled"]),
            "time_allowed": allowed,
            "plain_bytes": max(peaks["plain"]),
            "tiled_bytes": max(peaks["tiled"]),
            "memory": max(peaks["tiled"]) / max(peaks["plain"]),
            "memory_allowed": 0.1,
        }


def _peak(
    acc: Accelerator, loss: Callable[..., Tensor], x: Tensor, w: Tensor, *rest: Tensor
) -> int:
    """Bytes at the highest point of a step above the parameters and their gradients."""
    x.grad = w.grad = None
    gradients = x.nbytes + w.nbytes
    before = acc.memory_allocated()
    acc.reset_peak_memory_stats()
    loss(x, w, *rest).backward()
    return acc.max_memory_allocated() - before - gradients


def table(found: list[dict[str, Any]]) -> Table:
    shown = Table(
        "head", "plain s", "tiled s", "time", "allowed", "plain MiB", "tiled MiB", "memory",
        "allowed", title=f"{TOKENS} tokens, hidden {HIDDEN}, vocabulary {VOCABULARY}, fp32, "
        "forward and backward",
    )  # fmt: skip
    for row in found:
        shown.add_row(
            row["what"], f"{row['plain_s']:.1f}", f"{row['tiled_s']:.1f}",
            f"{row['time']:.2f}", f"{row['time_allowed']:.2f}",
            f"{row['plain_bytes'] / 2**20:.0f}", f"{row['tiled_bytes'] / 2**20:.0f}",
            f"{row['memory']:.3f}", f"{row['memory_allowed']:.1f}",
        )  # fmt: skip
    return shown
