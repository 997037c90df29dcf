"""DeepSpeedHybridEngine: LoRA fused and not, the cache taken again, latencies."""

import copy

import adapters
import models
import pytest
import torch
from deepspeed_engines import ASKED, engine_of, trained
from measures import batch

import accel
from accel.errors import CapacityError, UnsupportedCapability

pytestmark = pytest.mark.usefixtures("_one_thread")
VARYING = accel.HybridEngineConfig(exact=False)


# -- LoRA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [adapters.with_peft, adapters.with_chat_lora])
def test_lora_is_fused_for_rollouts_alone_and_made_anew_after_a_step(kind):
    engine = engine_of(kind(models.llama()).to(torch.bfloat16), config=VARYING).train()
    frozen = [p for p in engine.model.parameters() if not p.requires_grad]
    base = [parameter.clone() for parameter in frozen]
    plain, scored = engine.generate(*batch(), **ASKED), engine.logprobs(*batch())
    engine.fuse_lora_weight()
    engine.fuse_lora_weight()
    assert engine.is_lora_fused
    fused = engine.generate(*batch(), **ASKED)
    assert torch.equal(engine.generate(*batch(), **ASKED).logprobs, fused.logprobs)
    assert not torch.equal(plain.logprobs, fused.logprobs), "one rounding more"
    assert torch.equal(engine.logprobs(*batch()), scored)
    for _ in range(3):
        trained(engine)
    again = engine.generate(*batch(), **ASKED)
    other = accel.HybridEngine(
        copy.deepcopy(engine.model), config={"exact": False, "fuse_lora": True}
    )
    assert torch.equal(other.generate(*batch(), **ASKED).logprobs, again.logprobs)
    assert not torch.equal(again.logprobs, fused.logprobs)
    for unfuse in (engine.unfuse_lora_weight, engine.unfuse_lora_weight_non_pinned):
        unfuse()
        assert not engine.is_lora_fused
    assert base
    assert all(map(torch.equal, base, frozen))


def test_an_exact_engine_refuses_to_fuse_by_name():
    engine = engine_of(adapters.with_chat_lora(models.llama()))
    with pytest.raises(UnsupportedCapability, match="fuse_lora_weight: an exact engine"):
        engine.fuse_lora_weight()
    assert not engine.is_lora_fused


# -- the cache ---------------------------------------------------------------------------------


def test_the_cache_is_taken_again_as_large_as_it_was():
    engine = engine_of(
        models.llama(), config=accel.HybridEngineConfig(release_inference_cache=True)
    )
    cache = engine.plan.model.generate.cache
    engine.retake_inference_cache()
    assert cache.bytes == 0, "there was no rollout"
    engine.generate(*batch(), **ASKED)
    assert cache.bytes == 0
    engine.retake_inference_cache()
    taken, storage = cache.bytes, cache._keys[0].data_ptr()
    assert taken > 0
    seen = []
    engine.generate(*batch(), **ASKED, abort=lambda: seen.append(cache._keys[0].data_ptr()))
    assert set(seen) == {storage}, "the rollout used it"


def test_memory_that_is_short_is_asked_for_once_more(monkeypatch):
    engine = engine_of(models.llama())
    want = engine.generate(*batch(), **ASKED).logprobs
    cache = engine.plan.model.generate.cache
    retake, failures = cache.retake, [RuntimeError("out of memory")]

    def short():
        if failures:
            raise failures.pop()
        retake()

    monkeypatch.setattr(cache, "retake", short)
    engine.retake_inference_cache()
    assert cache.bytes > 0
    failures += [RuntimeError("out of memory"), RuntimeError("out of memory")]
    with pytest.raises(CapacityError, match=r"cannot be had again: out of memory.*kv_cache_bytes"):
        engine.retake_inference_cache()
    assert cache.bytes == 0
    assert torch.equal(engine.generate(*batch(), **ASKED).logprobs, want)


# -- iterations --------------------------------------------------------------------------------


def test_latencies_are_those_of_an_iteration_between_two_evals():
    engine = engine_of(models.llama())
    assert engine.latency() == {}
    assert engine.eval() is engine
    assert engine.latency() == {}
    before = engine.stats()
    engine.generate(*batch(), **ASKED)
    engine.generate(*batch(), **ASKED, num_return_sequences=2)
    assert engine.train() is engine
    trained(engine)
    assert engine.latency() == {}, "it has not ended"
    engine.eval()
    found, stats = engine.latency(), engine.stats()
    assert before == {}
    assert found["generate"] == stats["generate"]["seconds"]
    parts = [stats[name]["seconds"] for name in ("forward", "backward", "step")]
    assert found["training"] == pytest.approx(sum(parts))
    assert found["gather"] == 0
    assert found["others"] > 0
    assert found["e2e"] == pytest.approx(found["generate"] + found["training"] + found["others"])
    assert found["samples"] == 3 + 6
    assert found["samples_per_second"] == 9 / found["e2e"]
    engine.generate(*batch(), **ASKED)
    engine.train(False)
    assert engine.latency() == found, "train(False) ends nothing"
    engine.eval()
    second = engine.latency()
    assert second["training"] == 0
    assert second["average_samples_per_second"] == pytest.approx(
        12 / (found["e2e"] + second["e2e"])
    )
    engine.eval()
    assert "samples" not in engine.latency(), "nothing was generated"


def test_what_only_transformers_serves_is_handed_to_it_where_permitted():
    engine = engine_of(models.llama())
    ids = batch()[0]
    with pytest.raises(UnsupportedCapability, match="num_beams"):
        engine.generate(ids, num_beams=2, max_new_tokens=3)
    with pytest.warns(accel.errors.FallbackWarning, match="num_beams"):
        made = engine.generate(
            ids, num_beams=2, max_new_tokens=3, fallback="transformers", pad_token_id=0
        )
    assert made.shape == (3, 15)
    asked = {name: value for name, value in ASKED.items() if name != "seed"}
    assert engine.generate(ids, **asked, fallback="transformers").logprobs.shape == (3, 5)
