"""DeepSpeed's ZeRO-3 on two ranks, over an accel backend: our layers train as ever, and the engine
generates of partitioned parameters what one process does of whole ones."""

import pytest
import torch
from agreement import assert_agree

import accel
from accel.errors import RankError, UnsupportedCapability

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test-deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]

import deepspeed_work as work  # noqa: E402


@pytest.fixture(scope="module")
def found(of_ranks):
    return of_ranks("deepspeed_work")


def alone():
    """Each rank's losses of a plain model that one process trains on the rows of both."""
    model = work.stack("plain")
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.LR)
    rows = []
    for step in range(work.STEPS):
        both = torch.stack([work.loss_of(model, work.batch(rank, step)) for rank in range(2)])
        both.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        rows.append(both.detach())
    return torch.stack(rows, 1)


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("kind", work.KINDS)
def test_linear_layers_train_as_in_one_process(found, kind, stage):
    assert_agree(torch.stack([rank[kind, stage] for rank in found]), alone())


def test_a_strangers_backend_serves_deepspeed(found):
    of_ranks = [rank["stranger"] for rank in found]
    assert_agree(torch.stack([losses for losses, _ in of_ranks]), alone())
    assert all(calls >= 3 * work.STEPS for _, calls in of_ranks), "its kernel has computed"


@pytest.mark.filterwarnings("ignore::accel.errors.FallbackWarning")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", work.MODELS)
def test_generate_equals_that_of_whole_parameters(found, name, when):
    for rank, saved in enumerate(found):
        made = saved[name, when]
        model = work.MODELS[name]()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(made["state"])
        assert any(not torch.equal(before[k], v) for k, v in made["state"].items()), "it trained"
        whole = accel.HybridEngine(model)
        want = whole.generate(work.prompts(rank), **work.lengths(rank), **work.SAMPLED)
        for roll in (made["roll"], made["at once"], made["by layer"]):
            assert torch.equal(roll.sequences, want.sequences)
            assert torch.equal(roll.logprobs, want.logprobs)
        beams = whole.generate(work.prompts(rank), **work.lengths(rank), **work.BEAMS)
        assert torch.equal(made["beams"], beams)
        new = want.logprobs.shape[1]
        assert torch.equal(made["scored"][:, -new:], made["roll"].logprobs)


def test_one_rank_alone_cannot_fall_back(found):
    refused, told = (rank["llama", "before"]["beams on one"] for rank in found)
    assert isinstance(refused, UnsupportedCapability)
    assert "ask all ranks" in str(refused)
    assert isinstance(told, RankError)


@pytest.mark.parametrize("name", work.MODELS)
def test_a_model_trains_as_in_one_process(found, name):
    model = work.MODELS[name]()
    accel.hybridize(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.LR)
    for step in range(2):
        both = [model(input_ids=work.prompts(r), labels=work.prompts(r)).loss for r in range(2)]
        for when in ("before", "after"):
            of_ranks = [rank[name, when]["losses"][step] for rank in found]
            assert_agree(torch.stack(of_ranks), torch.stack(both).detach())
        torch.stack(both).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
