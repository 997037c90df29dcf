"""What the cache holds for the next rollout is forgotten, with the reason, once anything that it
depends on is another."""

import copy
import pickle
import re

import adapters
import models
import pytest
import snapshots
import torch
from measures import seeded
from torch.nn.modules.module import register_module_forward_hook
from turns import ASKED, again, assert_same, engine_of, first

import accel
from accel.errors import UnsupportedCapability

pytestmark = pytest.mark.usefixtures("_one_thread")


def touched(engine):
    with torch.no_grad():
        engine.model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1e-3  # moves no version


def flipped(engine):
    engine.model.model.norm.weight.data.neg_()


def exchanged(engine):
    """Rows of which the sum, and the exclusive or, stay the same."""
    weight = engine.model.model.embed_tokens.weight
    weight.data[[5, 6]] = weight.data[[6, 5]].clone()


def turned(engine):
    engine.model.model.rotary_emb.inv_freq[0] *= 2


def trained(engine):
    ids = seeded((2, 8))
    engine.backward(engine(ids, labels=ids).loss)
    engine.step()


def released(engine):
    engine.release_cache()


def between(engine):
    engine.generate(seeded((1, 4)), max_new_tokens=2)


CHANGED = {
    touched: r"layers\.1\.mlp\.up_proj\.weight has changed", flipped: "norm.weight has changed",
    exchanged: "embed_tokens.weight has changed", turned: "inv_freq has changed",
    trained: "has changed", released: "came right before", between: "came right before",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"), CHANGED.items(), ids=[change.__name__ for change in CHANGED]
)
def test_it_is_forgotten_once_anything_is_another(change, says):
    model = models.llama()
    engine = engine_of(model, torch.optim.SGD(model.parameters(), lr=0.1), check_exact=True)
    roll = first(engine)
    change(engine)
    made = again(engine, roll)
    assert made.reused == 0
    assert re.search(says, made.not_reused)
    assert again(engine, roll).reused == 3 * 16, "of that one"


def scaled(engine):
    for module in engine.model.modules():
        if hasattr(module, "lora_A"):
            module.scaling.update({name: 2 * scale for name, scale in module.scaling.items()})


@pytest.mark.parametrize(
    ("change", "asked"),
    [(scaled, {}), (lambda engine: None, {"adapter": None}),
     (lambda engine: engine.model.base_model.set_adapter("second"), {})],
    ids=["scaled", "none", "another"],
)  # fmt: skip
def test_it_is_forgotten_once_other_adapters_act(change, asked):
    engine = engine_of(adapters.several(), check_exact=True)
    roll = first(engine)
    assert again(engine, roll).reused
    first(engine)
    change(engine)
    made = again(engine, roll, **asked)
    assert (made.reused, "LoRA adapters" in made.not_reused) == (0, True)


def test_it_is_forgotten_once_other_implementations_serve():
    engine = engine_of()
    roll = first(engine)
    with accel.ops.use("rms_norm=reference"):
        made = again(engine, roll)
    assert (made.reused, made.not_reused) == (0, "other implementations serve")


def louder(module, given, found):
    return found * 1.5


def hooked(engine):
    """What takes it away again."""
    return engine.model.model.layers[0].register_forward_hook(louder).remove


def hooked_everywhere(engine):
    return register_module_forward_hook(lambda *given: None).remove


@pytest.mark.parametrize("change", [hooked, hooked_everywhere], ids=lambda c: c.__name__)
def test_it_is_forgotten_once_there_are_other_hooks(change):
    engine = engine_of(models.llama(initializer_range=0.15), check_exact=True)
    roll = first(engine)
    undo = change(engine)
    try:
        made = again(engine, roll)
        assert (made.reused, "other hooks" in made.not_reused) == (0, True)
        assert again(engine, roll).reused == 3 * 16
    finally:
        undo()
    assert "other hooks" in again(engine, roll).not_reused


@pytest.mark.parametrize(
    "config",
    [{"rollout_weights": "int8"}, {"fuse_lora": True}, {"fuse_lora": True,
     "rollout_weights": "int4"}],
    ids=["int8", "fused", "both"],
)  # fmt: skip
def test_copies_of_weights_are_what_made_it(config):
    model = adapters.with_peft(models.llama(initializer_range=0.15))
    engine = engine_of(model, exact=False, **config)
    with engine.generating():
        roll = first(engine)
        made = again(engine, roll)
        assert made.reused == 3 * 14
        engine.release_cache()
        assert_same(made, again(engine, roll))
        with torch.no_grad():  # kept copies are of the moment before, what has none is not
            model.base_model.model.model.norm.weight.data *= 2
        assert "norm.weight has changed" in again(engine, roll).not_reused
        for kept in (engine.plan.model.generate.fused, engine.plan.model.generate.quantized):
            if kept is not None:
                kept.clear()
                assert "other copies" in again(engine, roll).not_reused
    assert "came right before" in again(engine, roll).not_reused  # given back at the end
    assert again(engine, roll).reused == 3 * 16  # copies anew, of the same parameters


class Stopped(Exception):
    pass


def test_a_rollout_that_is_stopped_leaves_nothing_to_reuse():
    model = models.llama()
    engine = engine_of(model, torch.optim.AdamW(model.parameters()), check_exact=True)
    roll, before = first(engine), snapshots.training_state(engine)

    def stop():
        if engine.model.generate.cache.lengths.max() > 16:
            raise Stopped
        return False

    with pytest.raises(Stopped):
        again(engine, roll, abort=stop)
    assert snapshots.changed(before, snapshots.training_state(engine)) == []
    assert "came right before" in again(engine, roll).not_reused


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_aborted_rollout_can_be_gone_on_from(steps):
    engine, left = engine_of(check_exact=True), [steps]

    def abort():
        left[0] -= 1
        return left[0] < 0

    roll = first(engine, abort=abort)
    assert roll.aborted
    made = again(engine, roll)
    assert made.reused == (3 * (9 + steps - 1) if steps else 0)


def test_moving_that_fails_leaves_an_empty_cache(monkeypatch):
    engine = engine_of()
    roll = first(engine)
    want, moved = engine_of().generate(roll.sequences, **{**ASKED, "max_new_tokens": 90}), []
    index_copy = torch.Tensor.index_copy_

    def failing(self, *given):
        moved.append(self)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return index_copy(self, *given)

    longer = {**ASKED, "max_new_tokens": 90, "reuse_prefix": True}
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "index_copy_", failing)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(roll.sequences, **longer)
    assert engine.model.generate.cache.bytes == 0
    made = engine.generate(roll.sequences, **longer)
    assert_same(made, want)


def test_copies_of_the_model_have_nothing_to_reuse():
    engine = engine_of()
    roll = first(engine)
    for copied in (copy.deepcopy(engine.model), pickle.loads(pickle.dumps(engine.model))):
        made = copied.generate(roll.sequences, reuse_prefix=True, **ASKED)
        assert (made.reused, copied.generate.reused) == (0, 0)
        assert_same(made, engine_of().generate(roll.sequences, **ASKED))


def test_it_is_refused_by_name_where_nothing_could_be_kept(monkeypatch):
    engine = engine_of(release_inference_cache=True)
    with pytest.raises(UnsupportedCapability, match=r"reuse_prefix.*release_inference_cache"):
        first(engine)
    with engine.generating():
        roll = first(engine)
        assert again(engine, roll).reused
    engine = engine_of()
    embeds = engine.model.get_input_embeddings()(seeded((2, 4))).detach()
    with pytest.raises(UnsupportedCapability, match=r"reuse_prefix.*found inputs_embeds"):
        engine.generate(inputs_embeds=embeds, reuse_prefix=True, **ASKED)
    with pytest.raises(UnsupportedCapability, match="does not take reuse_prefix"):
        first(engine, num_beams=2, fallback="transformers", return_logprobs=False)
    monkeypatch.setattr(engine.model.lm_head.weight, "ds_id", 0, raising=False)
    with pytest.raises(UnsupportedCapability, match=r"lm_head\.weight is sharded"):
        first(engine)
