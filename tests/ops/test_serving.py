"""Loading, falling back, varying rows and failing kernels: said once, counted, never retried."""

import threading
import time
import warnings

import pytest
import torch

from accel import ops, testing
from accel.errors import BuildError, CacheError, FallbackWarning, OpResolutionError, VarianceWarning
from accel.layers import Linear

X, W = torch.ones(2, 3), torch.ones(4, 3)


def builder(id, *, load=None, **impl):
    made = testing.fake_builder({"linear": testing.fake_kernel("linear")}, id=id, **impl)
    if load is not None:
        made.load = load
    return made


def installed(*builders):
    return testing.installed(testing.fake_backend(builders=builders))


def failing(error):
    def load(self, impl):
        raise error

    return load


# -- a kernel that cannot be loaded ------------------------------------------------------------

FAILURES = {
    "build": (BuildError("no such header"), "build", "BuildError: no such header"),
    "cache": (CacheError("read-only"), "cache", "CacheError: read-only"),
    "driver": (OSError("no driver"), "load", "OSError: no driver"),
    "import": (ImportError("lib.so"), "load", "ImportError: lib.so"),
}


@pytest.mark.parametrize(("error", "code", "says"), FAILURES.values(), ids=FAILURES)
def test_what_cannot_be_loaded_is_passed_over_with_a_warning(error, code, says):
    broken = builder("fake.broken", load=failing(error), priority=2000)
    with installed(broken, builder("fake.next")):
        with pytest.warns(FallbackWarning, match=f"served by fake.next: fake.broken.*{says}") as w:
            assert ops.linear(X, W).tolist() == [[3.0] * 4] * 2
        assert len(w) == 1
        assert w[0].filename == __file__
        (refusal,) = ops.explain("linear").verdicts[0].refusals
        assert (refusal.code, refusal.have) == (code, says)


def test_loading_is_tried_once():
    tries = []

    def load(self, impl):
        tries.append(impl)
        raise OSError

    with installed(builder("fake.broken", load=load)), ops.use(exact=False, fallback="allow"):
        for options in ({}, {"act": "relu"}, {"act": "silu"}):
            ops.linear(X, W, **options)
            ops.linear(X, W.double().float().requires_grad_(), **options)
    assert len(tries) == 1


def test_a_builder_that_loads_no_function_is_passed_over():
    odd = builder("fake.odd", load=lambda self, impl: 42)
    with (
        installed(odd, builder("fake.next", priority=20)),
        pytest.warns(FallbackWarning, match=r"LinearBuilder\.load\(fake\.odd \(linear\)\) gave 42"),
    ):
        ops.linear(X, W)


def test_threads_that_call_first_load_one_after_the_other():
    loading, results = [], []

    def load(self, impl):
        assert not loading, "two threads compile at once"
        loading.append(impl)
        time.sleep(0.01)
        loading.clear()
        return testing.fake_kernel("linear")

    with installed(builder("fake.slow", load=load)), ops.use(fallback="error"):
        call = lambda: results.append(ops.linear(X, W))  # noqa: E731
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 8
    assert all(torch.equal(result, X @ W.t()) for result in results)


# -- ACCEL_FALLBACK ----------------------------------------------------------------------------


def broken_one():
    return builder("fake.broken", load=failing(OSError("no driver")))


def test_a_fallback_is_said_once_and_counted_each_time():
    with installed(broken_one()), ops.use(exact=False):
        with pytest.warns(FallbackWarning) as said:
            ops.linear(X, W)
        ops.linear(X, W)  # a second warning would be an error here
        ops.linear(X, W.clone().requires_grad_())
        assert len(said) == 1
        assert ops.fallbacks() == {("linear", "torch"): 3}


def test_a_fallback_may_be_allowed_and_is_counted_all_the_same(monkeypatch):
    monkeypatch.setenv("ACCEL_FALLBACK", "allow")
    with installed(broken_one()), ops.use(exact=False):
        ops.linear(X, W)
        assert ops.fallbacks() == {("linear", "torch"): 1}


def test_a_fallback_may_be_forbidden_before_anything_runs(monkeypatch):
    monkeypatch.setenv("ACCEL_FALLBACK", "error")
    calls = testing.Calls()
    after = builder(
        "fake.after", load=lambda s, i: testing.fake_kernel("linear", calls), priority=9
    )
    with installed(broken_one(), after):
        for _ in range(2):
            with pytest.raises(OpResolutionError, match=r"by fake\.after, a fallback: .*no driver"):
                ops.linear(X, W)
        assert calls == []
        with ops.use("linear=fake.after"):
            ops.linear(X, W)
            assert len(calls) == 1, "what was asked for is no fallback"


def test_the_first_choice_is_no_fallback():
    with installed(builder("fake.first")), ops.use(fallback="error"):
        ops.linear(X, W)
        assert not ops.fallbacks()


def test_the_reference_in_place_of_a_kernel_is_a_fallback():
    with installed(builder("fake.half", dtypes=frozenset({torch.float16}))):
        with (
            ops.use("linear=!torch", exact=False),
            pytest.warns(FallbackWarning, match=r"nothing but the reference.*fake\.half: \[dtype"),
        ):
            ops.linear(X, W)
        assert ops.fallbacks() == {("linear", "reference"): 1}


def test_the_counts_are_a_copy():
    with installed(broken_one()), ops.use(exact=False, fallback="allow"):
        ops.linear(X, W)
        ops.fallbacks().clear()
        assert ops.fallbacks()


# -- rows that vary ----------------------------------------------------------------------------


def test_rows_that_vary_are_said_once():
    with installed(builder("fake.varying", shape_invariant=False)):
        with pytest.warns(VarianceWarning, match=r"fake\.varying, whose rows depend") as said:
            ops.linear(X, W)
        ops.linear(X, W, act="relu")
        assert len(said) == 1
        assert ops.explain("linear").varies


@torch.no_grad()
def call(module, x):
    with ops.use(fallback="allow"):
        return module(x)


def test_a_warning_points_at_the_users_line_through_modules_and_decorators():
    model = torch.nn.Sequential(Linear(3, 4))
    varying = builder("fake.varying", shape_invariant=False)
    with installed(varying), pytest.warns(VarianceWarning) as said:
        call(model, X)
    line = call.__wrapped__.__code__.co_firstlineno + 3
    assert [(warning.filename, warning.lineno) for warning in said] == [(__file__, line)]


def test_there_are_no_rows_to_vary_on_meta():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.linear(X.to("meta"), W.to("meta")).shape == (2, 4)
    assert ops.explain("linear", device="meta").varies


def test_rows_that_vary_may_be_permitted():
    with installed(builder("fake.varying", shape_invariant=False)), ops.use(exact=False):
        ops.linear(X, W)
        assert not ops.explain("linear").varies


# -- a kernel that raises ----------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
def test_a_kernel_that_raises_is_not_retried_elsewhere(grad):
    class KernelError(Exception):
        pass

    def kernel(*args):
        calls.append("first")
        raise KernelError("out of luck")

    calls = []
    next_one = builder(
        "fake.next", load=lambda s, i: lambda *args: calls.append("next"), priority=20
    )
    with installed(builder("fake.first", load=lambda s, i: kernel), next_one):
        for _ in range(2):
            with pytest.raises(KernelError, match="out of luck"):
                ops.linear(X, W.clone().requires_grad_(grad))
    assert calls == ["first", "first"]
