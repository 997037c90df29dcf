"""A model that cannot be served whole is refused, with every reason, and left as it was."""

import re
import types

import models
import pytest
import snapshots
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import CTRLConfig, CTRLLMHeadModel
from transformers.models.llama import modeling_llama

import accel
from accel import ops, testing
from accel.errors import UnsupportedModelError

ROPE = {"rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
QUERY = {"target_modules": ["q_proj"]}


def rope(kind, **more):
    return models.llama(rope_parameters={"rope_type": kind, **ROPE, **more})


def ctrl():
    return CTRLLMHeadModel(CTRLConfig(vocab_size=97, n_embd=16, dff=16, n_layer=1, n_head=2))


class OtherMlp(modeling_llama.LlamaMLP):
    def forward(self, x):
        return 2 * super().forward(x)


class OtherLayer(modeling_llama.LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        return super().forward(hidden_states, **kwargs)


class SameMlp(modeling_llama.LlamaMLP):
    """A subclass for its own reasons, with the forward it inherits."""


class SameLayer(modeling_llama.LlamaDecoderLayer):
    """As :class:`SameMlp`; transformers wraps the forward of every subclass of a layer."""


class Linear4bit(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class Packed(nn.Module):
    """A projection that keeps something else than a weight."""

    def forward(self, x):
        return x


class OtherEmbedding(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids)


def changed(change, maker=models.llama, **config):
    model = maker(**config)
    change(model)
    return model


def typed(path, kind):
    """A change: the module is of another class."""

    def change(model):
        model.get_submodule(path).__class__ = kind

    return change


def placed(path, module):
    """A change: another module stands there."""
    return lambda model: model.set_submodule(path, module)


def own_forward(model):
    model.model.norm.forward = types.MethodType(lambda self, x: x, model.model.norm)


def half_in_16_bits(model):
    model.lm_head.to(torch.bfloat16)


def tuned(config, **model):
    return get_peft_model(models.llama(**model), config)


MLP, QUERIES = "model.layers.1.mlp", "model.layers.0.self_attn.q_proj"
REFUSED = {
    "architecture": (ctrl, r"\[architecture\].*gpt2, .*llama.*CTRLLMHeadModel.*accel_policies"),
    "no model": (lambda: nn.Linear(2, 2), r"\[architecture\].*Linear"),
    "meta": (lambda: models.llama().to("meta"), r"\[device\].*with values, found meta"),
    "dtypes": (lambda: changed(half_in_16_bits), r"\[dtype\].*found bfloat16, float32"),
    "mlp": (lambda: changed(typed(MLP, OtherMlp)), rf"{MLP} to be .*OtherMlp"),
    "layer": (
        lambda: changed(typed("model.layers.0", OtherLayer)), r"model.layers.0 to be .*OtherLayer"
    ),
    "forward": (lambda: changed(own_forward), r"model\.norm .*a forward of its own"),
    "embedding": (
        lambda: changed(typed("model.embed_tokens", OtherEmbedding)),
        r"model.embed_tokens .*OtherEmbedding",
    ),
    "quantised": (lambda: changed(typed(QUERIES, Linear4bit)), rf"{QUERIES} .*Linear4bit"),
    "packed": (lambda: changed(placed(QUERIES, Packed())), rf"{QUERIES} .*Packed"),
    "dynamic": (lambda: rope("dynamic"), r"\[rotary\].*'dynamic'.*longest"),
    "longrope": (lambda: rope("longrope", **LONG), r"\[rotary\].*'longrope'"),
    "activation": (lambda: models.llama(hidden_act="tanh"), r"\[activation\].*silu.*found tanh"),
    "split": (lambda: models.llama(pretraining_tp=2), r"pretraining_tp=1, found 2"),
    "cross": (
        lambda: models.gpt2(add_cross_attention=True), r"add_cross_attention=False, found True"
    ),
    "bloom": (lambda: models.small("bloom", slow_but_exact=True), "slow_but_exact=False"),
    "gemma2": (
        lambda: models.small("gemma2", use_bidirectional_attention=True), r"attention.*found True"
    ),
    "falcon": (
        lambda: models.small(
            "falcon", new_decoder_architecture=False, parallel_attn=False, num_kv_heads=4,
            multi_query=False, hidden_dropout=0.1,
        ),
        r"\[hidden_dropout\].*found 0.1",
    ),
    "opt": (lambda: models.small("opt", layerdrop=0.1), r"layerdrop=0.0, found 0.1"),
    "DoRA": (lambda: tuned(LoraConfig(**QUERY, use_dora=True)), rf"{QUERIES} .*plain LoRA.*varia"),
    "IA3": (
        lambda: tuned(IA3Config(**QUERY, feedforward_modules=[])), rf"{QUERIES} .*peft.tuners.ia3"
    ),
    "saved": (lambda: tuned(LoraConfig(**QUERY, modules_to_save=["lm_head"])), "lm_head .*ToSave"),
    "prompt": (
        lambda: tuned(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        r"\[adapter\].*prompt learning",
    ),
    "prefix": (
        lambda: tuned(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        r"\[adapter\].*prompt learning",
    ),
    "float64": (lambda: models.llama().double(), r"\[attention\].*float64.*exact=False"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_cannot_be_served_is_refused_and_left_alone(make, says):
    model = make()
    before = snapshots.modules(model)
    plan = accel.plan(model)
    assert not plan.accepted
    with pytest.raises(UnsupportedModelError, match=f"(?s){says}") as refused:
        accel.hybridize(model)
    assert str(refused.value) == str(plan)
    assert before == snapshots.modules(model)


@pytest.mark.parametrize(
    ("path", "kind"), [(MLP, SameMlp), ("model.layers.0", SameLayer)], ids=["mlp", "layer"]
)
def test_a_subclass_with_the_forward_it_inherits_is_served(path, kind):
    assert accel.plan(changed(typed(path, kind))).accepted


def test_every_reason_is_listed():
    model = changed(own_forward)
    for change in (typed(MLP, OtherMlp), placed(QUERIES, Packed()), half_in_16_bits):
        change(model)
    found = accel.plan(model).refusals
    assert [refusal.code for refusal in found] == ["module", "module", "module", "dtype"]
    for path in ("model.norm", MLP, QUERIES):
        assert sum(refusal.want.startswith(f"{path} ") for refusal in found) == 1


def test_settings_are_listed_together():
    found = accel.plan(models.llama(hidden_act="tanh", pretraining_tp=2)).refusals
    assert [refusal.code for refusal in found] == ["pretraining_tp", "activation"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_without_shape_invariant_kernels_exact_is_refused_op_by_op(name):
    """The core's own implementations are chosen by shape, but for embedding's copy."""
    model = models.MAKERS[name]()
    with testing.installed(testing.fake_backend()):
        loose = accel.plan(model, accel.HybridEngineConfig(exact=False))
        assert loose.accepted
        assert set(loose.served_by.values()) == {"torch"}
        assert re.search(r"exact=False: .*linear by torch \(exact: none\).*may differ", str(loose))
        plan = accel.plan(model)
        refused = {refusal.code for refusal in plan.refusals}
        assert {"linear", "attention", "logprob"} <= refused <= set(loose.served_by)
        assert all("exact=False" in refusal.remedy for refusal in plan.refusals)
        engine = accel.HybridEngine(model, config={"exact": False})
        assert engine.generate(torch.ones(1, 3, dtype=torch.int64), max_new_tokens=2).shape == (
            1,
            5,
        )


def test_a_plan_says_where_not_to_be_exact_changes_nothing(llama):
    """Implementations are the same wherever the shape-invariant ones are the fastest, too."""
    model = llama()
    loose, exact = (accel.plan(model, {"exact": exact}) for exact in (False, True))
    assert loose.served_by == exact.served_by
    assert "exact=False: here it changes no implementation" in str(loose)
    assert "exact=False" not in str(exact)


def test_an_order_for_another_implementation_is_refused_where_exact(llama):
    with ops.use("linear=torch"):
        (refusal,) = accel.plan(llama()).refusals
        assert refusal.code == "linear"
        assert accel.plan(llama(), accel.HybridEngineConfig(exact=False)).accepted


def test_float64_is_served_where_exact_is_not_asked_for(llama):
    model = llama().double()
    ids = torch.arange(8)[None]
    want = model(ids).logits
    accel.hybridize(model, accel.HybridEngineConfig(exact=False))
    found = model(ids).logits
    assert found.dtype is torch.float64
    # transformers has angles and norms in fp32 there too: the error is that of some of those.
    assert (found - want).abs().max() <= 64 * 2**-24 * want.abs().max()
