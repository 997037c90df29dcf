"""Mixtures of experts: computed as transformers computes them, and each token by itself."""

import copy
from functools import cache

import measures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import batch, excess, hybrid, positions, scores, seeded
from mixtures import CASES, EXPERTS, FAMILIES, made
from test_against_transformers import close, step
from test_exactness import DTYPES, assert_exact, same_bits

import accel
from accel.errors import UnsupportedCapability

pytestmark = [
    pytest.mark.usefixtures("_one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# -- what transformers computes ----------------------------------------------------------------


def assert_as_near(model, **asked):
    """All but the loss itself, a mean of few numbers that are compared."""
    placed = {"position_ids": positions(batch()[1]), **asked}
    exact = step(measures.widened(model), measures.Widened(), **placed)
    theirs = step(copy.deepcopy(model), **placed)
    ours = step(hybrid(model), skip_logits=False, **asked)
    del exact["loss"]
    found = {
        # The RMS of 16 numbers, as in the norms of heads, is itself a matter of luck.
        name: excess(ours[name], theirs[name], exact[name], 4.0 if want.numel() < 32 else 2.0)
        for name, want in exact.items()
    }
    assert {name: e for name, e in found.items() if not e <= 0} == {}


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_is_as_near_to_float64_as_transformers_own(case):
    assert_as_near(made(case))


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "qwen3_moe normalized"])
def test_a_training_step_in_16_bits_is_as_near(case):
    """With every expert chosen: a choice is not continuous, and roundings of 16 bits change it."""
    model = made(case, num_experts_per_tok=4, num_local_experts=4)
    assert_as_near(model.bfloat16())


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case):
    ids, mask = seeded((3, 12)), torch.ones(3, 12, dtype=torch.int64)
    mask[0, :5], mask[1, :11] = 0, 0
    asked = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    model = made(case)
    want = model.generate(ids, **asked)
    assert torch.equal(hybrid(model).generate(ids, **asked), want)


def test_jitter_is_what_transformers_draws_and_acts_in_a_training_step_only():
    model = made("mixtral", router_jitter_noise=0.3)
    ours, ids = hybrid(model), seeded((2, 9))
    assert "router jitter" in str(accel.plan(model))
    still, answers = scores(ours), measures.rollout(ours)
    drawn = []
    for each in (model.train(), ours.train()):
        torch.manual_seed(3)
        drawn.append(each(ids).logits)
    assert close(drawn[1], drawn[0])
    assert not close(ours.eval()(ids).logits, drawn[0])
    ours.train()
    assert torch.equal(scores(ours), still)
    assert torch.equal(measures.rollout(ours).logprobs, answers.logprobs)


# -- the routers' loss -------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe dense at the end"])
def test_a_training_step_with_the_routers_loss_is_as_near(case):
    assert_as_near(made(case, router_aux_loss_coef=1.0), output_router_logits=True)


def test_outputs_have_the_routers_logits_where_asked_or_configured(family):
    for configured, asked in ((True, None), (False, True), (True, False), (False, None)):
        model = made(family, output_router_logits=configured)
        ids, given = seeded((2, 9)), {"output_router_logits": asked, "use_cache": False}
        theirs, ours = (m(ids, labels=ids, **given) for m in (model, hybrid(model)))
        assert list(ours) == list(theirs)
        assert ("router_logits" in ours) is (configured if asked is None else asked)
        if ours.router_logits is not None:
            assert close(ours.loss, theirs.loss)
            assert close(ours.aux_loss, theirs.aux_loss)
            assert all(close(*both) for both in zip(ours.router_logits, theirs.router_logits))


def test_the_routers_loss_has_the_same_gradients_with_checkpointing(family):
    model = hybrid(made(family)).train()
    plain = step(model, skip_logits=False, output_router_logits=True)
    model.gradient_checkpointing_enable()
    again = step(model, skip_logits=False, output_router_logits=True)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(UnsupportedCapability, match=r"output_router_logits.*use_reentrant"):
        step(model, output_router_logits=True)


def test_a_model_without_routers_has_no_logits_of_theirs(llama):
    with pytest.raises(UnsupportedCapability, match="output_router_logits"):
        hybrid(llama())(seeded((1, 4)), output_router_logits=True)


# -- each token by itself ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe dense at the end"])
def test_a_token_is_worth_the_same_wherever_it_is_looked_at(case, dtype):
    assert_exact(accel.HybridEngine(made(case).to(DTYPES[dtype])), 6)


@cache
def block(dtype="float32", **config):
    """Router and experts of the first layer."""
    return hybrid(made("qwen3_moe", **config).to(DTYPES[dtype])).model.layers[0].mlp


@given(st.integers(0, 300), st.sampled_from(list(DTYPES)), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_row_has_its_value_in_any_company(rows, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = block(dtype)
    x = torch.randn(rows, 64, generator=generator).to(DTYPES[dtype])

    def values(x):
        _, weights, chosen = layer.gate(x)
        return layer.experts(x, chosen, weights).float()

    with torch.no_grad():
        together = values(x)
        mixed = torch.randperm(rows, generator=generator)
        assert same_bits(values(x[mixed]), together[mixed])
        for row in mixed[:3].tolist():
            assert same_bits(values(x[row : row + 1])[0], together[row])


@given(st.lists(st.integers(0, 2), min_size=8, max_size=8), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_of_equal_experts_the_lowest_are_chosen(which, normalized):
    """A router of few different rows, against the definition."""
    gate, rows = copy.deepcopy(block(norm_topk_prob=normalized).gate), torch.randn(3, 64)
    with torch.no_grad():
        gate.weight.copy_(rows[which])
        logits, weights, chosen = gate(torch.randn(20, 64))
    for row, score, own in zip(chosen.tolist(), logits.tolist(), weights):
        assert row == sorted(sorted(range(8), key=lambda e: (-score[e], e))[:3])
        among = [score[e] for e in row] if normalized else score
        wanted = [torch.tensor(among).sub(score[e]).exp().sum() ** -1 for e in row]
        assert close(own, torch.stack(wanted))


def test_a_sum_of_experts_is_rounded_once():
    """Of numbers before ``down`` that 16 bits hold, so that nothing else is rounded."""
    layer = copy.deepcopy(block("bfloat16", hidden_act="relu"))
    x = torch.zeros(50, 64, dtype=torch.bfloat16)
    x[:, :4] = seeded((50, 4), high=3) - 1
    with torch.no_grad():
        w = layer.experts.gate_up_proj
        w.copy_(seeded(w.shape, high=3) - 1)
        _, weights, chosen = layer.gate(x)
        found = layer.experts(x, chosen, weights).double()
        gate, up = torch.einsum("th,eih->tei", x.double(), w.double()).chunk(2, dim=-1)
        inner, down = gate.relu() * up, layer.experts.down_proj.double()
        terms = torch.einsum("tei,ehi->tehi", inner, down)
        mine = weights.new_zeros(50, 8).scatter(1, chosen, weights).double()
        exact = torch.einsum("tehi,te->th", terms, mine)
        summed = torch.einsum("tehi,te->th", terms.abs(), mine)
    additions = terms.shape[-1] + chosen.shape[1]
    allowed = torch.finfo(x.dtype).eps / 2 * exact.abs() + additions * 2**-24 * summed
    assert ((found - exact).abs() <= allowed).all()


def test_padding_reaches_no_expert(family):
    model = hybrid(made(family))
    ids, mask = batch()
    seen = []
    model.get_submodule(EXPERTS).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embedded = model.model.embed_tokens(ids).detach()
    want = model(inputs_embeds=embedded, attention_mask=mask).logits
    embedded[mask == 0] = float("nan")
    found = model(inputs_embeds=embedded, attention_mask=mask).logits
    assert torch.equal(found[mask == 1], want[mask == 1])
    assert [len(rows) for rows in seen] == [int(mask.sum())] * 2
