"""Rollouts by quantised copies of the weights: what they are, how long they last, and that scoring
by them gives the rollout's values, bit for bit."""

import copy
import weakref

import adapters
import models
import pytest
import snapshots
import torch
from agreement import assert_agree
from measures import batch, seeded

import accel
from accel.contracts.quantized_linear import dequantize, quantize
from accel.engine import call as calls
from accel.engine.modules import quantized
from accel.errors import ConfigError, OpArgumentError, UnsupportedModelError

KINDS = ("int8", "int4")
NEW = 12
# That a row's end, a wave and a replayed step are among it.
SAMPLED = {"do_sample": True, "seed": 3, "top_k": 0, "eos_token_id": [5, 17, 40, 80]}

pytestmark = pytest.mark.usefixtures("_one_thread")


def engine_of(model, kind="int8", optimizer=None, **config):
    config = {"exact": False, "rollout_weights": kind, **config}
    return accel.HybridEngine(model, optimizer, config)


def rolled(engine, **asked):
    return engine.generate(*batch(), max_new_tokens=NEW, return_logprobs=True, **asked)


def scored(engine, made, **asked):
    asked = {"weights": "rollout", **asked}
    found = engine.logprobs(made.sequences, made.attention_mask, **asked)
    return found[:, -made.logprobs.shape[1] :]


def bits_of(path, kind):
    return 4 if kind == "int4" and not path.endswith("lm_head") else 8


def wide(model):
    """An engine of a float64 model."""
    return accel.HybridEngine(model.requires_grad_(False), config={"exact": False})


def rounded(model, kind):
    """A float64 model whose projections hold what the copies stand for; its head is its own."""
    made = copy.deepcopy(model).double()
    made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.clone())
    for path, module in made.named_modules():
        by_columns = type(module).__name__ == "Conv1D"
        if not (by_columns or isinstance(module, torch.nn.Linear)):
            continue
        weight = model.get_submodule(path).weight.data
        weight = weight.t() if by_columns else weight
        bits = bits_of(path, kind)
        columns = weight.shape[1]
        group = (64 if columns % 64 == 0 else 32) if bits == 4 else None
        held = dequantize(*quantize(weight, bits, group), bits)
        module.weight.data = (held.t() if by_columns else held).double().contiguous()
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models.MAKERS)
def test_a_rollout_is_that_of_a_model_whose_weights_are_rounded(name, kind):
    model = models.small(name, initializer_range=0.15)
    oracle, engine = wide(rounded(model, kind)), engine_of(model, kind)
    made = rolled(engine)
    assert torch.equal(made.sequences, rolled(oracle).sequences)
    assert_agree(made.logprobs, scored(oracle, made, weights="training").float())
    with pytest.raises(AssertionError):
        assert_agree(made.logprobs, scored(engine, made, weights="training"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*models.MAKERS, "phi3", "opt", "gpt_neox", "gemma2"])
def test_scoring_by_the_rollouts_weights_gives_its_values(name, kind, dtype):
    model = models.small(name, initializer_range=0.15).to(dtype)
    engine = engine_of(model, kind)
    for asked in ({}, SAMPLED):
        made = rolled(engine, **asked)
        assert made.logprobs[made.response_mask.bool()].isfinite().all()
        assert torch.equal(scored(engine, made), made.logprobs)
        assert torch.equal(scored(engine, made, micro_batch_size=1), made.logprobs)


def test_waves_replay_and_long_scoring_change_no_bit(monkeypatch):
    model = models.llama(initializer_range=0.15)
    want = rolled(engine_of(model, enable_cuda_graph=False), **SAMPLED)
    for config in ({}, {"kv_cache_bytes": 1 << 18}):
        made = rolled(engine_of(copy.deepcopy(model), **config), **SAMPLED)
        assert torch.equal(made.sequences, want.sequences)
        assert torch.equal(made.logprobs, want.logprobs)
    monkeypatch.setattr("accel.engine.modules.parts._LOGITS_AT_ONCE", 3 * models.VOCAB)
    monkeypatch.setattr("accel.engine.modules.quantized._AT_ONCE", 300)
    assert torch.equal(scored(engine_of(model), want), want.logprobs)


def test_scoring_may_have_a_temperature_and_entropies():
    model = models.llama(initializer_range=0.15)
    engine, ids = engine_of(model), seeded((2, 9))
    asked = {"temperature": 0.7, "entropy": True}
    found = engine.logprobs(ids, weights="rollout", **asked)
    want = wide(rounded(model, "int8")).logprobs(ids, **asked)
    assert_agree(list(found), [value.float() for value in want])
    assert not found[0].requires_grad
    assert engine.logprobs(ids).requires_grad


@pytest.fixture
def copies(monkeypatch):
    """A reference to every copy that is made."""
    made, make = [], quantized._quantized

    def watched(weight, bits):
        numbers, scales = make(weight, bits)
        made.append(weakref.ref(numbers))
        return numbers, scales

    monkeypatch.setattr(quantized, "_quantized", watched)
    return made


@pytest.mark.parametrize("name", models.MAKERS)
def test_copies_last_as_long_as_their_rollout_or_the_block_around(name, copies):
    engine = engine_of(models.small(name))
    weights = {"llama": 2 * 7 + 1, "gpt2": 2 * 4 + 1}[name]
    made = rolled(engine)
    assert len(copies) == weights
    scored(engine, made)
    assert len(copies) == 2 * weights
    assert {ref() for ref in copies} == {None}
    with engine.generating():
        inside = rolled(engine)
        assert torch.equal(scored(engine, inside), made.logprobs)
        with engine.generating():
            rolled(engine)
        rolled(engine)
        assert len(copies) == 3 * weights
        held = engine.plan.model.generate.quantized.bytes
        assert f"take {held / 2**20:.3g} MiB" in str(engine.plan)
        assert copy.deepcopy(engine.model).generate.quantized.bytes == 0
    assert {ref() for ref in copies} == {None}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_rollout_that_is_stopped_leaves_nothing_behind(error, copies):
    model = models.llama()
    engine = engine_of(model, optimizer=torch.optim.AdamW(model.parameters()))
    want, before = rolled(engine), snapshots.training_state(engine)
    held = []

    def stop():
        held.append(calls.current().quantized.bytes)
        if len(held) == 3:
            raise error
        return False

    with pytest.raises(error) as kept:
        rolled(engine, abort=stop)
    assert held[-1] > 0, "it was stopped while they were there"
    assert {ref() for ref in copies} == {None}, f"{kept.tb} holds them"
    assert snapshots.changed(before, snapshots.training_state(engine)) == []
    assert torch.equal(rolled(engine).logprobs, want.logprobs)


@pytest.mark.parametrize("name", models.MAKERS)
def test_rolling_out_changes_nothing_of_training_and_sees_what_changed(name):
    model = models.small(name)
    engine = engine_of(model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2))
    ids = seeded((2, 8))
    values = []
    for step in range(3):
        engine.backward(engine(ids, labels=ids).loss)
        if step == 1:
            model.get_submodule("lm_head").weight.data.mul_(1.5)  # moves no version
        before = snapshots.training_state(engine)
        made = rolled(engine)
        assert torch.equal(scored(engine, made), made.logprobs)
        assert snapshots.changed(before, snapshots.training_state(engine)) == []
        fresh = engine_of(copy.deepcopy(model))
        assert torch.equal(rolled(fresh).logprobs, made.logprobs)
        values.append(made.logprobs)
        engine.step()
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make", [adapters.with_peft, adapters.with_chat_lora], ids=["PEFT", "Chat"]
)
def test_adapters_are_added_on_the_fly_to_rounded_weights(make, kind, copies):
    engine = engine_of(make(models.llama(initializer_range=0.15)), kind)
    for asked in ({}, SAMPLED):
        made = rolled(engine, **asked)
        assert torch.equal(scored(engine, made), made.logprobs)
    assert len(copies) == 4 * (2 * 7 + 1), "of weights, and of no adapter"
    without = rolled(engine, adapter=None)
    assert torch.equal(scored(engine, without, adapter=None), without.logprobs)
    plain = rolled(engine_of(models.llama(initializer_range=0.15), kind))
    assert torch.equal(without.logprobs, plain.logprobs)
    assert not torch.equal(scored(engine, without), without.logprobs)


def test_adapters_add_as_much_to_rounded_weights_as_to_others():
    model = adapters.several()
    model.base_model.set_adapter(["default", "second"])
    want, plain = rounded(models.llama(), "int8"), models.llama().double()
    merged = adapters.merged(model.double(), models.llama().double())
    for path, module in want.named_modules():
        if isinstance(module, torch.nn.Linear):
            added = merged.get_submodule(path).weight - plain.get_submodule(path).weight
            module.weight.data += added.data
    made = rolled(engine_of(model.float()))
    assert_agree(made.logprobs, scored(wide(want), made, weights="training").float())


def test_fused_weights_are_what_is_rounded_where_both_are_asked_for():
    model = adapters.with_peft(models.llama())
    want = rolled(engine_of(adapters.merged(model, models.llama())))
    engine = engine_of(model, fuse_lora=True)
    made = rolled(engine)
    assert torch.equal(made.logprobs, want.logprobs)
    assert torch.equal(scored(engine, made), made.logprobs)


def test_a_hook_on_a_part_changes_no_bit_of_scoring():
    model = models.llama()
    engine, seen = engine_of(model), []
    parts = (model.model.layers[0].mlp.up_proj, model.model.layers[1].mlp.act_fn, model.lm_head)
    for part in parts:
        part.register_forward_hook(lambda module, args, found: seen.append(module))
    made = rolled(engine)
    assert set(map(type, seen)) == set(map(type, parts))
    assert torch.equal(scored(engine, made), made.logprobs)


def test_the_gap_to_training_is_measured():
    engine = engine_of(models.llama(initializer_range=0.15), "int4")
    made = rolled(engine, **SAMPLED)
    there = made.response_mask.bool()
    off = (scored(engine, made, weights="training") - made.logprobs)[there].detach().double()
    found = engine.rollout_gap(made)
    assert found["tokens"] == there.sum()
    assert found["max"] == off.abs().max().item() > 0
    assert found["mean"] == off.abs().mean().item()
    assert found["kl"] == (off.expm1() - off).mean().item() > 0
    stats = engine.stats()["rollout_gap"]
    assert stats["difference"] / stats["tokens"] == pytest.approx(found["mean"])
    finer = engine_of(models.llama(initializer_range=0.15))
    assert finer.rollout_gap(rolled(finer))["mean"] < found["mean"]
    exact = accel.HybridEngine(models.llama())
    made = rolled(exact)
    assert exact.rollout_gap(made) == {"tokens": 3 * NEW, "mean": 0, "max": 0, "kl": 0}
    with pytest.raises(OpArgumentError, match=r"must be \[3, 12 or more\].*found \[3, 2\]"):
        made.gap(made.logprobs[:, :2])


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"rollout_weights='int8'.*exact=True refuses it"):
        accel.HybridEngineConfig(rollout_weights="int8")
    with pytest.raises(ConfigError, match=r"must be 'int8' or 'int4', or None.*found 'int2'"):
        accel.HybridEngineConfig(exact=False, rollout_weights="int2")
    odd = models.llama(intermediate_size=97)
    before = snapshots.modules(odd)
    with pytest.raises(UnsupportedModelError, match=r"even number of inputs.*Linear with 97.*int8"):
        engine_of(odd, "int4")
    assert snapshots.changed(before, snapshots.modules(odd)) == []
    engine = engine_of(odd)
    assert "quantized_linear" in engine.plan.served_by
    assert torch.equal(scored(engine, made := rolled(engine)), made.logprobs)
    with pytest.raises(
        UnsupportedModelError, match=r"(?s)shape-invariant.*float64.*leave rollouts"
    ):
        engine_of(models.llama().double())
    with pytest.raises(ValueError, match="'training' or 'rollout'; found 'mine'"):
        engine.logprobs(seeded((1, 3)), weights="mine")
