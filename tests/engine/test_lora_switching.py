"""LoRA on and off, fused and beside, training and generating, a thousand times: nothing moves."""

import random
from contextlib import nullcontext

import adapters
import models
import pytest
import snapshots
import torch
from midway import IDS, MASK

import accel
from accel.deepspeed import DeepSpeedHybridEngine
from accel.engine.modules import lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT's
    pytest.mark.usefixtures("_one_thread"),
]
MODELS = {
    "PEFT": lambda: adapters.add_second(models.with_lora(models.llama())),
    "PEFT on a transposed weight": lambda: models.with_lora(models.gpt2()),
    "DeepSpeed-Chat": lambda: adapters.with_chat_lora(models.llama(), dropout=0.1),
}


def midway(model, **config):
    """An engine in bfloat16, where to add and to subtract would leave a trace, that has taken two
    steps and has gradients for the third."""
    model = model.to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "lora_" in name)
    learned = [p for p in model.parameters() if p.requires_grad]
    engine = DeepSpeedHybridEngine(
        None, model, torch.optim.AdamW(learned, lr=1e-2), config=accel.HybridEngineConfig(**config)
    ).train()
    torch.manual_seed(0)
    for step in range(3):
        engine.backward(engine(IDS, MASK, labels=IDS).loss)
        if step < 2:
            engine.step()
    return engine


def switch(engine, times):
    """Each time another mode, LoRA on or off in one of the ways there are, and a rollout."""
    drawn = random.Random(0)
    wrapped = hasattr(engine.model, "peft_config")
    for turn in range(times):
        engine.train() if turn % 2 else engine.eval()
        if not engine.config.exact:
            drawn.choice((engine.fuse_lora_weight, engine.unfuse_lora_weight))()
        off = wrapped and drawn.random() < 0.3
        adapter = drawn.choice(("active", None, *(engine.model.peft_config if wrapped else ())))
        with engine.model.disable_adapter() if off else nullcontext():
            engine.generate(IDS, MASK, max_new_tokens=drawn.randint(1, 2), adapter=adapter)
            if drawn.random() < 0.2:
                engine.logprobs(IDS, MASK, adapter=adapter)
    engine.unfuse_lora_weight()
    engine.train()


@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("exact", [True, False], ids=["on the fly", "fused"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_weights_and_optimizer_stay_what_they_were(make, exact, times, monkeypatch):
    fused, fuse = [], lora._fuse
    monkeypatch.setattr(lora, "_fuse", lambda *args: fused.append(1) or fuse(*args))
    engine = midway(make(), exact=exact)
    before = snapshots.training_state(engine)
    switch(engine, times)
    assert snapshots.changed(before, snapshots.training_state(engine)) == []
    assert bool(fused) is not exact


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_next_step_is_that_of_an_engine_that_never_switched(make):
    ends = []
    for times in (20, 0):
        engine = midway(make(), exact=False)
        switch(engine, times)
        torch.manual_seed(1)  # LoRA's dropout draws
        engine.backward(engine(IDS, MASK, labels=IDS).loss)
        engine.step()
        ends.append((snapshots.parameters(engine.model), engine.optimizer.state_dict()["state"]))
    assert snapshots.bits(ends[0][1]) == snapshots.bits(ends[1][1])
    assert ends[0][0] == ends[1][0]
