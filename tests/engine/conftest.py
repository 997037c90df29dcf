"""Models for the engine's tests: factories of small ones, and ones that have learned bytes."""

import copy

import models
import pytest


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "cpu")


@pytest.fixture(scope="session")
def llama():
    """``llama(tied=False, **config)``: a new model with random weights."""
    return models.llama


@pytest.fixture(scope="session")
def gpt2():
    """``gpt2(**config)``: a new model with random weights."""
    return models.gpt2


@pytest.fixture(params=["llama", "gpt2", "llama with LoRA", "gpt2 with LoRA"])
def model(request):
    """Each of them, with adapters and without."""
    name, _, lora = request.param.partition(" ")
    model = models.MAKERS[name]()
    return models.with_lora(model) if lora else model


@pytest.fixture(scope="session")
def _training(request, build_cache):
    """``train(name)``: the one trained model of that name; longer if long tests run."""
    long = any(item.get_closest_marker("slow") for item in request.session.items)
    steps, seconds = (2000, 60) if long else (150, 8)
    trained = {}

    def train(name):
        if name not in trained:
            model = models.MAKERS[name](vocab_size=models.BYTES)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ACCEL_BACKEND", "cpu")
                patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
                trained[name] = models.train(model, steps, seconds)
        return copy.deepcopy(trained[name])

    return train


@pytest.fixture(scope="session")
def trained_llama(_training):
    """``trained_llama()``: a copy of a llama that was taught bytes once in this session."""
    return lambda: _training("llama")


@pytest.fixture(scope="session")
def trained_gpt2(_training):
    """``trained_gpt2()``: a copy of a gpt2 that was taught bytes once in this session."""
    return lambda: _training("gpt2")
