"""What a sharded model's rollout holds, by the way its parameters are gathered: counted bytes."""

import gc
import time

import models
import pytest
import torch
from joining import joined
from test_sharded_rollouts import GATHERED

import accel
from accel.errors import CapacityError

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

DEPTH, WIDTH = 6, 256
LAYER = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * 2 * WIDTH + 2 * WIDTH)  # bytes, without biases
NUMBERS = 9 * 64  # of fully_shard's own: a few for each of a layer's parameters
IDS = torch.tensor([[5, 6, 7]])


def deep():
    return models.llama(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip


def rise(engine, steps=3):
    """(the most bytes over those before a rollout, those): the fewest of some."""
    for module in engine.model.modules():
        if hasattr(module, "unshard"):  # gloo drops a copy of its own when its thread runs again
            module.register_forward_pre_hook(lambda *_: time.sleep(0.01), prepend=True)
    acc, found = accel.get_accelerator(), []
    for _ in range(steps):
        gc.collect()
        before = acc.memory_allocated()
        acc.reset_peak_memory_stats()
        engine.generate(IDS, max_new_tokens=4)
        found.append((acc.max_memory_allocated() - before, before))
        assert acc.memory_allocated() - before < LAYER, "nothing stays gathered"
    return min(found)


def work(rank, port, folder):
    with joined(rank, port):
        acc, config = accel.get_accelerator(), {
            "release_inference_cache": True, "enable_cuda_graph": False,
        }  # fmt: skip
        empty = acc.memory_allocated()
        whole = accel.HybridEngine(deep(), config=config)
        found = {"whole": (rise(whole)[0], acc.memory_allocated() - empty)}
        del whole
        gc.collect()
        empty = acc.memory_allocated()
        for how, settings in GATHERED.items():
            engine = accel.HybridEngine(deep(), config={**config, **settings, "shard": True})
            most, before = rise(engine)
            assert engine.plan.gathering.policy == how
            found[how] = (most, before - empty, engine.plan.gathering.bytes)
            del engine
            gc.collect()
        found["short"] = refused_and_just_enough()
        torch.save(found, folder / str(rank))


def refused_and_just_enough():
    """What is said of too little room, and what is chosen where there is just enough."""
    model, said = deep(), ""
    try:
        accel.HybridEngine(model, config={"shard": True, "gather_bytes": 2 * LAYER - 1})
    except CapacityError as error:
        said = str(error)
    engine = accel.HybridEngine(
        model, config={"shard": True, "gather_bytes": 2 * LAYER + WIDTH * 4}
    )
    engine.generate(IDS, max_new_tokens=2)
    return said, str(engine.plan)


@pytest.fixture(scope="module")
def found(in_two_processes):
    folder = in_two_processes(work)
    return [torch.load(folder / str(rank), weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_holds_its_shard_two_layers_and_what_a_rollout_takes(found, rank):
    rollout, parameters = found[rank]["whole"]  # the cache, and what layers compute
    most, shard, said = found[rank]["layer"]
    assert shard < 0.6 * parameters
    assert most <= 2 * LAYER + rollout + NUMBERS
    assert most > LAYER, "a layer was gathered"
    assert said == 2 * LAYER + WIDTH * 4, "and the last norm"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", GATHERED)
def test_no_way_of_gathering_takes_more_than_the_plan_says(found, rank, how):
    rollout, _ = found[rank]["whole"]
    most, _, said = found[rank][how]
    assert most <= said + rollout + NUMBERS


@pytest.mark.parametrize("rank", [0, 1])
def test_more_room_is_used_for_more_at_a_time(found, rank):
    most = [found[rank][how][0] for how in ("layer", "prefetch", "groups", "all")]
    assert most == sorted(most)


@pytest.mark.parametrize("rank", [0, 1])
def test_too_little_room_for_a_layer_is_refused_with_the_figures(found, rank):
    said, chosen = found[rank]["short"]
    assert f"gather_bytes permits {2 * LAYER - 1} bytes" in said
    assert str(LAYER) in said
    assert "gathers a layer when it runs" in chosen
    assert "not all: " in chosen
