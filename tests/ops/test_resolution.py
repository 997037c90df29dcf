"""Which implementation serves, why the others do not, and that `explain` says what ran."""

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel import ops, testing
from accel.errors import FallbackWarning, OpRefusedError, OpResolutionError, UnknownOpError
from accel.ops import policy

X, W = torch.ones(2, 3), torch.ones(4, 3)


def builder(id, *, op="linear", **impl):
    return testing.fake_builder({op: testing.fake_kernel(op)}, id=id, **impl)


def installed(*builders):
    return testing.installed(testing.fake_backend(builders=builders))


def serving(**request):
    return ops.explain("linear", **request).chosen.impl.id


def refusals(decision):
    return {v.impl.id: [r.code for r in v.refusals] for v in decision.verdicts}


# -- order of candidates -----------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_the_highest_priority_serves_and_equal_ones_go_by_id(turned):
    builders = [
        builder("fake.low", priority=20), builder("fake.zebra"), builder("fake.ant"),
    ]  # fmt: skip
    with installed(*(reversed(builders) if turned else builders)):
        asked = [v.impl.id for v in ops.explain("linear").verdicts]
    assert asked == ["fake.ant", "fake.zebra", "fake.low", "torch", "reference"]


def test_rows_that_do_not_vary_come_before_priority_unless_permitted():
    steady = builder("fake.steady", priority=20)
    fast = builder("fake.fast", priority=90, shape_invariant=False)
    with installed(steady, fast):
        assert serving() == "fake.steady"
        with ops.use(exact=False):
            assert serving() == "fake.fast"
        with ops.use("linear=fake.fast|fake.steady"):
            assert serving() == "fake.fast", "an order is the user's word"
        with ops.use("linear=fast|steady", strict=True):
            assert serving() == "fake.steady"


def test_an_order_ranks_over_priority():
    with installed(builder("fake.a", priority=20), builder("fake.b", priority=90)):
        with ops.use("linear=a|b"):
            assert serving() == "fake.a"
        with ops.use("linear=!b"):
            assert serving() == "fake.a"


# -- refusals ----------------------------------------------------------------------------------


def test_dtype_device_and_gradient_are_checked_for_the_builder():
    plain = builder("fake.plain", differentiable=False)
    away = builder("fake.away", device_type="meta")
    with installed(plain, away), ops.use(exact=False):
        found = refusals(ops.explain("linear", dtype=torch.float64, grad=True))
        assert found["fake.plain"] == ["dtype", "grad"]
        assert found["fake.away"] == ["device"]
        assert serving(device="meta") == "fake.away"
        assert serving() == "fake.plain"


def test_exactness_refuses_what_could_generate_and_not_train():
    infer, train = builder("fake.infer", differentiable=False), builder("fake.train", priority=20)
    with installed(infer, train):
        assert serving(grad=False) == serving(grad=True) == "fake.train"
        with ops.use(exact=False):
            assert serving(grad=False) == "fake.infer"
            assert serving(grad=True) == "fake.train"


def test_a_builder_judges_by_options():
    def reasons(impl, request):
        has = request.options["act"]
        return [accel.Refusal("act", "none", has)] if has else []

    with installed(builder("fake.bare", reasons=reasons)), ops.use(exact=False):
        assert serving() == "fake.bare"
        assert serving(act="relu") == "torch"


def test_a_builder_is_asked_in_explain_with_the_defaults_a_call_has():
    seen = []

    def reasons(impl, request):
        seen.append(dict(request.options))
        return []

    with installed(builder("fake.gated", op="gated_linear", reasons=reasons)):
        ops.explain("gated_linear")
        ops.gated_linear(X, W, W)
    assert seen == [{"act": "silu", "out_dtype": None}] * 2


def test_a_builder_judges_by_sizes_that_the_contract_names():
    def reasons(impl, request):
        size = request.options["head_size"]
        return [accel.Refusal("head_size", "8", str(size))] if (size or 0) > 8 else []

    def serves(size):
        q = torch.ones(2, 1, size)
        ops.attention(q, q, q, torch.tensor([[0, 2, 0, 2]]))
        (served,) = {binding.impl.id for binding in bound.values()}
        bound.clear()
        return served

    small = builder("fake.small", op="attention", reasons=reasons)
    with installed(small), ops.use(exact=False):
        bound = policy.current().bound
        for size, served in ((8, "fake.small"), (9, "torch"), (8, "fake.small")):
            assert serves(size) == served
            told = (
                ops.explain("attention", head_size=size),
                ops.explain("attention", shapes=((2, 1, size), (2, 1, size), (2, 1, 4))),
            )
            assert [decision.chosen.impl.id for decision in told] == [served] * 2
        assert told[1].request.options["value_size"] == 4
        assert ops.explain("attention").chosen.impl.id == "fake.small"  # nobody said
        with pytest.raises(TypeError, match="head_size must be a whole number, not '64'"):
            ops.explain("attention", head_size="64")


def test_shapes_are_shown_to_those_who_read_them_and_resolved_for_each():
    asked = {"fake.small": [], "fake.any": []}

    def reasons(impl, request):
        asked[impl.id].append(request.shapes)
        if impl.id == "fake.any" or request.shapes[0][0] <= 2:
            return []
        return [accel.Refusal("shape", "at most 2 rows", str(request.shapes[0][0]))]

    small = builder("fake.small", priority=90, reasons=reasons, reads_shapes=True)
    general = builder("fake.any", priority=20, reasons=reasons)
    calls = testing.Calls()
    small.load = lambda self, impl: lambda *a: calls.append(("small", a)) or a[0] @ a[1].t()
    general.load = lambda self, impl: lambda *a: calls.append(("any", a)) or a[0] @ a[1].t()
    with installed(small, general):
        for rows in (2, 3, 2, 3, 1):
            ops.linear(torch.ones(rows, 3), W)
    assert [name for name, _ in calls] == ["small", "any", "small", "any", "small"]
    assert [shapes[0] for shapes in asked["fake.small"]] == [(2, 3), (3, 3), (1, 3)], "once each"
    assert set(asked["fake.any"]) == {()}


def test_strides_are_part_of_what_is_resolved():
    def reasons(impl, request):
        dense = request.strides[0] == (3, 1)
        return [] if dense else [accel.Refusal("strides", "dense rows", str(request.strides[0]))]

    calls = testing.Calls()
    picky = testing.fake_builder(
        {"linear": testing.fake_kernel("linear", calls)}, reasons=reasons, reads_shapes=True
    )
    with installed(picky), ops.use(exact=False):
        ops.linear(X, W)
        ops.linear(torch.ones(3, 2).t(), W)
        ops.linear(X, W)
    assert len(calls) == 2


def test_without_shapes_to_read_a_builder_is_asked_once():
    asked = []
    with installed(builder("fake.any", reasons=lambda impl, request: asked.append(1) or [])):
        for rows in (1, 2, 3):
            ops.linear(torch.ones(rows, 3), W)
    assert len(asked) == 1


def reasons_raise(impl, request):
    raise KeyError("arch")


@pytest.mark.parametrize(
    ("reasons", "says"),
    [
        (reasons_raise, "KeyError: 'arch'"),
        (lambda i, r: None, "NoneType: None"),
        (lambda i, r: "busy", "str: 'busy'"),
        (lambda i, r: ["busy"], "list: ['busy']"),
    ],
)
def test_a_builder_that_cannot_judge_is_passed_over_with_a_warning(reasons, says):
    class LinearBuilder(builder("fake.odd", priority=2000)):
        def reasons(self, impl, request):
            return reasons(impl, request)

    with installed(LinearBuilder, builder("fake.fine")):
        with pytest.warns(FallbackWarning, match=re.escape(says)):
            ops.linear(X, W)
        assert serving() == "fake.fine"


# -- nothing serves ----------------------------------------------------------------------------


def test_an_order_nobody_can_fill_raises_with_the_reasons():
    fussy = builder("fake.fussy", reasons=lambda i, r: [accel.Refusal("mood", "sun", "rain")])
    with (
        installed(fussy, builder("fake.away", device_type="meta")),
        ops.use("linear=fussy|away"),
        pytest.raises(OpRefusedError) as caught,
    ):
        ops.linear(X, W)
    assert "the order fussy|away leaves no implementation for linear(" in str(caught.value)
    assert "[mood] needs sun, found rain" in str(caught.value)
    assert "[device] needs meta" in str(caught.value)
    assert "reference" not in str(caught.value), "it was not asked for"


def test_no_implementation_at_all_raises_with_every_reason():
    wide = builder("fake.wide", dtypes=frozenset({torch.float64}))
    with installed(wide), ops.use(strict=True), pytest.raises(OpResolutionError) as caught:
        ops.linear(X, W)
    text = str(caught.value)
    assert "no implementation serves linear(" in text
    assert "[dtype] needs float64, found float32" in text
    assert text.count("[shape_invariant]") == 2, "torch and the reference"
    assert "permit it with accel.ops.use(strict=False)" in text


# -- explain -----------------------------------------------------------------------------------


def test_explain_loads_nothing_and_names_every_candidate():
    eager = builder("fake.eager")
    eager.load = lambda self, impl: pytest.fail("loaded")
    with installed(eager, builder("fake.away", device_type="meta")):
        decision = ops.explain("linear", shapes=((2, 3), (4, 3), None))
    assert [v.impl.id for v in decision.verdicts if v.accepted] == [
        "fake.eager", "torch", "reference",
    ]  # fmt: skip
    assert str(decision).splitlines()[0].startswith("linear(")
    assert "* fake.eager" in str(decision)
    assert "- fake.away" in str(decision)
    assert "[device] needs meta, found" in str(decision)


def test_explain_as_data_says_the_same():
    with installed(builder("fake.mine")):
        data = ops.explain("linear").to_dict()
    assert data["chosen"] == "fake.mine"
    assert [c["implementation"] for c in data["candidates"]] == ["fake.mine", "torch", "reference"]
    assert (data["fallback"], data["rows_vary"]) == (None, False)


@pytest.mark.filterwarnings("ignore::accel.errors.VarianceWarning")
@pytest.mark.parametrize("order", [None, "linear=torch", "linear=reference", "linear=!fake.a"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_explain_says_what_ran(order, grad, exact):
    """The torch op of an implementation names it; it is what a dispatch mode sees."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    infer = builder("fake.a", differentiable=False, priority=90)
    fine = builder("fake.b", priority=20)
    with installed(infer, fine), ops.use(order, exact=False), ops.use(exact=exact):
        expected = serving(grad=grad)
        with Watch():
            ops.linear(X, W.clone().requires_grad_(grad))
    namespace, _, kind = expected.rpartition(".")
    assert f"{namespace or 'accel'}::linear_{kind}" in seen


def test_explain_refuses_what_it_cannot_answer():
    with installed():
        with pytest.raises(UnknownOpError, match="unknown op 'linaer'; did you mean 'linear'"):
            ops.explain("linaer")
        with pytest.raises(TypeError, match=r"linear has the options .*'act'.* not \['axt'\]"):
            ops.explain("linear", axt="silu")
