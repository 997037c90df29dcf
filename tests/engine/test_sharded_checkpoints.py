"""What two processes have saved goes on in one, three or four, and outlives a killed save."""

import os
import signal

import models
import pytest
import snapshots
import torch
import torch.distributed as dist
from joining import join

import accel
from accel.engine.training import checkpoint_files
from accel.errors import AccelError, CheckpointError

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

PATIENCE = 20


def half():
    return models.llama().to(torch.bfloat16)


def adapted():
    return models.with_lora(models.llama())


KINDS = {"master weights": (half, {"master_weights": True}), "LoRA": (adapted, {})}


def engine_of(kind, **settings):
    make, config = KINDS[kind]
    model = make()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    return accel.HybridEngine(model, optimizer, {**config, **settings}, schedule).train()


def update(engine, times=1, rank=0):
    """By prompts of each rank's own, and a seed of the engine's own making."""
    for _ in range(times):
        drawn = torch.Generator().manual_seed(10 * engine.global_steps + rank)
        ids = torch.randint(5, 90, (2, 6), generator=drawn)
        ids = engine.generate(ids, max_new_tokens=2, do_sample=True)
        engine.backward(engine(ids, labels=ids).loss)
        engine.step()


def training_of(engine):
    """All of it that ranks share, put together of their shards."""
    named = dict(engine.model.named_parameters())
    state = engine.optimizer.state_dict()
    generate = engine.plan.model.generate
    return snapshots.bits(
        gathered({
            "parameters": engine.model.state_dict(),
            "masters": engine._optimization.masters.of(named),
            "optimizer": state["state"],
            "groups": state["param_groups"],
            "schedule": engine.lr_scheduler.state_dict(),
            "counted": [engine.global_steps, generate.seeds_made],
        })
    )  # fmt: skip


def gathered(value):
    if isinstance(value, dict):
        return {key: gathered(v) for key, v in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def save(rank, port, folder):
    join(rank, port, 2, PATIENCE)
    for kind in KINDS:
        engine = engine_of(kind, shard=True)
        torch.manual_seed(rank)
        update(engine, 3, rank)
        drawn = torch.get_rng_state()
        engine.save_checkpoint(folder / kind, client_state={"rank": rank})
        torch.save((training_of(engine), snapshots.bits(drawn)), folder / f"{kind}.{rank}")
    engine = engine_of("LoRA", shard=True, gradient_accumulation_steps=2)
    engine.backward(engine(ids := torch.tensor([[5, 6, 7]]), labels=ids).loss)
    with pytest.raises(CheckpointError, match="gradients wait for their update"):
        engine.save_checkpoint(folder / "midway")
    assert not (folder / "midway").exists()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(in_processes):
    return in_processes(save, 2)


def load(rank, port, folder, world, saved):
    if world > 1:
        join(rank, port, world, PATIENCE)
    for kind in KINDS:
        engine = engine_of(kind, **({"shard": True} if world > 1 else {}))
        torch.manual_seed(100 + rank)
        own = snapshots.bits(torch.get_rng_state())
        _, client_state = engine.load_checkpoint(saved / kind)
        assert client_state == {"rank": 0}
        found = training_of(engine), snapshots.bits(torch.get_rng_state()), own
        update(engine, 1, rank)
        assert engine.global_steps == 4
        engine.save_checkpoint(folder / kind)
        torch.save((*found, training_of(engine)), folder / f"{kind}.{rank}")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 3, 4])
def test_what_two_have_saved_goes_on_in_others(in_processes, saved, world):
    folder = in_processes(load, world, world, saved)
    for kind in KINDS:
        want, _ = torch.load(saved / f"{kind}.0", weights_only=False)
        went_on = []
        for rank in range(world):
            found, random, own, after = torch.load(folder / f"{kind}.{rank}", weights_only=False)
            assert snapshots.changed(want, found) == []
            if rank < 2:  # whose random state was saved
                assert random == torch.load(saved / f"{kind}.{rank}", weights_only=False)[1]
            else:
                assert random == own
            went_on.append(after)
        assert all(snapshots.changed(went_on[0], after) == [] for after in went_on)
        alone = engine_of(kind)  # and what these have saved, in one again
        alone.load_checkpoint(folder / kind)
        assert snapshots.changed(went_on[0], training_of(alone)) == []


# -- a rank that is killed -----------------------------------------------------------------------

DEATHS = [(0, "before"), (1, "before"), (1, "written"), (0, "placed")]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed(rank, port, folder, who, where):
    join(rank, port, 2, PATIENCE)
    engine = engine_of("master weights", shard=True)
    update(engine, 1, rank)
    engine.save_checkpoint(folder)
    torch.save(training_of(engine), folder / f"kept.{rank}")
    update(engine, 1, rank)
    if rank == who:
        kill_at(where)
    try:
        engine.save_checkpoint(folder)
        how = "saved"
    except AccelError as error:
        how = str(error)
    (folder / "survivor").write_text(how)
    os._exit(0)  # the group cannot be left in order any more


def kill_at(where):
    """In the middle of a save, for real."""
    if where == "before":
        checkpoint_files.save = lambda *_, **__: die()
        return
    write = checkpoint_files.save

    def written(*given, **settings):
        write(*given, **settings)
        if where == "written":
            die()

    checkpoint_files.save = written
    checkpoint_files._write_latest = lambda path: die()


@pytest.mark.parametrize(("who", "where"), DEATHS)
def test_a_save_whose_rank_is_killed_loses_nothing_of_the_one_before(in_processes, who, where):
    folder = in_processes(killed, 2, who, where, mortal=True)
    assert (folder / "survivor").exists(), "an error that is not ours"
    alone = engine_of("master weights")
    alone.load_checkpoint(folder, "global_step1")
    want = torch.load(folder / "kept.0", weights_only=False)
    assert snapshots.changed(want, training_of(alone)) == []
    alone.load_checkpoint(folder)  # whole, whichever it is
    assert alone.global_steps in (1, 2)
