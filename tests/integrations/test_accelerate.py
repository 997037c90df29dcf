"""Accelerate on two ranks: a model it has prepared is hybridized, or a hybridized one prepared."""

import pytest
import torch
from agreement import assert_agree, gamma

import accel

pytest.importorskip("accelerate", reason="Accelerate is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]

import accelerate_work as work  # noqa: E402

CASES = [(how, when) for how in work.SHARED_BY for when in work.WHEN]


KINDS = ("DistributedDataParallel", "FSDPLlamaForCausalLM", "FSDPPeftModelForCausalLM")


@pytest.fixture(scope="module")
def found(of_ranks):
    return of_ranks("accelerate_work")


@pytest.mark.parametrize("case", CASES, ids=" hybridized ".join)
def test_forward_backward_and_generate_are_those_of_one_process(found, case):
    of_ranks = [rank[case] for rank in found]
    plain, ours = work.make(case[0]), work.make(case[0])
    accel.hybridize(ours)
    losses = []
    for rank, made in enumerate(of_ranks):
        ids = work.prompts(rank)
        with torch.no_grad():
            assert torch.equal(made["logits"], ours(input_ids=ids).logits)
        losses.append(plain(input_ids=ids, labels=ids).loss)
        assert_agree(made["loss"], losses[-1].detach())
    learning = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(learning.values(), lr=work.LR)
    torch.stack(losses).mean().backward()
    optimizer.step()
    trained, before = plain.state_dict(), work.make(case[0]).state_dict()
    for made in of_ranks:
        assert made["state"].keys() == trained.keys()
        for key, value in trained.items():
            assert torch.equal(value, before[key]) is (key not in learning)
            off = (made["state"][key] - value).abs().max()
            assert off <= gamma(torch.float32) * value.abs().max(), key


@pytest.mark.parametrize("case", CASES, ids=" hybridized ".join)
def test_rollouts_are_those_of_the_whole_parameters(found, case):
    for rank, made in enumerate(saved[case] for saved in found):
        assert made["kind"] in KINDS
        whole = work.make(case[0])
        whole.load_state_dict(made["state"])
        accel.hybridize(whole)
        want = whole.generate(work.prompts(rank), **work.asked(rank))
        assert torch.equal(made["roll"].sequences, want.sequences)
        assert torch.equal(made["roll"].logprobs, want.logprobs)
