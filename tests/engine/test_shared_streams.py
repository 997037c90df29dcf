"""Processes that share a stream of prompts draw the same tokens, those that do not draw others."""

import models
import pytest
import torch
import torch.distributed as dist
from joining import joined
from measures import batch

from accel.deepspeed import DeepSpeedHybridEngine
from accel.errors import ConfigError

NEW = 6


class Tensors:
    """As Megatron's mpu names the group today."""

    def __init__(self, group):
        self.group = group

    def get_tensor_model_parallel_group(self):
        return self.group


class Models:
    """As it did before."""

    def __init__(self, group):
        self.group = group

    def get_model_parallel_group(self):
        return self.group


SHARED, OWN = ["tensor", "model"], ["own groups", "no mpu"]


def mpus(rank):
    both, alone = dist.new_group([0, 1]), [dist.new_group([each]) for each in range(2)]
    return {
        "tensor": Tensors(both), "model": Models(both), "own groups": Tensors(alone[rank]),
        "no mpu": None,
    }  # fmt: skip


def work(rank, port, found):
    with joined(rank, port):
        for name, mpu in mpus(rank).items():
            torch.save(rollouts(rank, name, mpu), found / f"{name}.{rank}")


def rollouts(rank, name, mpu):
    """Three, of which the last has a seed; and whether torch's generator was left alone."""
    engine = DeepSpeedHybridEngine(None, models.llama(), mpu=mpu)
    # Those that share draw differently otherwise, those that do not would draw alike.
    torch.manual_seed(rank if name in SHARED else 7)
    torch.rand(rank)
    before = torch.get_rng_state()
    asked = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "return_logprobs": True}
    made = [engine.generate(*batch(), **asked, seed=seed) for seed in (None, None, 5)]
    return made, torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def found(in_two_processes):
    """What each rank made in each of the ways: ``found(name)``, one of each rank."""
    folder = in_two_processes(work)
    return lambda name: [torch.load(folder / f"{name}.{r}", weights_only=False) for r in range(2)]


@pytest.mark.parametrize("name", SHARED)
def test_ranks_that_share_a_stream_draw_the_same_tokens(found, name):
    (first, _), (second, _) = found(name)
    for one, other in zip(first, second):
        assert one.seed == other.seed
        assert torch.equal(one.sequences, other.sequences)
        assert torch.equal(one.logprobs, other.logprobs)
    assert not torch.equal(first[0].sequences, first[1].sequences), "each time others"


@pytest.mark.parametrize("name", OWN)
def test_ranks_with_streams_of_their_own_draw_others_for_the_same_prompt(found, name):
    (first, _), (second, _) = found(name)
    for one, other in zip(first[:2], second[:2]):
        assert one.seed != other.seed
        assert not torch.equal(one.sequences, other.sequences)
    assert torch.equal(first[2].sequences, second[2].sequences), "unless the seed is given"


@pytest.mark.parametrize("name", SHARED + OWN)
def test_no_random_state_is_touched(found, name):
    assert all(untouched for _, untouched in found(name))


def test_an_mpu_without_such_a_group_is_refused():
    with pytest.raises(ConfigError, match=r"get_model_parallel_group; this object has neither"):
        DeepSpeedHybridEngine(None, models.llama(), mpu=object())
