"""TRL's GRPOTrainer on two ranks: rewards as by its own path, in less time."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]

import trl_work as work  # noqa: E402


@pytest.fixture(scope="module")
def found(of_ranks):
    return of_ranks("trl_work")


@pytest.mark.parametrize("path", work.PATHS[1:])
def test_greedy_answers_are_rewarded_as_those_of_trls_own_path(found, path):
    for rank in found:
        assert len(rank["rewards", path]) == 2
        assert rank["rewards", path] == rank["rewards", work.PATHS[0]]


@pytest.mark.parametrize("path", work.PATHS[1:])
def test_ranks_answer_one_prompt_differently(found, path):
    one, other = (set(map(tuple, rank["answers", path])) for rank in found)
    assert len(one | other) == 4 * work.trainers.GROUP


@pytest.mark.parametrize("path", work.PATHS[1:])
def test_answers_are_made_in_less_time(found, path):
    """In every process, and that by more than a busy machine takes away."""
    ratios = [rank["seconds", work.PATHS[0]] / rank["seconds", path] for rank in found]
    print(f"{path}: {ratios[0]:.2f} and {ratios[1]:.2f} times as fast as TRL's own generate")
    assert min(ratios) > 1


def test_old_values_are_those_of_the_rollout_on_every_rank(found):
    for rank in found:
        from_rollout, computed = rank["old"]
        assert from_rollout > 0
        assert computed == 0


@pytest.mark.parametrize("path", work.PATHS)
@pytest.mark.parametrize("updates", [1, 2])
def test_ranks_train_one_model(found, path, updates):
    one, other = (rank["state", path, updates] for rank in found)
    before = work.trainers.model().state_dict()
    assert all(torch.equal(one[key], other[key]) for key in before)
    assert any(not torch.equal(one[key], before[key]) for key in before)


def test_the_example_runs_on_two_ranks(torchrun):
    example = Path(__file__).parents[2] / "examples" / "grpo_trl.py"
    said = torchrun(example, "--reading", 5, "--steps", 2)
    assert said.count("reward of a step's answers") == 1, "the first rank says it"
