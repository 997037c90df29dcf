"""A model shared by two processes: the engine's forwards are called as modules, so each layer's
parameters are gathered when it runs and nowhere else; and what two have saved goes on in one."""

from contextlib import nullcontext

import models
import pytest
import snapshots
import torch
import torch.distributed as dist
from agreement import gamma
from joining import joined
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import accel
from accel.errors import CheckpointError

NEW = 6
SHARED_BY = ["FSDP2", "DDP"]
TRAINING = {"master_weights": True, "gradient_accumulation_steps": 2, "gradient_clipping": 0.1}


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
    with joined(rank, port):
        for name in models.MAKERS:
            torch.save(trained_and_generated(rank, name), found / f"{name}.{rank}")
        for how in SHARED_BY:
            torch.save(saved_and_loaded(rank, how, found / how), found / f"{how}.{rank}")


def trained_and_generated(rank, name):
    model = sharded(name, init_device_mesh("cpu", (2,)))
    engine = accel.HybridEngine(model, torch.optim.AdamW(model.parameters()))
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(rank))
    engine.backward(engine(ids, labels=ids).loss)
    with torch.no_grad():
        engine.logprobs(ids)  # leaves gathered what lies around the layers
    engine.step()
    stepped = engine.logprobs(ids).detach()
    roll = engine.generate(ids, max_new_tokens=NEW, do_sample=True, seed=1, return_logprobs=True)
    scored = engine.logprobs(roll.sequences, roll.attention_mask).detach()
    whole = {key: value.full_tensor() for key, value in model.state_dict().items()}
    return roll, scored, whole, (ids, stepped)


@pytest.fixture(scope="module")
def found(in_two_processes):
    """A folder with what each rank made of each model."""
    return in_two_processes(work)


@pytest.mark.parametrize("name", models.MAKERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_sharded_model_trains_and_generates_as_the_whole_one(found, name, rank):
    roll, scored, whole, (ids, stepped) = torch.load(found / f"{name}.{rank}", weights_only=False)
    assert torch.equal(scored[:, -NEW:], roll.logprobs)
    alone = accel.HybridEngine(models.MAKERS[name]())
    before = alone.model.state_dict()
    assert any(not torch.equal(before[key], whole[key]) for key in whole), "it has trained"
    alone.model.load_state_dict(whole)
    assert torch.equal(alone.logprobs(roll.sequences, roll.attention_mask), scored)
    assert torch.equal(alone.logprobs(ids), stepped)


# -- checkpoints -------------------------------------------------------------------------------


def engine_of(how):
    """One that trains a llama in bfloat16, which is shared or whole."""
    model = models.llama().to(torch.bfloat16)
    if how == "FSDP2":
        for part in (*model.model.layers, model):
            fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    elif how == "DDP":
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return accel.HybridEngine(model, optimizer, TRAINING).train()


def update(engine, rank):
    drawn = torch.Generator().manual_seed(10 * engine.global_steps + rank)
    for no_sync in (getattr(engine.model, "no_sync", nullcontext), nullcontext):
        ids = torch.randint(models.VOCAB, (2, 8), generator=drawn)
        with no_sync():  # DDP's, as its users accumulate
            engine.backward(engine(ids, labels=ids).loss)
        engine.step()


def training_of(engine):
    """Parameters, masters and the optimizer's state, put together of their shards."""
    named = dict(engine.model.named_parameters())
    return snapshots.bits(
        gathered({
            "parameters": engine.model.state_dict(),
            "masters": engine._optimization.masters.of(named),
            "optimizer": engine.optimizer.state_dict()["state"],
        })
    )  # fmt: skip


def gathered(value):
    if isinstance(value, dict):
        return {str(key).removeprefix("module."): gathered(v) for key, v in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def saved_and_loaded(rank, how, folder):
    engine, other = engine_of(how), engine_of(how)
    update(engine, rank)
    engine.save_checkpoint(folder, client_state={"of": rank})
    saved = training_of(engine)
    _, client_state = other.load_checkpoint(folder)
    assert client_state == {"of": 0}
    for each in (engine, other):
        update(each, rank)
    engine.save_checkpoint(folder, "torn")
    if rank == 0:
        (folder / "torn" / "__1_0.distcp").unlink()
    dist.barrier()
    with pytest.raises(CheckpointError, match=r"'__1_0\.distcp' is missing"):  # on both
        engine.load_checkpoint(folder, "torn")
    return saved, training_of(engine), training_of(other), engine.global_grad_norm


@pytest.mark.parametrize("how", SHARED_BY)
def test_two_processes_go_on_from_what_they_saved(found, how):
    had = [torch.load(found / f"{how}.{rank}", weights_only=False) for rank in range(2)]
    for saved, uninterrupted, loaded, _ in had:
        assert saved != uninterrupted
        assert snapshots.changed(uninterrupted, loaded) == []
    assert had[0] == had[1]


@pytest.mark.parametrize("how", SHARED_BY)
def test_one_process_goes_on_from_what_two_have_saved(found, how):
    saved = torch.load(found / f"{how}.0", weights_only=False)[0]
    alone = engine_of("one process")
    alone.load_checkpoint(found / how, "global_step1")
    assert snapshots.changed(saved, training_of(alone)) == []


def test_gradients_are_clipped_by_one_norm_however_they_are_shared(found):
    norms = [torch.load(found / f"{how}.0", weights_only=False)[3] for how in SHARED_BY]
    assert norms[0] > TRAINING["gradient_clipping"]
    roundings = 8  # of a gradient that is added up over two ranks and two micro batches
    if torch.__version__ < "2.13":  # through gloo fully_shard of torch 2.8 adds, DDP averages
        norms[1] *= 2
    assert norms[0] == pytest.approx(norms[1], rel=gamma(torch.bfloat16, roundings))
