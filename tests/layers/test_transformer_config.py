"""Settings of transformer layers: DeepSpeed's, checked, shared and read from files."""

import copy
import dataclasses
import json
import pickle

import pytest

from accel.errors import ConfigError
from accel.layers.transformer import TransformerConfig, TransformerLayerConfig

DEEPSPEED = {
    "batch_size": -1, "hidden_size": -1, "intermediate_size": -1, "heads": -1,
    "attn_dropout_ratio": -1, "hidden_dropout_ratio": -1, "num_hidden_layers": -1,
    "initializer_range": -1, "layer_norm_eps": 1e-12, "local_rank": -1, "seed": -1, "fp16": False,
    "pre_layer_norm": True, "normalize_invertible": False, "gelu_checkpoint": False,
    "adjust_init_range": True, "attn_dropout_checkpoint": False, "stochastic_mode": False,
    "return_tuple": False, "training": True,
}  # fmt: skip


def config(**settings):
    return TransformerLayerConfig(**({"hidden_size": 8, "heads": 2} | settings))


def test_names_order_and_defaults_are_deepspeed_s():
    fields = dataclasses.fields(TransformerLayerConfig)
    found = {field.name: field.default for field in fields}
    assert list(found)[: len(DEEPSPEED)] == list(DEEPSPEED)
    assert {name: found[name] for name in DEEPSPEED} == DEEPSPEED
    assert [field.name for field in dataclasses.fields(TransformerConfig)] == list(DEEPSPEED)[:8]


def test_arguments_may_be_given_by_place():
    made = TransformerLayerConfig(4, 16, 24, 2, 0.1, 0.2, 3, 0.05, 1e-5)
    assert (made.batch_size, made.intermediate_size, made.initializer_range) == (4, 24, 0.05)
    assert made.layer_norm_eps == 1e-5
    assert TransformerConfig(4, 16, 24, 2, 0.1, 0.2, 3, 0.05).heads == 2


@pytest.mark.parametrize("given", [-1, 0, -7])
def test_the_inner_size_is_four_times_the_hidden_one_unless_given(given):
    assert config(intermediate_size=given).intermediate_size == 32
    assert TransformerLayerConfig.from_dict({"hidden_size": 6}).intermediate_size == 24
    assert config(intermediate_size=5).intermediate_size == 5
    assert TransformerLayerConfig().intermediate_size == -1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"heads": 3}, "heads=3 with hidden_size=8"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"hidden_size": 8.0}, "hidden_size must be an int"),
        ({"hidden_size": -2}, "hidden_size must be at least 1"),
        ({"batch_size": True}, "batch_size must be an int"),
        ({"intermediate_size": None}, "intermediate_size must be an int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"attn_dropout_ratio": 1.5}, r"must lie in \[0, 1\].*found 1.5"),
        ({"hidden_dropout_ratio": -0.5}, "hidden_dropout_ratio must lie"),
        ({"hidden_dropout_ratio": float("nan")}, "hidden_dropout_ratio must lie"),
        ({"attn_dropout_ratio": "0.1"}, "attn_dropout_ratio must be a number"),
        ({"initializer_range": -0.5}, "initializer_range must be at least 0"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps must be at least 0"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a number"),
        ({"fp16": 1}, "fp16 must be True or False, not 1"),
        ({"gelu_checkpoint": "no"}, "gelu_checkpoint must be True or False"),
        ({"seed": 0.5}, "seed must be an int"),
        ({"local_rank": "0"}, "local_rank must be an int"),
        ({"act": "gelu_tan"}, "unknown act 'gelu_tan'; did you mean 'gelu_tanh'"),
        ({"act": []}, "unknown act"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        config(**settings)


def test_unknown_settings_are_refused_with_near_names():
    with pytest.raises(ConfigError, match="'hiden_size'; did you mean 'hidden_size'"):
        TransformerLayerConfig.from_dict({"hiden_size": 8})
    with pytest.raises(ConfigError, match="unknown setting 'max_seq_length'"):
        TransformerLayerConfig.from_dict({"max_seq_length": 8})
    with pytest.raises(ConfigError, match=r"missing.*'heads'"):
        TransformerConfig.from_dict({"hidden_size": 8})


def test_a_config_is_fixed_and_says_what_to_do_instead():
    made = config()
    with pytest.raises(AttributeError, match=r"dataclasses.replace\(config, training=False\)"):
        made.training = False
    with pytest.raises(AttributeError, match="has no setting 'layer_id'"):
        made.layer_id = 3
    with pytest.raises(AttributeError, match="fixed"):
        del made.heads
    assert made == config()
    assert dataclasses.replace(made, training=False).training is False


def test_a_config_copies_pickles_hashes_and_goes_through_a_dict():
    made = config(act="relu", seed=3)
    for other in (
        copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made)),
        TransformerLayerConfig.from_dict(made.to_dict()),
    ):  # fmt: skip
        assert other == made
        assert hash(other) == hash(made)
        assert type(other) is TransformerLayerConfig
    assert made != config(act="relu", seed=4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_json_file_may_be_utf_8_or_utf_16(encoding, tmp_path):
    file = tmp_path / "layer.json"
    file.write_text(json.dumps(config(heads=4).to_dict()), encoding=encoding)
    assert TransformerLayerConfig.from_json_file(file) == config(heads=4)
    assert TransformerLayerConfig.from_json_file(str(file)).heads == 4


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"heads": "\xff"}', "no JSON in UTF-8 or UTF-16"),
        (b"\xff\xfe{", "no JSON in UTF-8 or UTF-16"),
        (b"heads: 2", "no JSON in UTF-8 or UTF-16"),
        (b"", "no JSON in UTF-8 or UTF-16"),
        (b"[1, 2]", "one JSON object; found a list"),
        (b'{"heds": 2}', "did you mean 'heads'"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(data, says, tmp_path):
    file = tmp_path / "bad.json"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        TransformerLayerConfig.from_json_file(file)


def test_a_file_that_is_not_there_is_the_system_s_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        TransformerLayerConfig.from_json_file(tmp_path / "none.json")
