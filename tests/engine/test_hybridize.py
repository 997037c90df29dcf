"""hybridize, plan and restore: what is replaced and shown, and undone without a trace."""

import copy

import models
import pytest
import snapshots
import torch
from measures import batch, is_exact, rollout, scores, seeded
from peft import LoraConfig

import accel
from accel import testing
from accel.engine.forward import installed
from accel.engine.policies.llama import LlamaPolicy
from accel.errors import ConfigError, PluginError, UnsupportedCapability, UnsupportedModelError

CONFIG = accel.HybridEngineConfig()
LORA = LoraConfig(r=4, target_modules=["q_proj", "c_attn"])


def state(model):
    return {"modules": snapshots.modules(model), "parameters": snapshots.parameters(model)}


# -- the plan ----------------------------------------------------------------------------------


def test_a_plan_changes_nothing_and_prints_every_replacement(model):
    before = state(model)
    plan = accel.plan(model)
    assert snapshots.changed(before, state(model)) == []
    assert plan.accepted
    printed = str(plan).splitlines()
    for replacement in plan.replacements:
        kind = type(replacement.forward).__name__
        assert any(replacement.path in line and line.endswith(kind) for line in printed)
    for op, impl in plan.served_by.items():
        assert any(line.split() == [op, impl] for line in printed)


def test_what_a_plan_lists_is_what_is_replaced(model):
    plan = accel.hybridize(model)
    listed = {plan.model.get_submodule(r.path) for r in plan.replacements}
    assert listed == {module for module in model.modules() if installed(module)}
    owners = {m for m in model.modules() if m._parameters}
    assert owners <= listed, "no parameter is read but by its owner's forward"


def test_a_plan_says_that_dropout_makes_a_training_step_differ(gpt2):
    assert "dropout" in str(accel.plan(gpt2(resid_pdrop=0.1)))
    assert "dropout" not in str(accel.plan(gpt2()))


@pytest.mark.parametrize(
    ("setting", "value"), [("pin_parameters", False), ("tp_gather_partition_size", 16)]
)
def test_a_plan_says_which_settings_have_no_effect(llama, setting, value):
    config = accel.HybridEngineConfig(**{setting: value})
    (note,) = accel.plan(llama(), config).notes
    assert note.startswith(f"{setting}: without effect")
    assert accel.plan(llama(), CONFIG).notes == ()


# -- undone ------------------------------------------------------------------------------------


def test_restore_leaves_no_trace(model):
    before = state(model)
    inner = accel.hybridize(model).model  # whose generate changes nothing; PEFT's around it does
    rollout(inner)
    assert snapshots.changed(before, state(model)) != []
    accel.restore(model)
    assert snapshots.changed(before, state(model)) == []


def test_restore_of_a_model_that_is_not_hybridized_does_nothing(model):
    before = state(model)
    accel.restore(model)
    assert snapshots.changed(before, state(model)) == []


def test_hybridize_may_be_called_again(model):
    before = state(model)
    first = accel.hybridize(model)
    want = scores(model)
    second = accel.hybridize(model)
    assert [r.path for r in first.replacements] == [r.path for r in second.replacements]
    assert torch.equal(scores(model), want)
    accel.restore(model)
    assert snapshots.changed(before, state(model)) == []


def test_an_engine_whose_model_was_restored_says_so(llama):
    engine = accel.HybridEngine(llama())
    accel.restore(engine.model)
    for call in (engine.generate, engine.logprobs):
        with pytest.raises(UnsupportedModelError, match=r"restore.*hybridize"):
            call(batch()[0])


def test_an_engine_that_is_not_enabled_leaves_the_model_to_itself(llama):
    model = llama()
    before = state(model)
    engine = accel.HybridEngine(model, config={"enabled": False})
    assert snapshots.changed(before, state(model)) == []
    assert engine.plan is None
    with pytest.raises(UnsupportedModelError, match="enabled=False"):
        engine.generate(batch()[0])


# -- changes made outside ----------------------------------------------------------------------


def with_adapter(model):
    from peft import get_peft_model

    get_peft_model(model, LORA)


def with_new_head(model):
    model.lm_head = torch.nn.Linear(64, 97, bias=False)


def with_another_size(model):
    model.resize_token_embeddings(120)


def with_new_layers(model):
    spec = accel.plan(model).spec
    layers = model.get_submodule(spec.layers)
    layers[1] = copy.deepcopy(layers[0])
    for module in layers[1].modules():
        vars(module).pop("forward", None)


CHANGES = [with_adapter, with_new_head, with_new_layers]
CHANGED = [(name, change) for name in models.MAKERS for change in CHANGES]


@pytest.mark.parametrize(("name", "change"), [*CHANGED, ("llama", with_another_size)])
def test_a_model_changed_since_is_refused_until_it_is_hybridized_again(name, change):
    engine = accel.HybridEngine(models.MAKERS[name]())
    change(engine.model)
    ids = batch()[0]
    for call in (engine.generate, engine.logprobs, engine):
        with pytest.raises(UnsupportedModelError, match=r"call accel\.hybridize\(model\) again"):
            call(ids)
    accel.hybridize(engine.model)
    assert is_exact(engine.model)


def test_a_vocabulary_resized_in_place_is_served(gpt2):
    """transformers keeps the modules of tied embeddings, and only makes their table longer."""
    model = gpt2()
    accel.hybridize(model)
    with_another_size(model)
    assert model(batch()[0]).logits.shape[-1] == 120
    assert is_exact(model)


def test_an_adapter_added_to_others_serves_once_hybridized(llama):
    model = models.with_lora(llama())
    engine = accel.HybridEngine(model)
    base = engine.logprobs(batch()[0])
    model.add_adapter("second", LORA)
    for name, parameter in model.named_parameters():
        if "lora_B.second" in name:
            torch.nn.init.normal_(parameter)
    accel.hybridize(model)
    assert torch.equal(engine.logprobs(batch()[0]), base)
    assert not torch.equal(engine.logprobs(batch()[0], adapter="second"), base)
    model.set_adapter("second")
    assert is_exact(model)


def test_state_dict_is_what_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accel.hybridize(model)
    rollout(model)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loaded_state_dict_is_seen_by_the_next_rollout(model):
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    accel.hybridize(model)
    rollout(model)
    model.load_state_dict(other.state_dict())
    accel.hybridize(other)
    assert torch.equal(rollout(model).logprobs, rollout(other).logprobs)


def test_a_weight_written_through_data_is_seen_by_the_next_rollout(model):
    """Nothing trusts a version counter, which such a write does not move."""
    accel.hybridize(model)
    rollout(model)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    made = rollout(model)
    assert torch.equal(made.logprobs, rollout(copy.deepcopy(model)).logprobs)
    assert is_exact(model)


# -- what the forward does not take ------------------------------------------------------------

UNSERVED = {"past_key_values": object(), "use_cache": True, "output_attentions": True}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("argument", "value"), UNSERVED.items())
def test_the_forward_refuses_by_name_what_it_cannot_do(name, argument, value):
    engine = accel.HybridEngine(models.MAKERS[name]())
    with pytest.raises(UnsupportedCapability, match=argument):
        engine(seeded((1, 4)), **{argument: value})
    for nothing in (None, False):
        assert engine(seeded((1, 4)), **{argument: nothing}).logits is not None


# -- policies of plugins -----------------------------------------------------------------------


class Foreign(LlamaPolicy):
    """Reads a class the core does not know."""

    name = "foreign"
    model = "Stranger"
    source = __name__


def stranger(model):
    """The model as one of a class of its own, defined here."""
    base = type(model)
    model.__class__ = type("Stranger", (base,), {"__module__": __name__})
    return model


@accel.hookimpl
def accel_policies():
    return [Foreign]


def test_a_policy_of_a_plugin_serves_its_own_class(llama):
    plugin = testing.fake_backend()
    plugin.accel_policies = accel_policies
    loose = accel.HybridEngineConfig(exact=False)
    with testing.installed(plugin):
        plan = accel.plan(stranger(llama()), loose)
        assert plan.policy.name == "foreign"
        assert accel.plan(llama(), loose).policy.name == "llama"
    with testing.installed(testing.fake_backend()):
        assert accel.plan(stranger(llama()), loose).policy.name == "llama"


class NoPolicy:
    """What somebody took for one."""


def test_a_class_that_is_no_policy_is_refused_with_its_plugin(llama):
    plugin = testing.fake_backend("careless")
    plugin.accel_policies = accel.hookimpl(lambda: [NoPolicy])
    with (
        testing.installed(plugin),
        pytest.raises(PluginError, match=r"'careless'.*accel\.ModelPolicy.*NoPolicy"),
    ):
        accel.plan(llama())


@pytest.mark.parametrize("take", [accel.plan, accel.hybridize])
def test_a_dict_may_stand_for_the_configuration(llama, take):
    with pytest.raises(ConfigError, match="exakt"):
        take(llama(), {"exakt": False})
    assert take(llama(), {"exact": False}).served_by
