"""Rollouts by quantised copies of experts' weights, of each by its own."""

import copy

import mixtures
import pytest
import torch
from agreement import assert_agree
from test_exactness import DTYPES, same_bits
from test_quantized_rollouts import (
    KINDS,
    SAMPLED,
    engine_of,
    rolled,
    rounded,
    scored,
    wide,
)

from accel.contracts.quantized_linear import dequantize, quantize
from accel.errors import UnsupportedModelError

pytestmark = pytest.mark.usefixtures("_one_thread")
STACKS = ("gate_up_proj", "down_proj")


def with_rounded_experts(model, kind):
    """In float64, experts and projections as the copies have them; routers as they are."""
    made = rounded(model, kind)
    for path, module in made.named_modules():
        for name in STACKS:
            if not isinstance(getattr(module, name, None), torch.nn.Parameter):
                continue
            stack = getattr(model.get_submodule(path), name).data
            group = next(g for g in (64, 32, 16) if stack.shape[2] % g == 0)
            bits = {"int8": 8, "int4": 4}[kind]
            held = [
                dequantize(*quantize(one, bits, group if bits == 4 else None), bits)
                for one in stack
            ]
            getattr(module, name).data = torch.stack(held).double()
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "qwen3_moe dense at the end"])
def test_a_rollout_is_that_of_a_model_whose_experts_are_rounded(case, kind):
    model = mixtures.made(case)
    oracle, engine = wide(with_rounded_experts(model, kind)), engine_of(model, kind)
    made = rolled(engine)
    assert torch.equal(made.sequences, rolled(oracle).sequences)
    assert_agree(made.logprobs, scored(oracle, made, weights="training").float())
    unrounded = wide(rounded(model, kind))
    with pytest.raises(AssertionError):
        assert_agree(made.logprobs, scored(unrounded, made, weights="training").float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", mixtures.CASES)
def test_scoring_by_the_rollouts_weights_gives_its_values(case, kind, dtype):
    engine = engine_of(mixtures.made(case).to(DTYPES[dtype]), kind)
    for asked in ({}, SAMPLED):
        made = rolled(engine, **asked)
        assert made.logprobs[made.response_mask.bool()].isfinite().all()
        for rows in (None, 1):
            assert same_bits(scored(engine, made, micro_batch_size=rows), made.logprobs)
    found = engine.rollout_gap(made)
    assert found["tokens"] == made.response_mask.sum()
    assert found["max"] > found["mean"] > 0


def test_a_plan_counts_the_experts_copies():
    engine = engine_of(mixtures.made("qwen3_moe dense at the end"), "int4")
    with engine.generating():
        rolled(engine)
        held = engine.plan.model.generate.quantized.bytes
    assert f"take {held / 2**20:.3g} MiB" in str(engine.plan)


def test_experts_of_which_one_chose_nothing_and_of_which_one_has_all():
    model = mixtures.made("mixtral of one")
    engine = engine_of(model)
    layer = model.model.layers[0].mlp
    with torch.no_grad():
        layer.gate.weight.zero_()  # of equal logits the first expert's count
    made = rolled(engine)
    assert same_bits(scored(engine, made), made.logprobs)


def test_training_goes_by_the_parameters():
    model = mixtures.made("mixtral")
    want = engine_of(copy.deepcopy(model), None)
    engine = engine_of(model)
    rolled(engine)
    ids = torch.arange(8)[None]
    for each in (engine, want):
        each.backward(each(ids, labels=ids).loss)
    grads = [dict(each.model.named_parameters()) for each in (engine, want)]
    for name in grads[0]:
        assert torch.equal(grads[0][name].grad, grads[1][name].grad)


def test_an_odd_number_of_inputs_is_refused_of_4_bits():
    model = mixtures.made("mixtral", intermediate_size=47)
    with pytest.raises(UnsupportedModelError, match=r"even number.*MixtralExperts with 47.*int8"):
        engine_of(model, "int4")
    engine = engine_of(model)
    assert same_bits(scored(engine, made := rolled(engine)), made.logprobs)
