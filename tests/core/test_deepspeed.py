"""DeepSpeed's builders, which load what is always there; and that DeepSpeed need not be."""

import sys

import pytest

from accel import deepspeed, ops, testing
from accel.errors import UnsupportedCapability


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        (deepspeed.TransformerBuilder, "transformer"),
        (deepspeed.StochasticTransformerBuilder, "stochastic_transformer"),
        (deepspeed.InferenceBuilder, "transformer_inference"),
    ],
)
def test_a_builder_says_its_name_and_loads_the_ops(builder, name):
    made = builder()
    assert (made.name, made.NAME, builder("mine").name) == (name, name, "mine")
    assert made.BUILD_VAR.removeprefix("DS_BUILD_").lower() == name
    assert made.is_compatible(verbose=True)
    assert made.load() is made.jit_load(verbose=True) is ops
    assert made.absolute_name() == ops.__name__


def test_without_deepspeed_there_is_nothing_to_serve(monkeypatch):
    for name in ("deepspeed", "deepspeed.accelerator"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        testing.installed(testing.fake_backend()),
        pytest.raises(UnsupportedCapability, match=r"pip install '\./accel\[deepspeed\]'"),
    ):
        deepspeed.set_deepspeed_accelerator("fake")
