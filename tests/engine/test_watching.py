"""What others hang on a model goes on working: hooks, and gradient checkpointing."""

import pytest
import torch
from measures import batch
from torch.utils._python_dispatch import TorchDispatchMode

import accel


@pytest.fixture
def engine(model):
    return accel.HybridEngine(model)


def rollout(engine):
    ids, mask = batch()
    asked = {"do_sample": True, "seed": 1, "return_logprobs": True, "output_logits": True}
    return engine.generate(ids, mask, max_new_tokens=5, **asked)


def scored(engine, made):
    found = engine.logprobs(made.sequences, made.attention_mask)
    return found[:, -made.logprobs.shape[1] :]


def watched_roles(engine):
    """Paths of modules a hook may watch: those that hold parameters, activations, attention."""
    model, layer = engine.plan.model, engine.plan.spec.layer
    for path, module in model.named_modules():
        own = any(p is not None for p in module._parameters.values())
        if own or path.endswith((f".{layer.act}", f".{layer.attention}", f".{layer.mlp}")):
            yield path, module


def test_a_hook_on_every_part_fires_and_sees_the_shapes_of_transformers(engine):
    """Of transformers' forward on the same ids; of a LoRA layer's unused parts neither sees any."""
    ids = batch()[0]
    seen = {}

    def listen(path, shapes):
        def hook(module, args, kwargs, output):
            first = output[0] if isinstance(output, tuple) else output
            given = args[0] if args else next(iter(kwargs.values()))
            shapes[path] = (tuple(given.shape), tuple(first.shape))

        return hook

    for _ in range(2):
        shapes = seen[len(seen)] = {}
        hooks = [
            module.register_forward_hook(listen(path, shapes), with_kwargs=True)
            for path, module in watched_roles(engine)
        ]
        engine(ids)
        for hook in hooks:
            hook.remove()
        accel.restore(engine.model)
    # Learned positions are looked up row by row, in transformers once for all rows.
    ours, theirs = ({k: v for k, v in s.items() if not k.endswith("wpe")} for s in seen.values())
    assert ours == theirs
    assert len(ours) >= 20


def spoiling(engine):
    """(path, module) of one part of each kind."""
    found = dict(watched_roles(engine))
    kinds = {}
    for path, module in found.items():
        kinds.setdefault((type(module), path.rpartition(".")[2]), (path, module))
    return kinds.values()


def test_hooks_that_only_look_change_nothing(engine):
    made = rollout(engine)
    for _, module in watched_roles(engine):
        module.register_forward_hook(lambda *given: None)
        module.register_forward_pre_hook(lambda *given: None)
    again = rollout(engine)
    assert torch.equal(again.sequences, made.sequences)
    # Watched parts are called one by one, which rounds between them where one op does not.
    assert torch.equal(scored(engine, again), again.logprobs)


def test_a_hook_that_changes_a_result_counts_on_both_sides_alike(engine):
    made = rollout(engine)

    def halved(module, args, output):
        if isinstance(output, tuple):
            return tuple(o if o is None else o * 0.5 for o in output)
        return output * 0.5

    for path, module in spoiling(engine):
        hook = module.register_forward_hook(halved)
        other = engine.generate(
            made.sequences, made.attention_mask, max_new_tokens=3, return_logprobs=True
        )
        now = scored(engine, other)
        assert torch.equal(now, other.logprobs), path
        assert not torch.equal(engine.logprobs(*batch()), before(engine, hook)), path


def before(engine, hook):
    """What it was without the hook."""
    hook.remove()
    return engine.logprobs(*batch())


def test_backward_hooks_see_the_gradient(engine):
    ids, mask = batch()
    seen = set()
    for path, module in watched_roles(engine):
        if not isinstance(module, torch.nn.Embedding):
            module.register_full_backward_hook(lambda *given, path=path: seen.add(path))
    engine.train()
    engine.backward(engine(ids, mask, labels=ids).loss)
    assert len(seen) >= 20


# -- gradient checkpointing --------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """Counts attention's calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += "attention_native" in str(func)
        return func(*args, **(kwargs or {}))


def step(engine):
    """Loss and gradients of a training step, and how often attention was computed."""
    ids, mask = batch()
    engine.model.zero_grad()
    torch.manual_seed(0)  # LoRA's dropout draws
    with Counting() as counting:
        loss = engine(ids, mask, labels=ids).loss
        engine.backward(loss)
    gradients = {n: p.grad for n, p in engine.model.named_parameters() if p.grad is not None}
    return loss.detach(), {name: g.clone() for name, g in gradients.items()}, counting.calls


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpointing_recomputes_and_gives_the_same_bits(engine, reentrant):
    model = engine.plan.model
    engine.train()
    loss, gradients, calls = step(engine)
    values = engine.logprobs(*batch())
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again, others, more = step(engine)
    assert (calls, more) == (2, 4)
    assert torch.equal(loss, again)
    assert list(gradients) == list(others)
    assert gradients
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert torch.equal(engine.logprobs(*batch()), values)
    made = rollout(engine)
    assert torch.equal(scored(engine, made), made.logprobs)


def test_checkpointing_computes_nothing_twice_without_gradient(engine):
    engine.plan.model.activation_checkpointing_enable({"use_reentrant": False})
    engine.train()
    with Counting() as counting, torch.no_grad():
        engine(*batch())
        engine.generate(*batch(), max_new_tokens=1)
    assert counting.calls == 4
