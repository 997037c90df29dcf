"""TiledMLP and TiledCrossEntropy over two processes: each gradient is reduced once, whatever the
ranks' lengths."""

import pytest
import torch
from joining import joined
from mlp_twin import Plain, assert_equal, made, tiled
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from accel import ops, testing
from accel.layers import TiledCrossEntropy, TiledMLP, cross_entropy

LENGTHS = {"equal": (6, 6), "different": (3, 11), "none": (0, 5)}  # 2, 4 and no tiles among them
WAYS = ("ddp", "fsdp2")


class Model(nn.Module):
    """An MLP between layers of other kinds, and a head with its loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        mlp = tiled(Plain(bias=True), tile_rows=3)
        self.body = nn.Sequential(nn.Linear(5, 5, dtype=torch.float64), mlp, nn.Tanh())
        self.head = TiledCrossEntropy(5, 11, bias=True, reduction="sum", dtype=torch.float64)

    def forward(self, x, targets):
        return self.head(self.body(x), targets)


def wrapped(way):
    whole = Model()
    if way == "ddp":
        return DistributedDataParallel(whole)
    mesh = init_device_mesh("cpu", (2,))
    for part in whole.modules():
        if isinstance(part, (TiledMLP, TiledCrossEntropy)):
            fully_shard(part, mesh=mesh)
    return fully_shard(whole, mesh=mesh)


def loss(module, length):
    return module(made(2, length, 5), torch.arange(2 * length).reshape(2, length) % 11)


def work(rank, port, found):
    cross_entropy.BLOCK_BYTES = 4 * 11 * 4  # four tokens a block
    with joined(rank, port), testing.installed(testing.fake_backend()), ops.use(exact=False):
        for way in WAYS:
            for name, lengths in LENGTHS.items():
                kept = trained(way, lengths[rank])
                if rank == 0:
                    torch.save(kept, found / f"{way}.{name}")


def trained(way, length):
    """Gradients, whole, and how often each was made."""
    module, fired = wrapped(way), []
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda grad, name=name: fired.append(name))
    loss(module, length).backward()
    grads = {
        name.removeprefix("module."): getattr(p.grad, "full_tensor", lambda grad=p.grad: grad)()
        for name, p in module.named_parameters()
    }
    return grads, sorted(fired)


@pytest.fixture(scope="module")
def found(in_two_processes):
    """A folder with what the first rank had of each way and each pair of lengths."""
    return in_two_processes(work)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("torch_serves")
def test_gradients_are_the_mean_of_what_each_rank_has_alone(found, way, lengths):
    grads, fired = torch.load(found / f"{way}.{lengths}")
    alone = Model()
    (sum(loss(alone, length) for length in LENGTHS[lengths]) / 2).backward()
    assert_equal(grads, {name: p.grad for name, p in alone.named_parameters()})
    if way == "ddp":  # under FSDP2 autograd knows the gathered parameters, not these
        assert [name.removeprefix("module.") for name in fired] == sorted(grads)
