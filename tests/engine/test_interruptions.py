"""An error or Ctrl-C anywhere in a rollout, or in a training step, leaves everything as it was."""

import ast
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import midway
import models
import pytest
import snapshots
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from midway import IDS, MASK
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers.generation import logits_process

from accel import engine as engines
from accel import ops
from accel.engine.cache import KVCache
from accel.engine.generation import sampling
from accel.engine.modules import parts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*autocast:accel.errors.IgnoredWarning"),  # drawn below
    pytest.mark.usefixtures("_one_thread"),
]

ENGINE = str(Path(engines.__file__).parent)
ASKED = {
    "max_new_tokens": 3, "do_sample": True, "top_k": 20, "temperature": 0.8, "seed": 5,
    "return_logprobs": True, "output_logits": True, "output_scores": True,
    "num_return_sequences": 2, "eos_token_id": list(range(0, models.VOCAB, 4)),
}  # fmt: skip


class Stopped(Exception):
    """Nothing else raises it."""


class Fuse:
    """Counts what passes it, and blows when ``left`` have."""

    def __init__(self, left=None, error=Stopped):
        self.left, self.error, self.passed = left, error, 0

    def __call__(self, *args, **kwargs):
        self.passed += 1
        if self.left is not None and self.passed > self.left:
            self.left = None
            raise self.error


def in_modules(fuse):
    """Around every call of every module; hooks of all modules are no module's own."""
    return [register_module_forward_hook(fuse)]


def before_modules(fuse):
    return [register_module_forward_pre_hook(fuse)]


class Patch:
    """A function with the fuse before it, and with it again behind it."""

    def __init__(self, fuse, owner, name):
        self.owner, self.name, self.kept = owner, name, self.get(owner, name)
        kept = self.kept

        def call(*args, **kwargs):
            fuse()
            found = kept(*args, **kwargs)
            fuse()
            return found

        self.put(call)

    @staticmethod
    def get(owner, name):
        return owner[name] if isinstance(owner, dict) else vars(owner)[name]

    def put(self, value):
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)

    def remove(self):
        self.put(self.kept)


OPS = ("linear", "gated_linear", "lora_linear", "rotary", "embedding", "attention", "logprob")


def in_kernels(fuse):
    norms = [Patch(fuse, parts._NORMS, name) for name in parts._NORMS]
    return norms + [Patch(fuse, ops, name) for name in OPS]


def in_processors(fuse):
    warpers = (logits_process.TemperatureLogitsWarper, logits_process.TopKLogitsWarper)
    return [Patch(fuse, warper, "__call__") for warper in warpers]


def in_sampling(fuse):
    return [Patch(fuse, sampling, name) for name in ("pick", "uniforms", "samples_of")]


def in_cache(fuse):
    return [Patch(fuse, KVCache, name) for name in ("reserve", "admit", "extend", "fork", "keep")]


class Lines:
    """Before every line of the engine, as Ctrl-C may come, but not while it is cleaning up: no code
    of Python's own can be interrupted there and still be done."""

    def __init__(self, fuse):
        self.fuse, self.outer, self.cleaning = fuse, sys.gettrace(), {}
        sys.settrace(self.trace)

    def remove(self):
        sys.settrace(self.outer)

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(ENGINE) or self.cleans(frame.f_back):
            return None
        if event == "line" and not self.cleans(frame):
            self.fuse()
        return self.trace

    def cleans(self, frame):
        """True if the frame, of whatever code, is in a ``finally``."""
        path = frame.f_code.co_filename
        if path.startswith(ENGINE) and path not in self.cleaning:
            self.cleaning[path] = {
                line
                for node in ast.walk(ast.parse(Path(path).read_text()))
                if isinstance(node, ast.Try) and node.finalbody
                for line in range(node.finalbody[0].lineno, node.end_lineno + 1)
            }
        return frame.f_lineno in self.cleaning.get(path, ())


def in_lines(fuse):
    return [Lines(fuse)]


PLACES = (before_modules, in_modules, in_kernels, in_processors, in_sampling, in_cache, in_lines)
# Those that are all within the loop over tokens, an error in which gives the cache back.
WITHIN = (before_modules, in_modules, in_kernels, in_processors)


@contextmanager
def fused(place, fuse):
    with ExitStack() as stack:
        for handle in place(fuse):
            stack.callback(handle.remove)
        yield


@contextmanager
def surroundings(drawn):
    """What a trainer may have set where it calls generate."""
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(drawn["grad"]))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=drawn["autocast"]))
        if drawn["policy"]:
            stack.enter_context(ops.use(fallback="allow"))
        yield


SURROUNDINGS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("grad", "autocast", "policy", "training", "generating")}
)
ERRORS = st.sampled_from((Stopped, KeyboardInterrupt))


@pytest.fixture(scope="module", params=models.MAKERS)
def engine(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_BACKEND", "cpu")
        patch.setenv("ACCEL_CACHE_DIR", str(request.getfixturevalue("build_cache")))
        return midway.trained(request.param)


def rollout(engine):
    return engine.generate(IDS, MASK, **ASKED)


def all_of(roll):
    return snapshots.bits([roll.sequences, roll.attention_mask, roll.logprobs,
                           roll.processed_logprobs, roll.scores, roll.logits])  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_stopped_rollout_leaves_no_trace(engine, place):
    undisturbed = all_of(rollout(engine))
    counted = Fuse()
    with fused(place, counted):
        rollout(engine)
    assert counted.passed > 0

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(0, counted.passed - 1), ERRORS, SURROUNDINGS)
    def check(left, error, drawn):
        engine.train(drawn["training"])
        with surroundings(drawn):
            before = snapshots.training_state(engine)
            rollouts = engine.stats()["generate"]["calls"]
            several = engine.generating() if drawn["generating"] else nullcontext()
            with fused(place, Fuse(left, error)), pytest.raises(error), several:
                rollout(engine)
            assert snapshots.changed(before, snapshots.training_state(engine)) == []
            assert engine.stats()["generate"]["calls"] == rollouts
            if drawn["generating"] or place in WITHIN:
                assert engine.plan.model.generate.cache.bytes == 0
            assert all_of(rollout(engine)) == undisturbed

    check()


def trained_step(engine):
    """The gradients of one step, with dropout and each layer computed again in backward."""
    torch.manual_seed(2)
    engine.model.zero_grad()
    engine.backward(engine(IDS, MASK, labels=IDS).loss)
    return snapshots.parameters(engine.model)


@pytest.fixture
def checkpointed(engine):
    engine.train()
    engine.model.gradient_checkpointing_enable()
    yield engine
    engine.model.gradient_checkpointing_disable()


@pytest.mark.parametrize("place", [before_modules, in_modules, in_kernels])
def test_a_stopped_training_step_leaves_nothing_in_force(checkpointed, place):
    undisturbed = trained_step(checkpointed)
    counted = Fuse()
    with fused(place, counted):
        trained_step(checkpointed)
    in_forward = Fuse()
    with fused(place, in_forward):
        checkpointed(IDS, MASK, labels=IDS)
    assert counted.passed > in_forward.passed  # layers were computed again

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(0, counted.passed - 1), ERRORS, SURROUNDINGS.filter(lambda s: s["grad"]))
    def check(left, error, drawn):
        with surroundings(drawn):
            around, modules = snapshots.surroundings(), snapshots.modules(checkpointed.model)
            with fused(place, Fuse(left, error)), pytest.raises(error):
                trained_step(checkpointed)
            assert snapshots.surroundings() == around
            assert snapshots.modules(checkpointed.model) == modules
            assert trained_step(checkpointed) == undisturbed

    check()
