"""What the engine promises is held to, by faults of the engine's own."""

import importlib.util
from dataclasses import MISSING, fields

import conformance_host
import pytest
import torch

from accel import testing
from accel.engine import cache, calls, planning, sequences
from accel.engine.generation import sampling
from accel.engine.modules import lora
from accel_conformance.case import Outcome, execute
from accel_conformance.subject import find
from accel_conformance.suite import engine
from accel_cpu import plugin

NATIVE = "accel_cpu.native"


@pytest.fixture(autouse=True)
def _the_processor(_only_the_host):
    """A backend whose kernels serve the engine."""
    with testing.installed(plugin):
        yield


def case_of(backend, id):
    (case,) = (case for case in engine.cases(find(backend)) if case.id == id)
    return case


def broken(name):
    """Rules that a check finds broken, of gpt2 on the processor."""
    result = execute(case_of("cpu", f"engine/gpt2/float32/{name}"))
    assert result.outcome in (Outcome.PASSED, Outcome.FAILED), result.message()
    return {one.rule for one in result.evidence.broken}


def test_a_right_backend_serves_the_engine():
    cases = [case for case in engine.cases(find("cpu")) if case.group == "engine/gpt2/float32"]
    results = [execute(case) for case in cases]
    assert len(results) == len(engine.CHECKS)
    assert [(r.case.id, r.message()) for r in results if r.outcome is not Outcome.PASSED] == []
    assert {result.evidence.ran for result in results} == {NATIVE}


def test_a_backend_that_is_not_exact_is_refused_with_the_ops_it_lacks():
    with testing.installed(conformance_host.plugin()):
        result = execute(case_of("host", "engine/llama/bfloat16/one_value"))
    assert result.outcome is Outcome.REFUSED
    assert "[gated_linear] needs a shape-invariant implementation" in result.message()


def test_an_architecture_whose_package_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = execute(case_of("cpu", "engine/llama/float32/one_value"))
    assert result.outcome is Outcome.REFUSED
    assert "pip install transformers" in result.message()


# -- faults of the engine's own ----------------------------------------------------------------


def logprobs_with_dropout(patch):
    defaults = [
        True if field.name == "dropout" else field.default
        for field in fields(calls.Scoring)
        if field.default is not MISSING
    ]
    patch.setattr(calls.Scoring.__init__, "__defaults__", tuple(defaults))


def positions_of_columns(patch):
    right = sequences.Sequences.of.__func__

    def of(cls, mask, shape, device, positions=None):
        found = right(cls, mask, shape, device, positions)
        columns = torch.arange(shape[1], device=device).expand(*shape)
        return cls(columns if positions is None else found.positions, found.spans, found.rows)

    patch.setattr(sequences.Sequences, "of", classmethod(of))


def padding_has_values(patch):
    right = calls.Scoring.result

    def result(self, head, hidden, rows):
        return tuple(values.where(values != 0, -1.0) for values in right(self, head, hidden, rows))

    patch.setattr(calls.Scoring, "result", result)


def keys_kept_wider(patch):
    reserve, extend = cache.KVCache.reserve, cache.KVCache.extend

    def wider(self, spec, batch, tokens, like, *beginnings):
        reserve(self, spec, batch, tokens, like.double(), *beginnings)

    def narrowed(self, layer, slots, k, v):
        kept = extend(self, layer, slots, k.double(), v.double())
        return tuple(t.to(k.dtype) for t in kept)

    patch.setattr(cache.KVCache, "reserve", wider)
    patch.setattr(cache.KVCache, "extend", narrowed)


def adapter_always_on(patch):
    right = lora.PeftLora._adapter
    patch.setattr(lora.PeftLora, "acting", lambda self: [right(self, "default")])


def anything_is_exact(patch):
    right = planning.served

    def served(model, spec, config, **has):
        return right(model, spec, planning.HybridEngineConfig(exact=False), **has)

    patch.setattr(planning, "served", served)


def sampling_draws_from_torch(patch):
    right = sampling.uniforms

    def uniforms(*args):
        torch.rand(1)
        return right(*args)

    patch.setattr(sampling, "uniforms", uniforms)


MUTATED = {
    logprobs_with_dropout: "dropout",
    positions_of_columns: "positions",
    padding_has_values: "masked",
    keys_kept_wider: "compute_dtype",
    adapter_always_on: "adapter",
    anything_is_exact: "exact",
    sampling_draws_from_torch: "untouched",
}


@pytest.mark.parametrize("mutate", MUTATED)
def test_a_promise_of_the_engine_s_own_is_held_to(monkeypatch, mutate):
    """What no kernel can break: the engine itself is changed."""
    mutate(monkeypatch)
    assert broken(MUTATED[mutate]) == {MUTATED[mutate]}
