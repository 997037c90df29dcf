"""Models for the engine's tests: factories of small ones, and ones that have learned bytes."""

import copy

import models
import pytest
import torch


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "cpu")


@pytest.fixture
def _one_thread():
    """Models this small leave a second one nothing but to wait, which is slow on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama():
    """``llama(tied=False, **config)``: a new model with random weights."""
    return models.llama


@pytest.fixture(scope="session")
def gpt2():
    """``gpt2(**config)``: a new model with random weights."""
    return models.gpt2


@pytest.fixture(params=[name + lora for lora in ("", " with LoRA") for name in models.MAKERS])
def model(request):
    """Each of them, with adapters and without."""
    name, _, lora = request.param.partition(" ")
    model = models.MAKERS[name]()
    return models.with_lora(model) if lora else model


@pytest.fixture(scope="session")
def trained(request, build_cache):
    """``trained(name)``: a copy of a model that was taught bytes once in this session; longer if
    long tests run."""
    long = any(item.get_closest_marker("slow") for item in request.session.items)
    steps, seconds = (2000, 30) if long else (150, 8)
    taught = {}

    def train(name):
        if name not in taught:
            model = models.small(name, vocab_size=models.BYTES)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ACCEL_BACKEND", "cpu")
                patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
                taught[name] = models.train(model, steps, seconds)
        return copy.deepcopy(taught[name])

    return train
