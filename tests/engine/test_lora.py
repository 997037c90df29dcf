"""LoRA of both kinds, exact on the fly: by name, several at once, none; and fused for a rollout."""

import copy
import gc
import weakref

import adapters
import models
import pytest
import torch
from agreement import assert_agree
from measures import batch, is_exact, scores, seeded
from peft import LoraConfig, get_peft_model

import accel
from accel.engine import call as calls
from accel.engine.modules import lora
from accel.errors import ConfigError, UnsupportedCapability, UnsupportedModelError

CHAT = ["llama", "opt", "gpt_neox"]
FUSED = {"exact": False, "fuse_lora": True}
WIDE = accel.HybridEngineConfig(exact=False)  # in float64, where no kernel is shape-invariant
KINDS = {"PEFT": adapters.with_peft, "DeepSpeed-Chat": adapters.with_chat_lora}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
    pytest.mark.usefixtures("_one_thread"),
]


def chat(name, dtype=torch.float32, **config):
    return adapters.with_chat_lora(models.small(name), **config).to(dtype)


def products(layer):
    """(scale, A [r, in], B [out, r]) of what is added to the layer's weight."""
    if hasattr(layer, "lora_left_weight"):
        yield layer.lora_scaling, layer.lora_right_weight.t(), layer.lora_left_weight.t()
    names = getattr(layer, "lora_A", {})
    acting = [name for name in layer.active_adapters if name in names] if names else []
    yield from ((layer.scaling[n], layer.lora_A[n].weight, layer.lora_B[n].weight) for n in acting)


def merged(model, plain):
    """The plain model with the weights that the other one's stand for: W and the sum of scale B A,
    added in fp32 or wider and rounded once; where numbers are such that nothing else is."""
    plain = plain.to(model.dtype)
    wide = torch.promote_types(model.dtype, torch.float32)
    for path, module in plain.named_modules():
        shares = [s * (b.double() @ a.double()) for s, a, b in products(adapted(model, path))]
        if shares:
            share = sum(shares)
            assert torch.equal(share, share.float().double()), "no rounding"
            module.weight.data = (module.weight.to(wide) + share.to(wide)).to(model.dtype)
    return plain


def adapted(model, path):
    inner = model.base_model.model if hasattr(model, "peft_config") else model
    return inner.get_submodule(path)


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
    plain = merged(model, models.small(name))
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


def several(dtype=torch.float32):
    model = adapters.add_second(adapters.with_peft(models.llama(), lora_dropout=0.0))
    return model.to(dtype)


def test_whichever_adapter_is_active_is_used():
    model = several()
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
    model = several(torch.float64)
    model.base_model.set_adapter(["default", "second"])
    engine = accel.HybridEngine(model, config=WIDE)
    reference = accel.HybridEngine(merged(model, models.llama()), config=WIDE)
    both, *alone = (engine.logprobs(*batch(), adapter=n) for n in ("active", "default", "second"))
    assert_agree(both, reference.logprobs(*batch()))
    assert not any(torch.equal(both, one) for one in alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_that_are_active_at_once_are_exact(dtype):
    model = several(dtype)
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


# -- fused for a rollout -----------------------------------------------------------------------


def rolled(engine, **asked):
    ids, mask = batch()
    asked = {"max_new_tokens": 6, "do_sample": True, "seed": 1, "return_logprobs": True, **asked}
    return engine.generate(ids, mask, **asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_rollout_is_that_of_the_weights_with_the_adapter_added(kind, dtype):
    model = KINDS[kind](models.llama()).to(dtype)
    want = rolled(accel.HybridEngine(merged(model, models.llama()), config={"exact": False}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = accel.HybridEngine(model, config=FUSED)
    made = rolled(engine)
    assert torch.equal(made.sequences, want.sequences)
    assert torch.equal(made.logprobs, want.logprobs)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    plain = rolled(accel.HybridEngine(models.llama().to(dtype), config={"exact": False}))
    assert torch.equal(rolled(engine, adapter=None).logprobs, plain.logprobs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_rollouts_values_are_trainings_but_for_a_rounding(kind):
    engine = accel.HybridEngine(KINDS[kind](models.llama()).to(torch.bfloat16), config=FUSED)
    made = rolled(engine)
    scored = engine.logprobs(made.sequences, made.attention_mask)[:, -6:]
    assert not torch.equal(made.logprobs, scored)
    assert "rounded once to the weights' dtype" in str(engine.plan)
    wide = accel.HybridEngine(KINDS[kind](models.llama()).double(), config=FUSED)
    made = rolled(wide)
    assert_agree(made.logprobs, wide.logprobs(made.sequences, made.attention_mask)[:, -6:].detach())


def test_adapters_that_are_active_at_once_are_fused_together():
    model = several(torch.float64)
    model.base_model.set_adapter(["default", "second"])
    engine = accel.HybridEngine(model, config=FUSED)
    made = rolled(engine)
    want = engine.logprobs(made.sequences, made.attention_mask)[:, -6:].detach()
    assert_agree(made.logprobs, want)


@pytest.fixture
def kept(monkeypatch):
    """How often weights were fused, and references to them."""
    made, fuse = [], lora._fuse

    def watched(weight, adapters):
        found = fuse(weight, adapters)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(lora, "_fuse", watched)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_fused_weights_last_as_long_as_their_rollout(kind, kept):
    engine = accel.HybridEngine(KINDS[kind](models.llama()), config=FUSED)
    for rollouts in (1, 2):
        rolled(engine)
        gc.collect()
        assert len(kept) % rollouts == 0
        assert {ref() for ref in kept} == {None}
    layers = len(kept) // 2
    with engine.generating():
        rolled(engine)
        rolled(engine)
        assert len(kept) == 3 * layers
        assert engine.plan.model.generate.fused.bytes > 0
    gc.collect()
    assert {ref() for ref in kept} == {None}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_rollout_that_is_stopped_leaves_nothing_behind(kind, error, kept):
    model = KINDS[kind](models.llama())
    engine = accel.HybridEngine(model, config=FUSED)
    want = rolled(engine)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = []

    def stop():
        steps.append(calls.current().fused.bytes)
        if len(steps) == 3:
            raise error
        return False

    with engine.generating(), pytest.raises(error):
        rolled(engine, abort=stop)
    assert steps[-1] > 0, "it was stopped while they were there"
    gc.collect()
    assert {ref() for ref in kept} == {None}
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(rolled(engine).logprobs, want.logprobs)


def test_a_changed_adapter_is_seen_by_the_next_fused_rollout():
    model = adapters.with_peft(models.llama())
    engine = accel.HybridEngine(model, config=FUSED)
    before = rolled(engine).logprobs
    adapters.drawn((p for n, p in model.named_parameters() if "lora_B" in n), seed=3)
    want = rolled(
        accel.HybridEngine(merged(model, models.llama()), config={"exact": False})
    ).logprobs
    assert torch.equal(rolled(engine).logprobs, want)
    assert not torch.equal(want, before)


def test_fusing_is_refused_by_an_exact_engine():
    with pytest.raises(ConfigError, match=r"fuse_lora=True.*exact=True refuses it"):
        accel.HybridEngineConfig(fuse_lora=True)


def test_a_copy_of_a_model_has_no_fused_weights_of_its_own():
    model = adapters.with_chat_lora(models.llama())
    engine = accel.HybridEngine(model, config=FUSED)
    with engine.generating():
        rolled(engine)
        other = copy.deepcopy(model)
        assert other.generate.fused.bytes == 0 < model.generate.fused.bytes
