"""LoRA of both kinds, exact on the fly: by name, several at once, none."""

import copy

import adapters
import models
import pytest
import torch
from agreement import assert_agree
from measures import batch, is_exact, scores, seeded
from peft import LoraConfig, get_peft_model

import accel
from accel.errors import UnsupportedCapability, UnsupportedModelError

CHAT = ["llama", "opt", "gpt_neox"]
WIDE = accel.HybridEngineConfig(exact=False)  # in float64, where no kernel is shape-invariant

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
    pytest.mark.usefixtures("_one_thread"),
]


def chat(name, dtype=torch.float32, **config):
    return adapters.with_chat_lora(models.small(name), **config).to(dtype)


# -- DeepSpeed-Chat's --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAT)
def test_a_chat_adapter_gives_the_tokens_of_its_own_forward(name):
    model, ids = chat(name), seeded((3, 7))
    want = model.generate(ids, max_new_tokens=8, pad_token_id=0)
    engine = accel.HybridEngine(model)
    assert torch.equal(engine.generate(ids, max_new_tokens=8), want)
    assert not torch.equal(engine.generate(ids, max_new_tokens=8, adapter=None), want)


@pytest.mark.parametrize("name", CHAT)
def test_a_chat_adapters_gradient_is_that_of_the_weight_it_is_added_to(name):
    """In float64, by the chain rule: W + s (left^T right^T) has the gradient G of a plain model's
    weight, hence right's is s G^T left^T and left's s right^T G^T."""
    model, ids = chat(name, torch.float64), seeded((2, 9))
    plain = adapters.merged(model, models.small(name))
    for each in (model, plain):
        loss = accel.HybridEngine(each, config=WIDE).train()(ids, labels=ids).loss
        loss.backward()
    found, want = [], []
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_left_weight"):
            of_weight = layer.lora_scaling * plain.get_submodule(path).weight.grad.t()
            want += [
                of_weight @ layer.lora_left_weight.t(),
                layer.lora_right_weight.t() @ of_weight,
            ]
            found += [layer.lora_right_weight.grad, layer.lora_left_weight.grad]
            assert layer.weight.grad is None
    assert found
    assert_agree(found, [gradient.detach() for gradient in want])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CHAT)
def test_a_chat_adapter_is_exact_on_the_fly(name, dtype):
    model = chat(name, dtype)
    accel.hybridize(model)
    assert is_exact(model)


def test_a_chat_adapter_left_out_is_the_reference_policy():
    base = models.llama()
    engine = accel.HybridEngine(adapters.with_chat_lora(copy.deepcopy(base)))
    reference = accel.HybridEngine(base)
    assert torch.equal(engine.logprobs(*batch(), adapter=None), reference.logprobs(*batch()))
    assert not torch.equal(engine.logprobs(*batch()), reference.logprobs(*batch()))


def test_a_chat_adapters_dropout_acts_in_a_training_step_alone():
    engine, ids = accel.HybridEngine(chat("llama", dropout=0.5)), seeded((2, 9))
    losses = {}
    for mode in (True, False):
        engine.train(mode)
        torch.manual_seed(0)
        losses[mode] = [engine(ids, labels=ids).loss.item() for _ in range(2)]
        assert torch.equal(scores(engine.model), scores(engine.model))
    assert losses[True][0] != losses[True][1]
    assert losses[False][0] == losses[False][1]


def test_a_chat_adapter_has_no_name():
    engine = accel.HybridEngine(chat("llama"))
    with pytest.raises(ValueError, match=r"no LoRA adapter 'default'; known: none"):
        engine.generate(seeded((1, 4)), adapter="default")


def test_a_chat_layer_that_has_fused_itself_is_refused():
    model = chat("llama")
    engine = accel.HybridEngine(model)
    model.model.layers[1].mlp.gate_proj.fuse_lora = True
    with pytest.raises(UnsupportedCapability, match=r"fuse_lora is True.*unfuse_lora_weight"):
        engine.generate(seeded((1, 4)), max_new_tokens=2)


def test_a_chat_layer_of_other_shapes_is_refused_whole():
    model = chat("llama")
    layer = model.model.layers[1].self_attn.q_proj
    layer.lora_left_weight = torch.nn.Parameter(torch.zeros(4, 63))
    with pytest.raises(UnsupportedModelError, match=r"layers.1.self_attn.q_proj.*\[4, 63\] beside"):
        accel.hybridize(model)
    assert "forward" not in vars(model)


# -- several of PEFT's -------------------------------------------------------------------------


def test_whichever_adapter_is_active_is_used():
    model = adapters.several()
    engine = accel.HybridEngine(model)
    found = {name: engine.logprobs(*batch(), adapter=name) for name in ("default", "second", None)}
    for name in ("second", "default"):
        model.set_adapter(name)
        assert torch.equal(engine.logprobs(*batch()), found[name])
        assert is_exact(model)
    with model.disable_adapter():
        assert torch.equal(engine.logprobs(*batch()), found[None])
    first, second, none = found.values()
    assert not torch.equal(first, second)
    assert not torch.equal(second, none)


def test_adapters_that_are_active_at_once_are_added_up():
    """On layers that have both, and on those that have one; in float64."""
    model = adapters.several(torch.float64)
    model.base_model.set_adapter(["default", "second"])
    engine = accel.HybridEngine(model, config=WIDE)
    reference = accel.HybridEngine(adapters.merged(model, models.llama()), config=WIDE)
    both, *alone = (engine.logprobs(*batch(), adapter=n) for n in ("active", "default", "second"))
    assert_agree(both, reference.logprobs(*batch()))
    assert not any(torch.equal(both, one) for one in alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_that_are_active_at_once_are_exact(dtype):
    model = adapters.several(dtype)
    model.base_model.set_adapter(["default", "second"])
    accel.hybridize(model)
    assert is_exact(model)


def test_an_adapter_that_came_later_is_not_taken_for_what_it_may_not_be():
    model = adapters.with_peft(models.llama())
    engine = accel.HybridEngine(model)
    before = scores(model)
    adapters.add_second(model, use_dora=True, target_modules=["q_proj"])
    assert torch.equal(engine.logprobs(*batch()), before)
    with pytest.raises(
        UnsupportedModelError, match=r"'second' came after.*hybridize\(model\) again"
    ):
        engine.logprobs(*batch(), adapter="second")
    with pytest.raises(UnsupportedModelError, match="'second' is a DoraLinearVariant"):
        accel.hybridize(model)


VARIANTS = {
    "use_dora": {"use_dora": True},
    "aLoRA": {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_lora_is_refused_by_name(variant):
    config = LoraConfig(target_modules=["q_proj"], **VARIANTS[variant])
    with pytest.raises(UnsupportedModelError, match=r"plain LoRA.*'default' is a \w+Variant"):
        accel.hybridize(get_peft_model(models.llama(), config))
