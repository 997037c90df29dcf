"""Rollouts of a model that two processes share, by how its parameters are gathered, beside the same
model whole in each of them: tokens a second behind the first, which waits for the gathering.

The Llama of 30 M parameters of ``benchmarks/engine.py``, fp32, one thread a process, both busy.
Run by itself: ``python benchmarks/sharded.py``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from engine import PROMPT, model_of
from rich.console import Console
from rich.table import Table

import accel

TOKENS, ROUNDS = 17, 5
WHOLE = "whole"
WAYS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "all": {"shard": True},
    "groups": {"shard": True, "pin_parameters": False, "tp_gather_partition_size": 4},
    "prefetch": {"shard": True, "pin_parameters": False, "tp_gather_partition_size": 2},
    "layer": {"shard": True, "pin_parameters": False, "tp_gather_partition_size": 1},
}


def seconds(engine: accel.HybridEngine) -> tuple[float, float]:
    """(until the first token is there, the median of those behind it but for the next two, which
    are run and recorded) of a rollout that both processes begin together."""
    ids = torch.arange(1, PROMPT + 1)[None]
    times: list[float] = []
    dist.barrier()
    began = time.perf_counter()
    engine.generate(ids, max_new_tokens=TOKENS, abort=lambda: times.append(time.perf_counter()))
    between = [later - earlier for earlier, later in pairwise(times)]
    return times[1] - began, statistics.median(between[3:])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    engines = {
        way: accel.HybridEngine(model_of(torch.float32), config=config)
        for way, config in WAYS.items()
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(ROUNDS + 1):  # the first is not counted
        for way, engine in engines.items():
            taken = seconds(engine)
            if turn:
                found[way].append(taken)
    for way in (way for way in WAYS if way != WHOLE):
        plan = engines[way].plan
        assert plan is not None
        assert plan.gathering is not None
        assert plan.gathering.policy == way, plan.gathering
    if rank == 0:
        torch.save(found, Path(folder) / "found")
    dist.barrier()
    dist.destroy_process_group()


def table() -> Table:
    """Of the first process."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
        found = torch.load(Path(folder) / "found")
    shown = Table("gathered", "first token ms", "tokens/s behind it", "times as slow as whole")
    for way, taken in found.items():
        first = statistics.median(f for f, _ in taken)
        rate = 1 / statistics.median(token for _, token in taken)
        ratios = [token / whole for (_, token), (_, whole) in zip(taken, found[WHOLE])]
        slower = statistics.median(ratios)
        shown.add_row(way, f"{first * 1e3:.0f}", f"{rate:.1f}", f"{slower:.2f}")
    return shown


if __name__ == "__main__":
    Console().print(table())
