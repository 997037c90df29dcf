"""Gradients of micro batches, their clipping, the step behind them: torch's own, bitwise."""

import models
import pytest
import snapshots
import torch
from midway import IDS, MASK

import accel
from accel.errors import ConfigError, NonFiniteError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT's
    pytest.mark.usefixtures("_one_thread"),
]
STEPS = 3


def made(lora=False, **settings):
    """An engine that trains, with a schedule; its learning rate halves with each update."""
    model = models.llama()
    model = models.with_lora(model) if lora else model
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    return accel.HybridEngine(model, optimizer, settings, schedule).train()


def batches(count=STEPS):
    drawn = torch.Generator().manual_seed(0)
    return [torch.randint(models.VOCAB, (2, 8), generator=drawn) for _ in range(count)]


def gradients(engine):
    return [p.grad.clone() for p in engine.model.parameters() if p.grad is not None]


def one_update(engine, scale=1.0):
    for ids in batches(engine.config.gradient_accumulation_steps):
        engine.backward(engine(ids, labels=ids).loss * scale)
        engine.step()


def by_hand(steps, clipping=None, scale=1.0):
    """torch's own loop over the same forwards: (the update's gradients, their norm, the engine)"""
    engine = made()
    for ids in batches(steps):
        (engine(ids, labels=ids).loss * scale / steps).backward()
    found = gradients(engine)
    norm = torch.nn.utils.clip_grad_norm_(engine.model.parameters(), clipping or float("inf"))
    engine.optimizer.step()
    return found, norm, engine


@pytest.mark.parametrize("steps", [1, STEPS])
def test_gradients_are_those_of_torch_s_own_loop(steps):
    engine = made(gradient_accumulation_steps=steps)
    *before, last = batches(steps)
    for ids in before:
        engine.backward(engine(ids, labels=ids).loss)
        engine.step()
    engine.backward(engine(last, labels=last).loss)
    want, _, reference = by_hand(steps)
    assert all(map(torch.equal, gradients(engine), want))
    engine.step()
    assert all(map(torch.equal, engine.model.parameters(), reference.model.parameters()))


def test_nothing_is_updated_before_the_boundary():
    engine = made(gradient_accumulation_steps=STEPS)
    for update in range(2):
        before = snapshots.bits([*engine.model.parameters()])
        for position, ids in enumerate(batches()):
            assert engine.is_gradient_accumulation_boundary() == (position == STEPS - 1)
            assert snapshots.bits([*engine.model.parameters()]) == before
            assert engine.global_steps == update
            assert engine.get_lr() == [1e-2 * 0.5**update]
            engine.backward(engine(ids, labels=ids).loss)
            engine.step()
        assert snapshots.bits([*engine.model.parameters()]) != before
        assert not gradients(engine)


@pytest.mark.parametrize("scale", [1e-3, 100.0], ids=["below the norm", "above it"])
def test_clipping_is_torch_s(scale):
    engine = made(gradient_accumulation_steps=STEPS, gradient_clipping=0.5)
    one_update(engine, scale)
    _, norm, reference = by_hand(STEPS, 0.5, scale)
    assert engine.global_grad_norm == float(norm)
    assert (norm > 0.5) == (scale > 1)
    assert all(map(torch.equal, engine.model.parameters(), reference.model.parameters()))


def test_the_norm_is_told_where_nothing_is_clipped():
    engine = made()
    assert engine.global_grad_norm is None
    one_update(engine)
    assert engine.global_grad_norm == float(by_hand(1)[1])


def test_generating_amid_accumulation_changes_nothing():
    engine, other = (made(lora=True, gradient_accumulation_steps=2) for _ in range(2))
    for each in (engine, other):
        torch.manual_seed(0)  # LoRA's dropout draws
        for ids in batches(2):
            each.backward(each(ids, labels=ids).loss)
            if each is engine:
                before = snapshots.training_state(engine)
                engine.generate(IDS, MASK, max_new_tokens=3, do_sample=True)
                engine.logprobs(IDS, MASK)
                assert snapshots.changed(before, snapshots.training_state(engine)) == []
            each.step()
    assert engine.global_steps == 1
    assert snapshots.parameters(engine.model) == snapshots.parameters(other.model)


# -- what is not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_before_anything_is_added(value):
    engine = made(gradient_accumulation_steps=2)
    ids = batches()[0]
    engine.backward(engine(ids, labels=ids).loss)
    before = snapshots.training_state(engine)
    with pytest.raises(NonFiniteError, match=f"the loss is {value}"):
        engine.backward(engine(ids, labels=ids).loss * value)
    assert snapshots.changed(before, snapshots.training_state(engine)) == []


@pytest.mark.parametrize("settings", [{}, {"gradient_clipping": 1.0}])
def test_gradients_that_are_not_finite_are_dropped_with_a_word(settings):
    engine = made(gradient_accumulation_steps=2, **settings)
    one_update(engine)
    before = snapshots.training_state(engine), engine.global_steps, engine.get_lr()
    first, second = batches(2)
    engine.backward(engine(first, labels=first).loss)
    engine.step()
    engine.backward(engine(second, labels=second).loss)
    engine.model.lm_head.weight.grad[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match=r"norm is nan: not finite in lm_head\.weight; they"):
        engine.step()
    after = snapshots.training_state(engine), engine.global_steps, engine.get_lr()
    assert snapshots.changed(before[0], after[0]) == []
    assert before[1:] == after[1:]
    one_update(engine)  # accumulation has begun again
    assert engine.global_steps == 2


def test_gradients_can_be_dropped_by_hand():
    engine = made(gradient_accumulation_steps=2)
    ids = batches()[0]
    engine.backward(engine(ids, labels=ids).loss)
    engine.step()
    engine.zero_grad()
    assert not gradients(engine)
    assert not engine.is_gradient_accumulation_boundary()


# -- settings ----------------------------------------------------------------------------------


def test_a_scheduler_is_told_what_step_is_told():
    engine = made()
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(engine.optimizer, factor=0.5, patience=0)
    engine = accel.HybridEngine(engine.model, engine.optimizer, lr_scheduler=schedule)
    for metrics in (1.0, 2.0):
        ids = batches()[0]
        engine.backward(engine(ids, labels=ids).loss)
        engine.step({"metrics": metrics})
    assert engine.get_lr() == [0.5e-2]


BAD = [
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a positive int"),
    ({"gradient_clipping": 0.0}, "gradient_clipping must be a positive norm or None, not 0.0"),
    ({"gradient_clipping": float("nan")}, "gradient_clipping must be"),
    ({"gradient_clipping": "1.0"}, "gradient_clipping must be"),
    ({"master_weights": "fp32"}, "master_weights must be True or False"),
]


@pytest.mark.parametrize(("settings", "says"), BAD, ids=str)
def test_a_bad_setting_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        accel.HybridEngineConfig(**settings)


def test_deepspeed_s_whole_configuration_is_read():
    config = accel.HybridEngineConfig.from_deepspeed({
        "gradient_accumulation_steps": 4, "gradient_clipping": 1.0, "bf16": {"enabled": True},
        "hybrid_engine": {"enabled": True, "max_out_tokens": 512},
    })  # fmt: skip
    assert config == accel.HybridEngineConfig(
        gradient_accumulation_steps=4, gradient_clipping=1.0, master_weights=True,
        max_out_tokens=512,
    )  # fmt: skip
    off = {"gradient_clipping": 0.0, "bf16": {"enabled": False}}
    assert accel.HybridEngineConfig.from_deepspeed(off) == accel.HybridEngineConfig()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"zero_optimization": {"stage": 3}}, "unknown setting 'zero_optimization'"),
        ({"fp16": {"enabled": True}}, "unknown setting 'fp16'; did you mean 'bf16'"),
        ({"bf16": {"immediate_grad_update": True}}, "unknown setting 'immediate_grad_update'"),
        ({"gradient_clipping": -1}, "gradient_clipping must be a positive norm"),
    ],
    ids=str,
)
def test_what_else_is_in_it_is_refused_by_name(settings, says):
    with pytest.raises(ConfigError, match=says):
        accel.HybridEngineConfig.from_deepspeed(settings)
