"""The policy in force: from the environment, nested in `with`, in its thread or task alone."""

import asyncio
import threading

import pytest
import torch

import accel
from accel import ops, testing
from accel.errors import ConfigError, UnknownOpError
from accel.ops import policy


def serving(op="linear"):
    return ops.explain(op, device=testing.HOST).chosen.impl.id


@pytest.fixture(autouse=True)
def _fake_serves():
    """linear: fake.kernel, then torch, then reference."""
    builder = testing.fake_builder({"linear": testing.fake_kernel("linear")})
    with testing.installed(testing.fake_backend(builders=[builder])):
        yield


def test_orders_nest_and_leave_other_ops_alone():
    with ops.use("linear=torch"):
        assert serving() == "torch"
        with ops.use("rms_norm=reference"):
            assert (serving(), serving("rms_norm")) == ("torch", "reference")
            with ops.use("linear=reference"):
                assert serving() == "reference"
            assert serving() == "torch"
        assert serving("rms_norm") == "torch"
    assert serving() == "fake.kernel"


def test_an_order_of_its_own_is_stronger_than_the_one_for_all():
    with ops.use("*=reference;linear=torch"):
        assert (serving("linear"), serving("rms_norm")) == ("torch", "reference")


def test_what_is_not_given_stays():
    with ops.use("linear=torch", exact=False, fallback="allow"), ops.use(strict=True):
        now = policy.current()
        assert (now.exact, now.strict, now.fallback) == (False, True, "allow")
        assert now.order("linear").only == ("torch",)


def test_the_variable_is_read_as_an_order(monkeypatch):
    monkeypatch.setenv("ACCEL_OPS", "linear=reference;rms_norm=!torch")
    assert (serving("linear"), serving("rms_norm")) == ("reference", "reference")
    with ops.use("linear=torch"):
        assert (serving("linear"), serving("rms_norm")) == ("torch", "reference")


@pytest.mark.parametrize(
    ("variable", "value", "error", "says"),
    [
        ("ACCEL_OPS", "linear", ConfigError, "^ACCEL_OPS: cannot read 'linear'"),
        ("ACCEL_OPS", "linaer=torch", UnknownOpError, "^ACCEL_OPS: unknown op 'linaer'"),
        ("ACCEL_OPS", "linear=tarch", UnknownOpError, "^ACCEL_OPS: unknown implementation"),
        ("ACCEL_FALLBACK", "eror", ConfigError, "ACCEL_FALLBACK.*'eror'; did you mean 'error'"),
    ],
)
def test_a_variable_that_cannot_be_read_says_which(monkeypatch, variable, value, error, says):
    monkeypatch.setenv(variable, value)
    for _ in range(2):  # not only the first time
        with pytest.raises(error, match=says):
            serving()


BAD = [
    ({"order": "linear="}, ConfigError),
    ({"order": "linear=nobody"}, UnknownOpError),
    ({"fallback": "maybe"}, ConfigError),
    ({"order": "linear=torch", "fallback": "maybe"}, ConfigError),
]


@pytest.mark.parametrize(("given", "error"), BAD)
def test_bad_input_changes_nothing(given, error):
    before = policy.current()
    with pytest.raises(error), ops.use(**given):
        pytest.fail("entered")
    assert policy.current() is before


def test_an_exception_ends_a_scope():
    with pytest.raises(KeyError), ops.use("linear=torch"):
        raise KeyError
    assert serving() == "fake.kernel"


def test_another_thread_has_the_policy_underneath():
    seen = []
    with ops.use("linear=torch"):
        thread = threading.Thread(target=lambda: seen.append(serving()))
        thread.start()
        thread.join()
    assert seen == ["fake.kernel"]


def test_tasks_keep_their_policies_apart():
    async def task(name, turn, other):
        with ops.use(f"linear={name}"):
            turn.set()
            await other.wait()
            return serving()

    async def both():
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("torch", one, two), task("reference", two, one))

    assert asyncio.run(both()) == ["torch", "reference"]


def test_equal_policies_are_one_so_that_bindings_are_found_again():
    with ops.use("linear=torch"):
        first = policy.current()
    with ops.use("linear=torch"):
        assert policy.current() is first
    with ops.use("linear=torch", exact=False):
        assert policy.current() is not first


def test_a_reset_inside_a_scope_keeps_the_order(monkeypatch):
    """What was bound before belongs to the old registry and is bound anew."""
    discovered = accel.registry.plugins.from_objects([testing.fake_backend()])
    monkeypatch.setattr(accel.registry.plugins, "discover", lambda: discovered)
    with ops.use("linear=torch"):
        before = policy.current()
        accel.reset()
        after = policy.current()
        assert (after.order("linear"), after.bound) == (before.order("linear"), {})
        assert after.registry is accel.registry.registry() is not before.registry
        assert serving() == "torch"


def test_a_kernel_bound_inside_a_scope_is_not_called_after_a_reset():
    calls = testing.Calls()
    old = testing.fake_builder({"linear": testing.fake_kernel("linear", calls)}, id="fake.old")
    x = torch.ones(1, 2)
    with testing.installed(testing.fake_backend(builders=[old])), ops.use(exact=False):
        ops.linear(x, x)
        with testing.installed(testing.fake_backend()):
            ops.linear(x, x)
        assert len(calls) == 1
        ops.linear(x, x)
        assert len(calls) == 2
