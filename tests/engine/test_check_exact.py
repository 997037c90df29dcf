"""check_exact: the engine scores what it has made once more, and says where a bit differs."""

import models
import pytest
import snapshots
import torch
from measures import batch

import accel
import accel_cpu
from accel import testing
from accel.contracts import CONTRACTS
from accel.errors import ConfigError, ExactnessError

CHECKED = accel.HybridEngineConfig(check_exact=True)
GREEDY = {"max_new_tokens": 6}
SAMPLED = {**GREEDY, "do_sample": True, "top_k": 0, "num_return_sequences": 2, "seed": 3}


@pytest.fixture
def scorings(monkeypatch):
    """How many rows each forward that scored had."""
    from accel.engine.calls import Scoring

    seen, result = [], Scoring.result
    monkeypatch.setattr(
        Scoring, "result", lambda call, *given: seen.append(len(call.ids)) or result(call, *given)
    )
    return seen


def right(ids, mask):
    """The same prompts, padded on the other side."""
    return ids.flip(1), mask.flip(1)


@pytest.mark.parametrize("asked", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_what_is_exact_passes_and_training_does_not_notice(model, asked, scorings):
    plain = accel.HybridEngine(model).generate(*batch(), return_logprobs=True, **asked)
    engine = accel.HybridEngine(model.train(), torch.optim.AdamW(model.parameters()), CHECKED)
    engine.backward(engine(batch()[0], labels=batch()[0]).loss)
    before = snapshots.training_state(engine)
    for given in (batch(), right(*batch())):
        made = engine.generate(*given, **asked)
        end = int(made[0, -1])
        engine.generate(*given, eos_token_id=end, pad_token_id=0, **asked)
    assert torch.equal(engine.generate(*batch(), **asked), plain.sequences)
    assert scorings == [len(plain.sequences)] * 5
    assert snapshots.changed(before, snapshots.training_state(engine)) == []


def test_waves_micro_batches_and_embeddings_pass(llama, scorings):
    model = llama()
    room = 2 * 64 * 2 * 2 * 2 * 16 * 4  # two rows of 64 slots
    config = accel.HybridEngineConfig(check_exact=True, kv_cache_bytes=room, micro_batch_size=3)
    engine = accel.HybridEngine(model, config=config)
    ids, mask = batch()
    engine.generate(ids, mask, **SAMPLED)
    rows = 2 * len(ids)
    assert scorings == [3] * (rows // 3) + [rows % 3] * (rows % 3 > 0)
    embeds = model.get_input_embeddings()(ids).detach()
    engine.generate(attention_mask=mask, inputs_embeds=embeds, **SAMPLED)
    engine.generate(ids, mask, inputs_embeds=embeds, **GREEDY)
    engine.generate(ids, mask, abort=lambda: True, **GREEDY)


def test_an_adapter_is_scored_as_it_was_sampled():
    engine = accel.HybridEngine(models.with_lora(models.llama()), config=CHECKED)
    for adapter in ("default", None):
        engine.generate(*batch(), adapter=adapter, **GREEDY)


def test_a_model_in_other_hands_is_checked_too(llama, scorings):
    model = llama()
    accel.hybridize(model, CHECKED)
    model.generate(*batch(), **GREEDY)
    assert len(scorings) == 1


def dependent(op):
    """A backend whose kernel says its rows stand alone, and looks how many there are."""

    def kernel(x, *given):
        y = CONTRACTS[op].reference(x, *given)
        return y if x.numel() > 8 * x.shape[-1] else y * (1 + 2**-18)

    builder = testing.fake_builder({op: kernel}, family="TransformerBuilder", id="norms.dependent")
    return testing.fake_backend("norms", builders=[builder])


@pytest.mark.parametrize(("name", "op"), [("llama", "rms_norm"), ("gpt2", "layer_norm")])
def test_a_kernel_whose_rows_depend_on_the_batch_is_found(name, op):
    with testing.installed(accel_cpu.plugin, dependent(op)):
        ids, mask = batch()
        engine = accel.HybridEngine(models.small(name))
        roll = engine.generate(ids, mask, return_logprobs=True, **GREEDY)
        scored = engine.logprobs(roll.sequences, roll.attention_mask)[:, -6:]
        row, column = (scored != roll.logprobs).nonzero()[0].tolist()
        one, other = roll.logprobs[row, column].item(), scored[row, column].item()
        checked = accel.HybridEngine(engine.model, config=CHECKED)
        with pytest.raises(ExactnessError) as raised:
            checked.generate(ids, mask, **GREEDY)
    message = str(raised.value)
    token = int(roll.sequences[row, ids.shape[1] + column])
    assert f"row {row}, new token {column} (id {token})" in message
    assert f"{one!r} ({one.hex()}), and is {other!r} ({other.hex()})" in message
    differ = int((scored != roll.logprobs).sum())
    assert f"of {roll.logprobs.numel()} values {differ} differ" in message
    assert f"{op}: norms.dependent" in message


def test_it_is_for_exact_engines_and_off_unless_asked_for(llama, scorings):
    with pytest.raises(ConfigError, match=r"check_exact=True .* exact=False gives up"):
        accel.HybridEngineConfig(check_exact=True, exact=False)
    with pytest.raises(ConfigError, match="check_exact must be True or False, not 1"):
        accel.HybridEngineConfig(check_exact=1)
    accel.HybridEngine(llama()).generate(*batch(), **GREEDY)
    assert scorings == []
