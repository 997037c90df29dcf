"""Which mixtures of experts are served, and why the others are not."""

from types import MethodType

import pytest
import snapshots
import torch
from measures import batch, hybrid, is_exact, scores, seeded
from mixtures import CASES, EXPERTS, FAMILIES, ROUTER, made
from peft import LoraConfig, get_peft_model
from test_against_transformers import close
from torch.nn.utils import parametrize

import accel
from accel.engine.forward import installed
from accel.errors import UnsupportedModelError

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_a_plan_asks_for_the_ops_of_the_layers_there_are(case):
    plan = accel.plan(made(case))
    assert {"grouped_linear", "softmax"} <= plan.served_by.keys()
    dense = any("decoder_sparse_step" in own or "mlp_only_layers" in own for own in CASES[case][1:])
    assert ("gated_linear" in plan.served_by) is dense


def test_every_parameter_is_read_by_its_owner_and_restore_leaves_no_trace():
    model = made("qwen3_moe dense at the end")
    before = snapshots.modules(model)
    accel.hybridize(model)
    assert all(installed(module) for module in model.modules() if module._parameters)
    accel.restore(model)
    assert snapshots.changed(before, snapshots.modules(model)) == []


def with_adapters(family, **where):
    return get_peft_model(made(family), LoraConfig(r=2, init_lora_weights=False, **where))


def test_adapters_on_attention_are_served(family):
    model = with_adapters(family, target_modules=["q_proj", "v_proj", "o_proj"])
    theirs = model(input_ids=seeded((2, 9))).logits
    engine = accel.HybridEngine(model)
    assert close(model(input_ids=seeded((2, 9))).logits, theirs)
    assert is_exact(model)
    ids, mask = batch()
    assert torch.equal(engine.logprobs(ids, mask, adapter=None), scores(hybrid(made(family))))
    engine.train()
    engine.backward(engine(ids, mask, labels=ids).loss)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


class Halved(torch.nn.Module):
    """A parametrization, as some libraries quantise with."""

    def forward(self, weight):
        return weight / 2


def own_forward(module):
    module.forward = MethodType(lambda self, *args: args[0], module)


def parametrized(module):
    parametrize.register_parametrization(module, "down_proj", Halved())


def packed(module):
    integers = module.down_proj.data.to(torch.int8)
    module.down_proj = torch.nn.Parameter(integers, requires_grad=False)


def shared(module):
    module._is_expert_parallel = True


def changed(path, change):
    model = made("qwen3_moe")
    change(model.get_submodule(path))
    return model


def made_otherwise(**config):
    """The configuration says something else than what the model was made by."""
    model = made("qwen3_moe")
    vars(model.config).update(config)
    return model


REFUSED = {
    "LoRA on experts": (
        lambda: with_adapters("mixtral", target_parameters=["mlp.experts.down_proj"]),
        rf"{EXPERTS} to be without LoRA.*target_modules",
    ),
    "LoRA on routers": (
        lambda: with_adapters("mixtral", target_parameters=["mlp.gate.weight"]),
        rf"{ROUTER} to be without LoRA",
    ),
    "router's forward": (lambda: changed(ROUTER, own_forward), rf"{ROUTER} .*a forward of its own"),
    "experts' forward": (lambda: changed(EXPERTS, own_forward), rf"{EXPERTS} .*of its own"),
    "parametrized": (lambda: changed(EXPERTS, parametrized), rf"{EXPERTS} .*down_proj, found none"),
    "quantised": (lambda: changed(EXPERTS, packed), rf"{EXPERTS} .*down_proj, found int8"),
    "shared": (lambda: changed(EXPERTS, shared), rf"{EXPERTS} to be all experts"),
    "dense where experts are": (lambda: made_otherwise(mlp_only_layers=[0]), r"mlp\.gate_proj"),
    "activation": (lambda: made("mixtral", hidden_act="tanh"), r"\[activation\].*found tanh"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_what_the_spec_takes_it_for_is_refused(make, says):
    with pytest.raises(UnsupportedModelError, match=f"(?s){says}"):
        accel.hybridize(make())
