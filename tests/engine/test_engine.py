"""HybridEngine: log-probabilities, adapters, statistics, the cache, and its settings."""

import copy

import models
import pytest
import torch
from measures import batch, rms, seeded

import accel
import accel_cpu.plugin
from accel import testing
from accel.contracts import CONTRACTS
from accel.errors import CapacityError, ConfigError, IgnoredWarning, UnsupportedCapability

DEEPSPEED = {
    "enabled": True, "max_out_tokens": 512, "inference_tp_size": 1,
    "release_inference_cache": False, "pin_parameters": True, "tp_gather_partition_size": 8,
}  # fmt: skip


@pytest.fixture(params=models.MAKERS)
def engine(request):
    return accel.HybridEngine(models.MAKERS[request.param](initializer_range=0.15))


# -- log-probabilities -------------------------------------------------------------------------


def test_log_probabilities_are_the_models_own_before_any_processor(engine):
    ids, mask = batch()
    asked = {"do_sample": True, "temperature": 0.6, "top_p": 0.7, "top_k": 5, "seed": 1}
    made = engine.generate(ids, mask, max_new_tokens=6, return_logprobs=True, **asked)
    own = engine.logprobs(made.sequences, made.attention_mask)[:, -6:]
    assert torch.equal(made.logprobs, own)
    assert (made.processed_logprobs > made.logprobs).all(), "the rest is likelier without some"


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
def test_processed_ones_are_those_at_the_temperature_of_sampling(engine, temperature):
    ids, mask = batch()
    asked = {"do_sample": True, "temperature": temperature, "top_k": 0, "seed": 1}
    made = engine.generate(ids, mask, max_new_tokens=6, return_logprobs=True, **asked)
    scored = engine.logprobs(made.sequences, made.attention_mask, temperature=temperature)
    assert torch.equal(made.processed_logprobs, scored[:, -6:])
    assert torch.equal(made.processed_logprobs, made.logprobs) is (temperature == 1)


def test_greedy_ones_have_no_other_distribution(engine):
    made = engine.generate(*batch(), max_new_tokens=4, return_logprobs=True)
    assert torch.equal(made.processed_logprobs, made.logprobs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_values_and_entropies_are_right_in_float64(engine, temperature):
    """Of the same fp32 logits, within the budget of the op that makes them."""
    ids = seeded((2, 9))
    logits = engine(ids).logits[:, :-1].double() / temperature
    p = logits.log_softmax(-1)
    want = p.gather(-1, ids[:, 1:, None])[..., 0], -(p.exp() * p).sum(-1)
    allowed = CONTRACTS["logprob"].tolerance[torch.float32]
    for found, exact in zip(engine.logprobs(ids, entropy=True, temperature=temperature), want):
        assert found.dtype is torch.float32
        assert rms(found - exact) <= allowed.rms * rms(exact)
        assert (found - exact).abs().max() <= allowed.peak * rms(exact)


def test_an_entry_is_of_the_token_after_it_and_zero_where_that_is_padding(engine):
    ids, mask = batch()
    found, entropies = engine.logprobs(ids, mask, entropy=True)
    counts = mask[:, 1:].bool() & (mask.cumsum(1)[:, 1:] > 1)
    for values in (found, entropies):
        assert values.shape == (3, 11)
        assert (values[~counts] == 0).all()
        assert (values[counts] != 0).all()
    for row, real in enumerate(mask.bool()):
        alone = engine.logprobs(ids[row][real][None])[0]
        assert torch.equal(found[row][counts[row]], alone)


def test_log_probabilities_have_a_gradient_where_it_is_enabled(engine):
    assert engine.logprobs(*batch()).requires_grad
    with torch.no_grad():
        assert not engine.logprobs(*batch()).requires_grad


def test_one_token_has_no_log_probability_and_no_row_none(engine):
    assert engine.logprobs(seeded((2, 1))).shape == (2, 0)
    assert engine.logprobs(seeded((0, 5))).shape == (0, 4)


def test_labels_of_another_shape_are_refused(engine):
    for labels in (seeded((2, 5)), seeded((2, 7)), seeded((3, 6))):
        with pytest.raises(ValueError, match=r"labels must be \[2, 6\]"):
            engine(seeded((2, 6)), labels=labels)


# -- autocast ----------------------------------------------------------------------------------


def values(engine):
    """Of every way through the model, a training step with its layers' recomputation included."""
    ids, mask = batch()
    made = engine.generate(ids, mask, max_new_tokens=2, return_logprobs=True)
    engine.model.zero_grad()
    engine.backward(engine(ids, mask, labels=ids).loss)
    gradients = [p.grad.clone() for p in engine.model.parameters()]
    return [made.logprobs, engine.logprobs(ids, mask), *gradients]


def test_autocast_is_ignored_which_is_said_once(engine):
    engine.model.activation_checkpointing_enable({"use_reentrant": False})
    engine.train()
    with testing.installed(accel_cpu.plugin):
        want = values(engine)
        with torch.autocast("cpu", torch.bfloat16):
            with pytest.warns(IgnoredWarning, match="autocast is ignored.*the dtype you mean"):
                engine.logprobs(*batch())
            found = values(engine)  # without a word: one would be an error
    assert all(map(torch.equal, found, want))


# -- adapters ----------------------------------------------------------------------------------


def test_an_adapter_is_chosen_by_name_and_left_active_as_it_was(llama):
    base, ids = llama(), seeded((2, 6))
    want = {None: base.generate(ids, max_new_tokens=6, pad_token_id=0)}
    model = models.with_lora(copy.deepcopy(base))
    model.add_adapter("second", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if "second" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval()  # the dropout of a new adapter is not
    for name in ("second", "default"):
        model.set_adapter(name)
        want[name] = model.generate(input_ids=ids, max_new_tokens=6, pad_token_id=0)
    engine = accel.HybridEngine(model)
    for name, tokens in want.items():
        assert torch.equal(engine.generate(ids, max_new_tokens=6, adapter=name), tokens)
    assert len({tuple(tokens.flatten().tolist()) for tokens in want.values()}) == 3
    assert model.active_adapter == "default"
    assert torch.equal(engine.generate(ids, max_new_tokens=6), want["default"])
    reference = accel.HybridEngine(base)
    assert torch.equal(engine.logprobs(ids, adapter=None), reference.logprobs(ids))


@pytest.mark.parametrize("call", ["generate", "logprobs"])
def test_an_adapter_that_is_not_there_is_refused_with_those_that_are(llama, call):
    engine = accel.HybridEngine(models.with_lora(llama()))
    with pytest.raises(ValueError, match=r"no LoRA adapter 'defalt'; did you mean 'default'"):
        getattr(engine, call)(seeded((1, 4)), adapter="defalt")


# -- statistics and the cache ------------------------------------------------------------------


def test_statistics_count_phases_and_tokens(llama):
    model, heard = llama(), []
    optimizer = torch.optim.AdamW(model.parameters())
    config = {"on_stats": lambda phase, seconds: heard.append((phase, seconds))}
    engine = accel.HybridEngine(model, optimizer, config)
    assert engine.stats() == {}
    ids = seeded((2, 6))
    engine.backward(engine(ids, labels=ids).loss)
    engine.step()
    for _ in range(2):
        engine.generate(ids, max_new_tokens=5)
    engine.logprobs(ids)
    found = engine.stats()
    phases = ["forward", "backward", "step", "generate", "generate", "logprobs"]
    assert [phase for phase, _ in heard] == phases
    assert {name: totals["calls"] for name, totals in found.items()} == {
        name: phases.count(name) for name in phases
    }
    for name, totals in found.items():
        assert totals["seconds"] == sum(seconds for phase, seconds in heard if phase == name)
    assert found["generate"]["tokens"] == 20
    assert found["logprobs"]["tokens"] == 12
    rate = found["generate"]["tokens"] / found["generate"]["seconds"]
    assert found["generate"]["tokens_per_second"] == rate
    found["generate"]["calls"] = 99
    assert engine.stats()["generate"]["calls"] == 2, "what was returned is a copy"


def test_padding_is_no_token(engine):
    ids, mask = batch()
    made = engine.generate(ids, mask, max_new_tokens=4, return_logprobs=True)
    engine.logprobs(ids, mask, micro_batch_size=2)
    assert engine.stats()["logprobs"]["tokens"] == mask.sum() < ids.numel()
    # One that ends early, so that padding stands behind it.
    end = made.sequences[0, -4].item()
    short = engine.generate(
        ids, mask, max_new_tokens=4, eos_token_id=end, pad_token_id=0, return_logprobs=True
    )
    answers = short.attention_mask[:, ids.shape[1] :]
    assert engine.stats()["generate"]["tokens"] == 12 + answers.sum() < 24


def test_what_was_aborted_is_not_counted(llama):
    engine = accel.HybridEngine(llama())
    with pytest.raises(CapacityError):
        engine.generate(seeded((1, 4)), max_new_tokens=1000)
    assert engine.stats() == {}


def test_a_step_uses_the_gradients_up(llama):
    model = llama()
    engine = accel.HybridEngine(model, torch.optim.AdamW(model.parameters()))
    before, ids = model.lm_head.weight.clone(), seeded((2, 6))
    loss = engine(ids, labels=ids).loss
    assert engine.backward(loss) is loss
    engine.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(model.lm_head.weight, before)


def test_a_step_without_an_optimizer_is_refused(llama):
    with pytest.raises(RuntimeError, match="without an optimizer"):
        accel.HybridEngine(llama()).step()


def test_the_cache_is_kept_or_given_back_as_configured(llama):
    ids = seeded((2, 6))
    kept = accel.HybridEngine(llama())
    kept.generate(ids, max_new_tokens=2)
    assert kept.model.generate.cache.bytes > 0
    kept.release_cache()
    assert kept.model.generate.cache.bytes == 0
    released = accel.HybridEngine(llama(), config={"release_inference_cache": True})
    released.generate(ids, max_new_tokens=2)
    assert released.model.generate.cache.bytes == 0


def test_generating_gives_the_cache_back_even_after_an_error(llama):
    engine, ids = accel.HybridEngine(llama()), seeded((2, 6))

    def fails():
        with engine.generating() as inside:
            assert inside is engine
            engine.generate(ids, max_new_tokens=2)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert engine.model.generate.cache.bytes == 0
    assert engine.generate(ids, max_new_tokens=2).shape == (2, 8)


# -- settings ----------------------------------------------------------------------------------


def test_deepspeeds_block_is_read(llama):
    config = accel.HybridEngineConfig.from_dict(DEEPSPEED)
    assert {name: getattr(config, name) for name in DEEPSPEED} == DEEPSPEED
    assert accel.HybridEngine(llama(), config=DEEPSPEED).config == config


BAD = [
    ({"max_out_token": 5}, ConfigError, "unknown setting 'max_out_token'; did you mean 'max_out_t"),
    ({"max_out_tokens": 0}, ConfigError, "max_out_tokens must be a positive int or None, not 0"),
    ({"max_out_tokens": "512"}, ConfigError, "max_out_tokens must be"),
    ({"kv_cache_bytes": -1}, ConfigError, "kv_cache_bytes must be"),
    ({"kv_cache_bytes": 1e9}, ConfigError, "kv_cache_bytes must be"),
    ({"shard": True, "enabled": False}, ConfigError, "enabled=False leaves the model"),
    ({"micro_batch_size": True}, ConfigError, "micro_batch_size must be"),
    ({"tp_gather_partition_size": None}, ConfigError, "tp_gather_partition_size must be"),
    ({"inference_tp_size": 0}, ConfigError, "inference_tp_size must be"),
    ({"exact": "false"}, ConfigError, "exact must be True or False, not 'false'"),
    ({"enabled": None}, ConfigError, "enabled must be True or False"),
    ({"inference_tp_sums": True}, ConfigError, "inference_tp_sums=True adds partial products"),
    ({"inference_tp_sums": True, "exact": False}, ConfigError, "inference_tp_size, which is 1"),
    (
        {"inference_tp_size": 2, "exact": False, "rollout_weights": "int8"},
        UnsupportedCapability,
        "inference_tp_size=2 beside rollout_weights='int8'",
    ),
    (
        {"inference_tp_size": 2, "enable_cuda_graph": True},
        UnsupportedCapability,
        "beside enable_cuda_graph=True",
    ),
    ({"enable_cuda_graph": "yes"}, ConfigError, "enable_cuda_graph must be True, False or None"),
]


@pytest.mark.parametrize(("settings", "error", "says"), BAD, ids=str)
def test_a_bad_setting_is_refused_by_name(settings, error, says):
    with pytest.raises(error, match=says):
        accel.HybridEngineConfig.from_dict({**DEEPSPEED, **settings})
