"""What each of two processes does with sharded linear layers, and the bytes it counts."""

import gc
import warnings
from functools import partial

import torch
import torch.distributed as dist
from joining import joined
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import accel
from accel.layers.tiled_linear import TiledLinear
from accel.layers.zero3 import LinearModuleForZeroStage3

SIZE, DEPTH, ROWS, STEPS = 256, 3, (2, 2), 4
TILES = {"in_splits": 2, "out_splits": 4}
KINDS = {"plain": nn.Linear, "zero3": LinearModuleForZeroStage3,
         "tiled": partial(TiledLinear, **TILES)}  # fmt: skip


def work(rank, port, found):
    with joined(rank, port), accel.ops.use("*=torch", exact=False):
        torch.save(all_of_it(), found / str(rank))


def all_of_it():
    mesh = init_device_mesh("cpu", (2,))
    found = {
        (kind, lowered): measured(sharded(stack(kind), mesh), lowered)
        for kind in KINDS
        for lowered in (False, True)
        if not (kind == "tiled" and lowered)
    }
    found["state"] = states(mesh)
    return found


def stack(kind):
    torch.manual_seed(0)
    return nn.Sequential(*(KINDS[kind](SIZE, SIZE) for _ in range(DEPTH)))


def sharded(model, mesh):
    """Every layer is a unit of its own, of a tiled one every tile."""
    for layer in model:
        tiles = [tile for row in getattr(layer, "linears", ()) for tile in row]
        for unit in (*tiles, layer):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    return model


def measured(model, lowered):
    """Bytes over those before a step, the fewest of some steps, since collectives end when they
    will; warnings of views; the result, and the gradients of the input and the parameters."""
    acc = accel.get_accelerator()
    x = torch.linspace(-1, 1, SIZE).expand(*ROWS, SIZE).contiguous().requires_grad_()
    steps, views = [], []
    for _ in range(STEPS):
        y = x.grad = None
        model.zero_grad()
        gc.collect()
        before = acc.memory_allocated()
        acc.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
                y = model(x)
        kept, forward = acc.memory_allocated(), acc.max_memory_allocated()
        y.float().square().mean().backward()
        steps.append((kept - before, forward - before, acc.max_memory_allocated() - before))
        views += [str(w.message) for w in said if "view" in str(w.message)]
    grads = [p.grad.full_tensor() for p in model.parameters()]
    figures = dict(zip(("kept", "forward", "step"), map(min, zip(*steps))))
    return figures, views, (y.detach().float(), x.grad, *grads)


def states(mesh):
    """A sharded tiled layer: what it saves, reads, loads and copies."""
    layer = sharded(stack("tiled"), mesh)[0]
    saved = {name: value.clone() for name, value in layer.state_dict().items()}
    torch.manual_seed(1)
    other = nn.Linear(SIZE, SIZE)
    found = {"keys": list(saved), "start": (layer.weight, layer.bias)}
    layer.load_state_dict(other.state_dict())
    found["loaded"] = layer.weight
    layer.load_state_dict(saved)
    found["saved"] = layer.weight
    torch.manual_seed(2 + dist.get_rank())  # the first process's values count
    layer.copy_params_from(nn.Linear(SIZE, SIZE))
    found["copied"] = layer.weight
    found["plain"] = layer.to_linear().weight.detach()
    return found
