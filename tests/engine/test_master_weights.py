"""Master weights: what 16 bits would swallow is kept, and the optimizer is found as it was made."""

import models
import pytest
import snapshots
import torch

import accel

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT's
    pytest.mark.usefixtures("_one_thread"),
]
HALVES = [torch.bfloat16, torch.float16]
IDS = torch.randint(models.VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))


def made(dtype=torch.bfloat16, optimizer=torch.optim.AdamW, lr=1e-6, **settings):
    model = models.llama().to(dtype)
    settings = {"master_weights": True, **settings}
    return accel.HybridEngine(model, optimizer(model.parameters(), lr=lr), settings).train()


def backward(engine):
    return engine.backward(engine(IDS, labels=IDS).loss)


def masters(engine):
    return engine._optimization.masters.of(dict(engine.model.named_parameters()))


@pytest.mark.parametrize("dtype", HALVES)
def test_updates_too_small_for_16_bits_are_not_lost(dtype):
    steps, rate = 40, 2**-14  # of gradients of one: a quarter of float16's spacing below 1/2
    start = torch.full((64,), 0.5, dtype=dtype)
    engine = made(dtype, torch.optim.SGD, rate)
    weight = engine.model.model.norm.weight
    weight.data.copy_(start)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        engine.step()
    exact = 0.5 - steps * rate
    assert masters(engine)["model.norm.weight"].double().tolist() == [exact] * 64
    assert torch.equal(weight, torch.full((64,), exact).to(dtype))
    assert not torch.equal(weight, start)
    alone = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([alone], rate)
    for _ in range(steps):
        alone.grad = torch.ones_like(alone)
        optimizer.step()
    assert torch.equal(alone, start), "16 bits alone swallow them all"


@pytest.mark.parametrize("dtype", HALVES)
def test_the_parameters_are_the_rounded_masters_of_an_fp32_training(dtype):
    """The optimizer's step is bitwise that of fp32 parameters that get the same gradients."""
    engine = made(dtype, lr=1e-3, gradient_clipping=0.5)
    copies = [p.detach().float().requires_grad_() for p in engine.model.parameters()]
    optimizer = torch.optim.AdamW(copies, lr=1e-3)
    for _ in range(3):
        backward(engine)
        gradients = [master.grad.clone() for master in masters(engine).values()]
        engine.step()
        for copy, gradient in zip(copies, gradients):
            copy.grad = gradient
        torch.nn.utils.clip_grad_norm_(copies, 0.5)
        optimizer.step()
    assert all(map(torch.equal, masters(engine).values(), copies))
    for parameter, master in zip(engine.model.parameters(), copies):
        assert torch.equal(parameter, master.to(dtype))


def test_gradients_of_micro_batches_are_added_in_fp32():
    engine = made(gradient_accumulation_steps=3)
    wanted = [torch.zeros_like(p, dtype=torch.float32) for p in engine.model.parameters()]
    for _ in range(2):
        (engine(IDS, labels=IDS).loss / 3).backward()
        for want, parameter in zip(wanted, engine.model.parameters()):
            want += parameter.grad
        engine.model.zero_grad()
    for _ in range(2):
        backward(engine)
        engine.step()
    assert all(map(torch.equal, [m.grad for m in masters(engine).values()], wanted))
    assert all(p.grad is None for p in engine.model.parameters())


def test_the_optimizer_holds_the_model_s_parameters_but_while_it_steps(monkeypatch):
    engine = made(lr=1e-3)
    parameters, seen = [*engine.model.parameters()], []
    step = engine.optimizer.step
    monkeypatch.setattr(
        engine.optimizer, "step",
        lambda: (seen.extend(engine.optimizer.param_groups[0]["params"]), step()),
    )  # fmt: skip
    backward(engine)
    engine.step()
    assert {p.dtype for p in seen} == {torch.float32}
    for held in (engine.optimizer.param_groups[0]["params"], [*engine.optimizer.state]):
        assert all(one is other for one, other in zip(held, parameters))
    assert engine.optimizer.state[parameters[0]]["exp_avg"].dtype is torch.float32


def test_an_optimizer_that_raises_changes_no_parameter(monkeypatch):
    engine = made(lr=1e-2)
    step = torch.optim.AdamW.step
    backward(engine)

    def stepped_and_stopped(optimizer):
        step(optimizer)
        raise KeyboardInterrupt

    before = snapshots.bits([*engine.model.parameters()])
    monkeypatch.setattr(engine.optimizer, "step", lambda: stepped_and_stopped(engine.optimizer))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert snapshots.bits([*engine.model.parameters()]) == before
    assert engine.optimizer.param_groups[0]["params"][0] is next(engine.model.parameters())


def test_a_state_from_before_is_widened():
    model = models.llama().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = accel.HybridEngine(model, optimizer).train()
    backward(engine)
    engine.step()
    before = [state["exp_avg"].float() for state in optimizer.state.values()]
    engine = accel.HybridEngine(model, optimizer, {"master_weights": True})
    backward(engine)
    gradients = [master.grad.clone() for master in masters(engine).values()]
    engine.step()
    for state, old, gradient in zip(optimizer.state.values(), before, gradients):
        assert torch.equal(state["exp_avg"], old.lerp(gradient, 1 - 0.9))


def test_what_somebody_else_writes_to_a_parameter_counts():
    engine = made(optimizer=torch.optim.SGD, lr=2**-14)
    weight = engine.model.model.norm.weight
    for written in (None, 2.0):
        if written:
            weight.data[3] = written  # moves no version
        weight.grad = torch.ones_like(weight)
        engine.step()
    master = masters(engine)["model.norm.weight"]
    assert master[3] == 2.0 - 2**-14
    assert master[4] == 1.0 - 2 * 2**-14  # the others' low bits are kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_only_what_learns_in_16_bits_has_a_master(dtype):
    model = models.with_lora(models.llama()).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # with what is frozen
    engine = accel.HybridEngine(model, optimizer, {"master_weights": True}).train()
    backward(engine)
    engine.step()
    adapters = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert [*masters(engine)] == (adapters if dtype is torch.bfloat16 else [])
