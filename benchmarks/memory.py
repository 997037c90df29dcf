"""What layers hold, counted: sharded linear layers, an MLP in tiles, a transformer layer's flags.

Run by itself, ``python benchmarks/memory.py``; docs/memory.md has its figures.
"""

from __future__ import annotations

import gc
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import accel
from accel.layers import (
    LinearModuleForZeroStage3,
    TiledLinear,
    TiledMLP,
    TransformerLayer,
    TransformerLayerConfig,
)

SIZE, DEPTH, STEPS = 1024, 8, 4
KINDS = {
    "nn.Linear": nn.Linear,
    "LinearModuleForZeroStage3": LinearModuleForZeroStage3,
    "TiledLinear 2x4": partial(TiledLinear, in_splits=2, out_splits=4),
}
FLAGS = ("gelu_checkpoint", "attn_dropout_checkpoint", "normalize_invertible")


def mib(count: int) -> str:
    return f"{count / 2**20:.1f}"


def peak(step: Callable[[], Any], steps: int = STEPS) -> int:
    """Bytes above those before, at the highest point of ``step``: the fewest of some times."""
    acc, found = accel.get_accelerator(), []
    for _ in range(steps):
        gc.collect()
        before = acc.memory_allocated()
        acc.reset_peak_memory_stats()
        step()
        found.append(acc.max_memory_allocated() - before)
    return min(found)


def sharded() -> Table:
    """Layers of 1024 x 1024 under FSDP2, each a unit, each tile of a tiled one."""
    table = Table("layer", "computed in", "kept for the backward", "forward's peak", "step's peak",
                  title=f"{DEPTH} x {SIZE}² under FSDP2, two processes, MiB")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        listening.close()
        mp.spawn(_work, (port, folder), nprocs=2)
        for kind, dtype, *figures in torch.load(Path(folder) / "found"):
            table.add_row(kind, dtype, *map(mib, figures))
    return table


def _work(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        found = [
            (kind, "bf16" if lowered else "fp32", *_sharded_step(kind, lowered))
            for kind in KINDS
            for lowered in (False, True)
        ]
        if rank == 0:
            torch.save(found, Path(folder) / "found")
    finally:
        dist.destroy_process_group()


def _sharded_step(kind: str, lowered: bool) -> tuple[int, int, int]:
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Sequential(*(KINDS[kind](SIZE, SIZE) for _ in range(DEPTH)))
    for layer in model:
        for unit in (*(tile for row in getattr(layer, "linears", ()) for tile in row), layer):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    acc, x = accel.get_accelerator(), torch.randn(4, SIZE, requires_grad=True)
    found = []
    for _ in range(STEPS):
        y = x.grad = None
        model.zero_grad()
        gc.collect()
        before = acc.memory_allocated()
        acc.reset_peak_memory_stats()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
            y = model(x)
        kept, forward = acc.memory_allocated(), acc.max_memory_allocated()
        y.float().square().mean().backward()
        found.append((kept - before, forward - before, acc.max_memory_allocated() - before))
    kept, forward, step = map(min, zip(*found))
    return kept, forward, step


def mlp() -> Table:
    """A gated MLP of 4096 tokens, forward and backward."""
    tokens, hidden, inner = 4096, 512, 1376
    tiled = TiledMLP(hidden, inner)
    x = torch.randn(tokens, hidden, requires_grad=True)

    def step(forward: Callable[[Tensor], Tensor]) -> None:
        x.grad = None
        tiled.zero_grad()
        forward(x).sum().backward()

    def plain(x: Tensor) -> Tensor:
        gate, up, down = tiled.gate_proj, tiled.up_proj, tiled.down_proj
        assert gate is not None
        return down(F.silu(gate(x)) * up(x))

    table = Table("MLP", "peak, MiB", title=f"{tokens} tokens, {hidden} -> {inner}, gated, fp32")
    table.add_row("all tokens at once", mib(peak(lambda: step(plain))))
    for tiled.tile_rows in (1024, 512, 128):
        table.add_row(f"TiledMLP, {tiled.tile_rows} a tile", mib(peak(lambda: step(tiled))))
    return table


def transformer() -> Table:
    """What autograd keeps of a layer between forward and backward, less its parameters."""
    x, mask = torch.randn(8, 128, 768, requires_grad=True), torch.zeros(8, 1, 1, 128)
    table = Table("flags", "kept, MiB", title="TransformerLayer, 8 x 128 x 768, 12 heads, fp32")
    for flags in ((), *((flag,) for flag in FLAGS), FLAGS):
        config = TransformerLayerConfig(
            hidden_size=768, heads=12, attn_dropout_ratio=0.1, hidden_dropout_ratio=0.1,
            num_hidden_layers=12, **dict.fromkeys(flags, True),
        )  # fmt: skip
        layer = TransformerLayer(config)
        own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
        kept: dict[int, int] = {}

        def keep(t: Tensor, own: set[int] = own, kept: dict[int, int] = kept) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = layer(x, mask)
        table.add_row(", ".join(flags) or "none", mib(sum(kept.values())))
        del y
    return table


if __name__ == "__main__":
    console = Console(width=120)
    with accel.ops.use("*=torch", exact=False):
        console.print(mlp())
        console.print(transformer())
    console.print(sharded())
