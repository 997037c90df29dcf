"""InferenceConfig: DeepSpeed's names and defaults, each setting honoured or refused by its name."""

import dataclasses
import json

import pytest
import torch

from accel.errors import ConfigError
from accel.layers.inference import ActivationFuncType, InferenceConfig, NormType

# reference/deepspeed.md 3.5: in DeepSpeed's order.
DEFAULTS = {
    "hidden_size": -1, "intermediate_size": -1, "heads": -1, "num_hidden_layers": -1,
    "layer_norm_eps": 1e-12, "local_rank": -1, "mp_size": 1, "dtype": torch.float16,
    "pre_layer_norm": True, "norm_type": NormType.LayerNorm, "stochastic_mode": False,
    "scale_attention": True, "triangular_masking": True, "local_attention": False,
    "window_size": 256, "rotary_dim": -1, "rotate_half": False, "rotate_every_two": True,
    "return_tuple": True, "mlp_after_attn": True, "mlp_act_func_type": ActivationFuncType.GELU,
    "training_mp_size": 1, "bigscience_bloom": False, "max_out_tokens": 1024, "min_out_tokens": 1,
    "enable_qkv_quantization": False, "use_mup": False, "scale_attn_by_inverse_layer_idx": False,
    "return_single_tuple": False, "set_empty_params": False, "transposed_mode": False,
    "use_triton": False, "triton_autotune": False, "num_kv": -1, "rope_theta": 10000,
    "invert_mask": True,
}  # fmt: skip


def test_fields_and_defaults_are_deepspeed_s():
    config, names = InferenceConfig(), [f.name for f in dataclasses.fields(InferenceConfig)]
    assert len(DEFAULTS) == 36
    assert names[:36] == list(DEFAULTS)
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert [(n.name, n.value) for n in NormType] == [
        ("UNKNOWN", 0), ("LayerNorm", 1), ("GroupNorm", 2), ("RMSNorm", 3),
    ]  # fmt: skip
    assert [(a.name, a.value) for a in ActivationFuncType] == [
        ("UNKNOWN", 0), ("GELU", 1), ("ReLU", 2), ("GATED_GELU", 3), ("GATED_SILU", 4),
    ]  # fmt: skip


def test_a_config_is_fixed_and_equal_to_its_like():
    config = InferenceConfig(hidden_size=64, heads=4)
    assert config.intermediate_size == 256
    for change in (setattr, lambda config, name, _: delattr(config, name)):
        with pytest.raises(dataclasses.FrozenInstanceError, match="InferenceConfig may be shared"):
            change(config, "heads", 8)
    with pytest.raises(AttributeError, match=r"dataclasses.replace\(config, heads=8\)"):
        config.heads = 8
    assert config == InferenceConfig(64, 256, 4)
    assert hash(config) == hash(InferenceConfig(64, 256, 4))
    assert dataclasses.replace(config, layer_id=3).layer_id == 3


def test_both_names_of_epsilon():
    assert InferenceConfig(layer_norm_eps=0.5).epsilon == 0.5
    assert InferenceConfig.from_dict({"epsilon": 0.5}).layer_norm_eps == 0.5
    with pytest.raises(ConfigError, match="are one setting"):
        InferenceConfig.from_dict({"epsilon": 0.5, "layer_norm_eps": 0.5})


@pytest.mark.parametrize(
    ("text", "dtype"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("float", torch.float32),
     ("torch.float64", torch.float64), ("int8", torch.int8), (torch.half, torch.float16)],
)  # fmt: skip
def test_names_are_read_from_dicts(text, dtype):
    config = InferenceConfig.from_dict(
        {"dtype": text, "norm_type": "RMSNorm", "mlp_act_func_type": 4, "rope_theta": 5e5}
    )
    assert config.dtype is dtype
    assert config.norm_type is NormType.RMSNorm
    assert config.mlp_act_func_type is ActivationFuncType.GATED_SILU
    assert config.rope_theta == 5e5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_json_files_are_read(tmp_path, encoding):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"heads": 4, "hidden_size": 32, "dtype": "fp32"}), encoding)
    assert InferenceConfig.from_json_file(file) == InferenceConfig(
        heads=4, hidden_size=32, dtype=torch.float32
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [(b'{"heads": "\xff\xfe\xfa"}', "no JSON in UTF-8 or UTF-16"), (b"{", "no JSON"),
     (b"", "no JSON"), (b"[1]", "one JSON object; found a list"),
     (b'{"head": 1}', "did you mean 'heads'")],
)  # fmt: skip
def test_files_that_are_no_config_are_refused(tmp_path, data, says):
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        InferenceConfig.from_json_file(str(file))


REFUSED = {
    "stochastic_mode=True": "only False: inference",
    "return_tuple=False": "only True: it is about a layer's forward",
    "return_single_tuple=True": "only False",
    "training_mp_size=2": "merge a checkpoint's parts",
    "bigscience_bloom=True": "give alibi to SoftmaxContextOp",
    "set_empty_params=True": "ops hold no parameters",
    "dtype=torch.float8_e4m3fn": "float32, bfloat16, float16, float64, int8; found torch.float8",
    "dtype=torch.int32": "must be one of",
    "dtype='fp16'": "dtype must be a dtype",
    "norm_type=NormType.GroupNorm": "LayerNorm or RMSNorm",
    "norm_type=3": "must be a NormType",
    "heads=True": "heads must be a number, not a truth value",
    "heads=2.0": "whole number",
    "rope_theta='x'": "must be a number",
    "pre_layer_norm=1": "True or False",
    "layer_norm_eps=-1.0": "at least 0",
    "mp_size=0": "at least 1",
    "window_size=0": "at least 1",
    "min_out_tokens=2000": "at most max_out_tokens",
    "hidden_size=10, heads=4": "heads must divide hidden_size",
    "heads=4, num_kv=3": "num_kv must divide heads",
    "heads=4, mp_size=3": "mp_size must divide heads",
    "num_hidden_layers=4, layer_id=4": "below num_hidden_layers = 4; found 4",
    "rotary_dim=3": "must be even",
    "rotary_dim=4, rotate_half=True": "one of rotate_half and rotate_every_two; found both True",
    "rotary_dim=4, rotate_every_two=False": "found both False",
    "enable_qkv_quantization=True": "needs dtype=torch.int8",
    "quantization_scales={'weight': torch.ones(1)}": "needs dtype=torch.int8",
    "quantization_scales=[1]": "a dict of tensors",
    "triton_autotune=True": "needs to know hidden_size",
    "triton_autotune=True, hidden_size=8, dtype=torch.int8": "floating point linear",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_not_served_is_refused_by_name(given):
    with pytest.raises(ConfigError) as error:
        eval(f"InferenceConfig({given})")
    assert REFUSED[given] in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"dtype": "fp61"}, "did you mean"), ({"norm_type": "LN"}, "known: UNKNOWN, LayerNorm"),
     ({"mlp_act_func_type": 9}, "unknown ActivationFuncType 9"), ({3: 1}, "unknown setting 3"),
     ({"mlp_act_func_type": True}, "unknown ActivationFuncType True")],
)  # fmt: skip
def test_dicts_that_are_no_config_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        InferenceConfig.from_dict(settings)


def test_the_factor_of_scores():
    """Squared it is 1/sqrt(16); under mup 1/16; in layer 2 of such models a third; or 1."""
    sizes = {"hidden_size": 64, "heads": 4, "layer_id": 2}

    def factor(**settings):
        return InferenceConfig(**sizes, **settings).norm_factor ** 2

    assert factor() == pytest.approx(1 / 4)
    assert factor(use_mup=True) == pytest.approx(1 / 16)
    assert factor(scale_attn_by_inverse_layer_idx=True) == pytest.approx(1 / 12)
    assert factor(scale_attention=False, use_mup=True) == 1
    with pytest.raises(ConfigError, match="hidden_size and heads"):
        _ = InferenceConfig().norm_factor
    with pytest.raises(ConfigError, match="layer_id"):
        _ = InferenceConfig(64, -1, 4, scale_attn_by_inverse_layer_idx=True).norm_factor
