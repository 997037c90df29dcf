"""A model sharded over two processes: the engine's forwards are called as modules, so each layer's
parameters are gathered when it runs and nowhere else."""

import models
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import accel

NEW = 6


def sharded(name, mesh):
    model = models.MAKERS[name]()
    engine_first = name == "llama"  # both orders must do
    if engine_first:
        accel.hybridize(model)
    for layer in next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def work(rank, port, found):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        for name in models.MAKERS:
            torch.save(trained_and_generated(rank, name), found / f"{name}.{rank}")
    finally:
        dist.destroy_process_group()


def trained_and_generated(rank, name):
    model = sharded(name, init_device_mesh("cpu", (2,)))
    engine = accel.HybridEngine(model, torch.optim.AdamW(model.parameters()))
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(rank))
    engine.backward(engine(ids, labels=ids).loss)
    engine.step()
    roll = engine.generate(ids, max_new_tokens=NEW, do_sample=True, seed=1, return_logprobs=True)
    scored = engine.logprobs(roll.sequences, roll.attention_mask).detach()
    return roll, scored, {key: value.full_tensor() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def found(in_two_processes):
    """A folder with what each rank made of each model."""
    return in_two_processes(work)


@pytest.mark.parametrize("name", models.MAKERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_sharded_model_trains_and_generates_as_the_whole_one(found, name, rank):
    roll, scored, whole = torch.load(found / f"{name}.{rank}", weights_only=False)
    assert torch.equal(scored[:, -NEW:], roll.logprobs)
    alone = accel.HybridEngine(models.MAKERS[name]())
    before = alone.model.state_dict()
    assert any(not torch.equal(before[key], whole[key]) for key in whole), "it has trained"
    alone.model.load_state_dict(whole)
    assert torch.equal(alone.logprobs(roll.sequences, roll.attention_mask), scored)
