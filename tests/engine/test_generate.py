"""generate's arguments: those of transformers mean what they mean there, or are refused by name."""

import copy

import models
import pytest
import snapshots
import torch
from measures import seeded
from transformers import GenerationConfig, WatermarkingConfig

import accel
import accel_cpu
from accel import testing
from accel.errors import CapacityError, FallbackWarning, OpArgumentError, UnsupportedCapability

IDS = seeded((3, 6))
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0


@pytest.fixture(params=models.MAKERS)
def theirs(request):
    """A model that stays transformers'."""
    return models.MAKERS[request.param](initializer_range=0.15)


@pytest.fixture
def engine(theirs):
    return accel.HybridEngine(copy.deepcopy(theirs))


@pytest.fixture
def ends(theirs):
    """Tokens at which answers would end, each after a number of steps of its own."""
    answers = theirs.generate(IDS, attention_mask=MASK, max_new_tokens=8, pad_token_id=0)[:, 6:]
    return [answers[0, 1].item(), answers[1, 4].item()]


def both(theirs, engine, **asked):
    """What each generates from the same arguments."""
    want = theirs.generate(IDS, attention_mask=MASK, **asked)
    return engine.generate(IDS, MASK, **asked), want


LENGTHS = {
    "max_new_tokens": {"max_new_tokens": 7},
    "max_length": {"max_length": 15},
    "both": {"max_new_tokens": 4, "max_length": 15},
    "neither": {},
}


@pytest.mark.parametrize("asked", LENGTHS.values(), ids=LENGTHS)
def test_the_length_is_as_in_transformers(theirs, engine, asked):
    found, want = both(theirs, engine, pad_token_id=0, **asked)
    assert torch.equal(found, want)
    config = GenerationConfig(pad_token_id=0, **asked)
    assert torch.equal(engine.generate(IDS, MASK, config), want)


@pytest.mark.parametrize("asked", [{"pad_token_id": 0}, {"pad_token_id": 96}, {}], ids=str)
def test_an_answer_ends_at_any_of_its_ends_as_in_transformers(theirs, engine, ends, asked):
    for eos in (ends[0], ends):
        found, want = both(theirs, engine, max_new_tokens=12, eos_token_id=eos, **asked)
        assert torch.equal(found, want)


def test_what_stands_behind_an_end_is_masked(engine, ends):
    asked = {"max_new_tokens": 12, "eos_token_id": ends, "pad_token_id": 0}
    made = engine.generate(IDS, MASK, return_logprobs=True, **asked)
    answers, counts = made.sequences[:, 6:], made.attention_mask[:, 6:]
    for row, counted in zip(answers, counts.bool()):
        ended = torch.isin(row, torch.tensor(ends)).nonzero().flatten()
        length = ended[0] + 1 if len(ended) else len(row)
        assert counted.tolist() == [True] * length + [False] * (len(row) - length)
        assert (row[length:] == 0).all()
    assert torch.equal(made.attention_mask[:, :6], MASK)
    assert (made.logprobs[counts == 0] == 0).all()
    assert (made.processed_logprobs[counts == 0] == 0).all()
    assert (made.logprobs[counts == 1] < 0).all()


def test_a_configuration_is_taken_as_second_argument_and_by_name(engine):
    config = GenerationConfig(max_new_tokens=5)
    want = engine.generate(IDS, max_new_tokens=5)
    assert torch.equal(engine.generate(IDS, config), want)
    assert torch.equal(engine.generate(IDS, None, config), want)
    assert torch.equal(engine.generate(IDS, generation_config=config), want)
    assert torch.equal(engine.generate(inputs=IDS, generation_config=config), want)
    assert torch.equal(engine.model.generate(inputs=IDS, generation_config=config), want)
    assert engine.generate(IDS, config, max_new_tokens=3).shape == (3, 9)


def test_the_models_own_configuration_holds_where_nothing_else_is_said(theirs, engine, ends):
    own = {"max_length": 15, "eos_token_id": ends, "pad_token_id": 0}
    for model in (theirs, engine.model):
        model.generation_config.update(**own)
    found, want = both(theirs, engine)
    assert torch.equal(found, want)
    engine.model.generation_config.update(do_sample=True, top_k=1)
    assert torch.equal(engine.generate(IDS, MASK), want)


def test_padding_is_found_where_no_mask_is_given(theirs, engine):
    ids = IDS.where(MASK.bool(), 96)
    ids[:, -1] = 5
    for asked in ({"pad_token_id": 96}, {"pad_token_id": 96, "eos_token_id": 96}):
        found = engine.generate(ids, max_new_tokens=5, **asked)
        assert torch.equal(found, theirs.generate(ids, max_new_tokens=5, **asked))


def test_the_object_has_what_was_asked_for(theirs, engine):
    asked = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    found, want = both(theirs, engine, pad_token_id=0, **asked)
    assert torch.equal(found.sequences, want.sequences)
    assert found["sequences"] is found.sequences
    for ours, other in zip(found.logits, want.logits, strict=True):
        assert ours.dtype is torch.float32
        # fp32 by two correct ways: 64 roundoffs of the largest, some ten operations deep each.
        assert (ours - other).abs().max() <= 64 * 2**-24 * other.abs().max()
    assert engine.generate(IDS, return_dict_in_generate=True, max_new_tokens=1).logits is None
    assert isinstance(engine.generate(IDS, max_new_tokens=1), torch.Tensor)


def test_several_answers_to_a_prompt_lie_together(engine):
    asked = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5, "seed": 0}
    made = engine.generate(IDS, MASK, return_logprobs=True, **asked)
    assert torch.equal(made.sequences[:, :6], IDS.repeat_interleave(3, 0))
    assert torch.equal(made.attention_mask[:, :6], MASK.repeat_interleave(3, 0))
    assert len(made.sequences.unique(dim=0)) == 9


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32], ids=str)
def test_a_mask_may_be_of_any_dtype(engine, dtype):
    want = engine.generate(IDS, MASK, max_new_tokens=3)
    assert torch.equal(engine.generate(IDS, MASK.to(dtype), max_new_tokens=3), want)


# -- refusals ----------------------------------------------------------------------------------

UNSERVED = {
    "num_beams": 2, "num_beam_groups": 2, "penalty_alpha": 0.5, "dola_layers": "high",
    "guidance_scale": 2.0, "prompt_lookup_num_tokens": 2, "token_healing": True,
    "encoder_repetition_penalty": 1.2, "encoder_no_repeat_ngram_size": 2,
    "watermarking_config": WatermarkingConfig(), "cache_implementation": "static",
    "prefill_chunk_size": 2, "output_attentions": True, "output_hidden_states": True,
    "assistant_model": print, "custom_generate": print, "synced_gpus": True,
    "negative_prompt_ids": IDS, "past_key_values": (), "position_ids": IDS, "max_new_token": 3,
}  # fmt: skip
IN_A_CONFIGURATION = [name for name in UNSERVED if name in GenerationConfig().to_dict()]


@pytest.mark.parametrize("name", UNSERVED)
def test_what_is_not_served_is_refused_by_name(llama, name):
    engine = accel.HybridEngine(llama())
    with pytest.raises(UnsupportedCapability, match=rf"\b{name}\b"):
        engine.generate(IDS, **{name: UNSERVED[name]})
    assert engine.model.generate.cache.bytes == 0


@pytest.mark.parametrize("name", IN_A_CONFIGURATION)
def test_nor_is_it_served_from_a_configuration(llama, name):
    engine = accel.HybridEngine(llama())
    with pytest.raises(UnsupportedCapability, match=rf"\b{name}\b"):
        engine.generate(IDS, GenerationConfig(**{name: UNSERVED[name]}))
    engine.model.generation_config.update(**{name: UNSERVED[name]})
    with pytest.raises(UnsupportedCapability, match=rf"\b{name}\b"):
        engine.generate(IDS)


def test_all_that_is_not_served_is_named_at_once(llama):
    engine = accel.HybridEngine(llama())
    with pytest.raises(UnsupportedCapability, match="num_beams, penalty_alpha, synced_gpus"):
        engine.generate(IDS, num_beams=2, synced_gpus=True, penalty_alpha=1.2)


def test_what_is_not_served_is_handed_on_if_the_caller_says_so(theirs, engine):
    beams = {"num_beams": 3, "max_new_tokens": 5, "pad_token_id": 0}
    asked = {**beams, "fallback": "transformers"}
    want, before = (
        theirs.generate(IDS, attention_mask=MASK, **beams),
        snapshots.modules(engine.model),
    )
    with testing.installed(accel_cpu.plugin):
        with pytest.warns(FallbackWarning, match='serve num_beams .*"transformers"'):
            found = engine.generate(IDS, MASK, **asked)
        again = engine.generate(IDS, MASK, **asked)  # without a word: one would be an error
    assert torch.equal(found, want)
    assert torch.equal(again, want)
    assert snapshots.modules(engine.model) == before


def test_what_is_served_is_not_handed_on(engine):
    want = engine.generate(IDS, MASK, max_new_tokens=5, return_logprobs=True)
    found = engine.generate(
        IDS, MASK, max_new_tokens=5, return_logprobs=True, fallback="transformers"
    )
    assert torch.equal(found.logprobs, want.logprobs)


@pytest.mark.parametrize("ours", [{"seed": 0}, {"return_logprobs": True}, {"adapter": None}])
def test_what_only_the_engine_has_is_not_handed_on(engine, ours):
    with pytest.raises(UnsupportedCapability, match=rf"num_beams.* take {next(iter(ours))}"):
        engine.generate(IDS, MASK, fallback="transformers", num_beams=2, **ours)
    with pytest.raises(OpArgumentError, match="'transformers' or None; found 'vllm'"):
        engine.generate(IDS, fallback="vllm", **ours)


def test_what_is_handed_on_may_fail_and_leaves_the_engine_in_place(engine):
    def stop(ids, scores, **kwargs):
        raise KeyboardInterrupt

    before = snapshots.modules(engine.model)
    asked = {"num_beams": 2, "stopping_criteria": [stop], "max_new_tokens": 3}
    own_registry, warns = testing.installed(accel_cpu.plugin), pytest.warns(FallbackWarning)
    with own_registry, warns, pytest.raises(KeyboardInterrupt):
        engine.generate(IDS, MASK, fallback="transformers", **asked)
    assert snapshots.modules(engine.model) == before


def test_what_asks_for_nothing_is_taken(llama):
    nothing = {
        "num_beams": 1, "repetition_penalty": 1.0, "min_p": None, "streamer": None,
        "synced_gpus": False, "output_scores": False, "use_cache": True, "early_stopping": False,
        "logits_processor": [], "stopping_criteria": None, "disable_compile": True, "abort": None,
    }  # fmt: skip
    assert accel.HybridEngine(llama()).generate(IDS, max_new_tokens=1, **nothing).shape == (3, 7)


NOTHING = torch.zeros_like(MASK[0])
BAD = {
    "floats": ((IDS.float(),), {}, OpArgumentError, r"whole numbers.*\[3, 6\]"),
    "a row": ((IDS[0],), {}, OpArgumentError, r"\[batch, length\]; found \[6\]"),
    "a list": (([[1, 2]],), {}, OpArgumentError, "found list"),
    "none": ((None,), {}, OpArgumentError, "found NoneType"),
    "no tokens": ((IDS[:, :0],), {}, OpArgumentError, "needs a token to begin with"),
    "no prompts": ((IDS[:0],), {}, OpArgumentError, "needs a token to begin with"),
    "short mask": ((IDS, MASK[:, 1:]), {}, OpArgumentError, r"\[3, 6\].*found \[3, 5\]"),
    "4-D mask": ((IDS, MASK[:, None, None]), {}, OpArgumentError, "attention_mask must be"),
    "twos": ((IDS, 2 * MASK), {}, OpArgumentError, "ones and zeros only"),
    "an empty row": (
        (IDS, torch.stack([MASK[0], NOTHING, MASK[2]])), {}, OpArgumentError, r"empty: \[1\]"
    ),
    "strange token": ((IDS + 97,), {}, IndexError, "V = 97"),
    "too long": ((IDS,), {"max_new_tokens": 251}, CapacityError, "6 .* 251 .* 257.*has 256"),
    "long": ((seeded((1, 256)),), {"max_new_tokens": 1}, CapacityError, "256 t.* 257.*has 256"),
    "too short": ((IDS,), {"max_length": 6}, OpArgumentError, "nothing to generate: 0 new"),
    "none asked": ((IDS,), {"max_new_tokens": 0}, ValueError, "max_new_tokens"),
    "cold": ((IDS,), {"do_sample": True, "temperature": 0.0}, ValueError, "temperature"),
    "alike": ((IDS,), {"num_return_sequences": 2}, ValueError, "num_return_sequences"),
    "who": ((IDS,), {"do_sample": True, "sample_ids": [1]}, ValueError, "1 sample_ids for 3"),
    "adapter": ((IDS,), {"adapter": "x"}, ValueError, "no LoRA adapter 'x'"),
    "seed": ((IDS,), {"do_sample": True, "seed": 1.5}, TypeError, "float"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "asked", "error", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_and_the_next_rollout_is_unharmed(llama, given, asked, error, says):
    engine = accel.HybridEngine(llama())
    want = engine.generate(IDS, MASK, max_new_tokens=4)
    with pytest.raises(error, match=says):
        engine.generate(*given, **asked)
    assert torch.equal(engine.generate(IDS, MASK, max_new_tokens=4), want)


def test_every_position_of_the_model_can_be_used(llama):
    assert accel.HybridEngine(llama()).generate(IDS, max_new_tokens=250).shape == (3, 256)


def test_padding_takes_no_position(llama):
    ids, mask = seeded((1, 300)), torch.zeros(1, 300, dtype=torch.int64)
    mask[:, -4:] = 1
    engine = accel.HybridEngine(llama())
    made = engine.generate(ids, mask, max_new_tokens=5)
    assert torch.equal(made[:, -5:], engine.generate(ids[:, -4:], max_new_tokens=5)[:, -5:])


def test_a_limit_on_tokens_holds(llama):
    engine = accel.HybridEngine(llama(), config={"max_out_tokens": 12})
    assert engine.generate(IDS, max_new_tokens=6).shape == (3, 12)
    with pytest.raises(CapacityError, match=r"need 13 positions; max_out_tokens permits 12"):
        engine.generate(IDS, max_new_tokens=7)


def test_rollouts_inside_and_outside_inference_mode_are_the_same(model):
    """What is kept between them was made in the mode of the first."""
    engine, ids = accel.HybridEngine(model), seeded((2, 6))
    asked = {"max_new_tokens": 8, "do_sample": True, "seed": 1, "return_logprobs": True}
    with torch.inference_mode():
        inside = engine.generate(ids, **asked)
    outside = engine.generate(ids, **asked)
    with torch.inference_mode():
        again = engine.generate(ids, **asked)
        values = engine.logprobs(again.sequences, again.attention_mask)[:, -8:]
    for made in (outside, again):
        assert torch.equal(made.sequences, inside.sequences)
        assert torch.equal(made.logprobs, inside.logprobs)
    assert torch.equal(values, inside.logprobs)
