"""DeepSpeedHybridEngine: each of DeepSpeed's methods does what it says, over the same engine."""

import json
from types import SimpleNamespace

import adapters
import models
import pytest
import torch
from deepspeed_engines import ASKED, engine_of, trained
from measures import batch, is_exact, rollout
from torch import nn

import accel
from accel.deepspeed import DeepSpeedHybridEngine
from accel.engine.forward import installed
from accel.engine.modules.layer import DecoderLayer
from accel.engine.modules.lora import ChatLora, PeftLora
from accel.engine.policies.gpt2 import POLICY as GPT2
from accel.engine.policies.llama import POLICY as LLAMA
from accel.errors import ConfigError, UnsupportedCapability, UnsupportedModelError
from accel.layers.gather import register_gatherer, unregister_gatherer

pytestmark = pytest.mark.usefixtures("_one_thread")


# -- construction ------------------------------------------------------------------------------


BLOCK = {
    "hybrid_engine": {"enabled": True, "max_out_tokens": 64, "release_inference_cache": True},
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
}


def test_the_configuration_is_deepspeed_s_as_dict_as_file_and_as_argument(tmp_path):
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(BLOCK), "utf-8")
    want = accel.HybridEngineConfig.from_deepspeed(BLOCK)
    for config in (BLOCK, file, str(file), want):
        assert engine_of(models.llama(), config=config).config == want
    arguments = SimpleNamespace(deepspeed_config=str(file))
    assert DeepSpeedHybridEngine(arguments, models.llama()).config == want
    assert DeepSpeedHybridEngine(arguments, models.llama(), config={}).config != want


@pytest.mark.parametrize("text", ["{", "[1]", None], ids=["torn", "a list", "none"])
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path, text):
    file = tmp_path / "ds_config.json"
    if text is not None:
        file.write_text(text, "utf-8")
    model = models.llama()
    with pytest.raises(ConfigError, match="DeepSpeed's configuration"):
        engine_of(model, config=file)
    assert installed(model) is None


def test_what_is_made_in_pytorch_is_refused_by_name():
    given = {"model_parameters": [1], "training_data": torch.ones(2), "collate_fn": None}
    with pytest.raises(
        UnsupportedCapability, match=r"does not take model_parameters, training_data:"
    ):
        DeepSpeedHybridEngine(None, models.llama(), **given)


def test_it_trains_and_generates_as_the_engine_it_is():
    ours, theirs = engine_of(models.llama()), models.llama()
    theirs = accel.HybridEngine(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2))
    for engine in (ours, theirs):
        trained(engine)
    assert ours.module is ours.model
    made = ours.generate(*batch(), **ASKED)
    assert torch.equal(made.logprobs, theirs.generate(*batch(), **ASKED).logprobs)
    assert is_exact(ours.model)
    by_name = ours.generate(inputs=batch()[0], attention_mask=batch()[1], max_new_tokens=5)
    assert torch.equal(by_name, theirs.generate(*batch(), max_new_tokens=5))


# -- containers and policies -------------------------------------------------------------------


def test_every_class_that_is_served_is_in_the_table_of_policies():
    engine = engine_of(adapters.with_chat_lora(models.llama()))
    table = engine.inference_policies
    layer = type(engine.model.model.layers[0])
    maker, policy = table[layer]
    assert maker == engine.new_inference_container
    assert isinstance(policy, LLAMA)
    assert table[adapters.ChatLinear][0] is ChatLora
    assert table[nn.Linear][0].__name__ == "Linear"
    assert {type(m) for m in engine.model.modules() if installed(m)} == set(table)
    engine.inference_policies = {}
    assert engine.populate_all_inference_policies() == table == engine.inference_policies


def test_containers_are_the_forwards_of_the_layers_within():
    engine = engine_of(models.llama(num_hidden_layers=3))
    layers = engine.model.model.layers
    found = engine.create_inference_containers(engine.module)
    assert [c.layer_id for c in found] == [0, 1, 2]
    assert [c.module for c in found] == list(layers)
    assert [c.layer_id for c in engine.create_inference_containers(layers[1])] == [1]
    assert [c.layer_id for c in engine.create_inference_containers(layers, 1)] == [1, 2]
    for container in found:
        for replacement in container.replacements:
            assert installed(replacement.forward.module) is replacement.forward
        inside = {m for m in container.module.modules() if installed(m)}
        assert inside == {r.forward.module for r in container.replacements}


def test_a_new_container_takes_a_layers_place_to_the_same_bits():
    engine = engine_of(models.llama())
    layer, want = engine.model.model.layers[1], rollout(engine.model).logprobs
    made = engine.new_inference_container(layer, LLAMA, 1)
    first = made.replacements[0].forward
    assert isinstance(first, DecoderLayer)
    assert installed(layer) is not first
    made.install()
    assert installed(layer) is first
    assert torch.equal(rollout(engine.model).logprobs, want)
    made.remove()
    made.remove()
    assert not any(installed(module) for module in layer.modules())
    with pytest.raises(UnsupportedModelError, match=r"layers\.1 is now"):
        rollout(engine.model)
    engine.create_inference_module()
    assert torch.equal(rollout(engine.model).logprobs, want)


def test_a_container_is_of_the_models_own_policy_and_layer():
    engine = engine_of(models.llama())
    layers = engine.model.model.layers
    with pytest.raises(UnsupportedModelError, match="read by LlamaPolicy, not by Gpt2Policy"):
        engine.new_inference_container(layers[0], GPT2, 0)
    for layer_id in (0, 2, -1):
        with pytest.raises(
            UnsupportedModelError, match=f"not the model's decoder layer {layer_id} "
        ):
            engine.new_inference_container(layers[1], LLAMA(), layer_id)


def test_an_adapter_that_came_later_is_served_once_the_module_is_created_again():
    engine = engine_of(adapters.with_peft(models.llama()))
    adapters.add_second(engine.model)
    with pytest.raises(UnsupportedModelError, match="again"):
        engine.logprobs(*batch(), adapter="second")
    engine.create_inference_module()
    assert PeftLora in {maker for maker, _ in engine.inference_policies.values()}
    assert not torch.equal(
        engine.logprobs(*batch(), adapter="second"), engine.logprobs(*batch(), adapter="default")
    )


# -- transposed weights ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_laid_out_by_columns_have_the_same_bits_everywhere(dtype):
    model = models.llama(tied=True).to(dtype)
    engine = engine_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identity, want = dict(model.named_parameters()), rollout(model).logprobs
    converted = engine.convert_to_linear_transposed(model)
    assert converted == [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][:-1]
    assert all(model.get_submodule(path).weight.stride(0) == 1 for path in converted)
    assert model.lm_head.weight.stride(1) == 1, "the embedding reads it by rows"
    after = dict(model.named_parameters())
    assert all(after[name] is identity[name] for name in identity)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(rollout(model).logprobs, want)
    assert engine.convert_to_linear_transposed(model) == []
    trained(engine)
    assert model.get_submodule(converted[0]).weight.stride(0) == 1
    assert is_exact(model)


# -- gathered layers ---------------------------------------------------------------------------


class Elsewhere:
    """Keeps the values of parameters, which have none but while they are gathered."""

    def __init__(self, module):
        self.values = {parameter: parameter.data for parameter in module.parameters()}
        self.there, self.most = 0, 0
        for parameter in self.values:
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    def knows(self, parameter):
        return parameter in self.values

    def absent(self, parameter):
        return self.knows(parameter) and parameter.numel() == 0

    def gather(self, parameter):
        parameter.data = self.values[parameter]
        self.there += 1
        self.most = max(self.most, self.there)

    def release(self, parameter, modified):
        parameter.data = torch.empty(0, dtype=parameter.dtype)
        self.there -= 1


def test_a_layer_whose_values_lie_elsewhere_gathers_them_for_its_forward():
    engine = engine_of(models.llama(), config=accel.HybridEngineConfig(enable_cuda_graph=False))
    layers = engine.model.model.layers
    want = engine.generate(*batch(), **ASKED).logprobs
    elsewhere = Elsewhere(layers)
    register_gatherer(elsewhere)
    try:
        for layer_id in (0, 1):
            engine._zero3_forward(layer_id).install()
        made = engine.generate(*batch(), **ASKED)
    finally:
        unregister_gatherer(elsewhere)
    assert torch.equal(made.logprobs, want)
    assert elsewhere.there == 0
    assert elsewhere.most == len(list(layers[0].parameters())), "one layer at a time"
    assert engine.stats()["gather"]["calls"] == 2 * 5
    assert isinstance(engine._zero3_forward(0).inner, DecoderLayer), "never one in another"
