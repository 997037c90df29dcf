"""What watches torch operations sees an op by name: modes, subclasses, fakes, meta tensors."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from accel import ops, testing
from accel.contracts import CONTRACTS

HOST = torch.device(testing.HOST)

pytestmark = pytest.mark.usefixtures("torch_serves")


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def sample(op, dtype=torch.float32):
    return next(iter(CONTRACTS[op].samples())).make(dtype, HOST)


def each(results):
    return results if isinstance(results, tuple) else (results,)


# How many of the first arguments have a row for each row of the first, where it is not one.
WITH_ROWS = {
    "rotary": 3, "attention": 3, "logprob": 2, "dropout_add": 2, "softmax": 2, "add_norm": 2,
}  # fmt: skip


def tensors_only(function, op, args):
    """The op of the tensor arguments that are there."""
    present = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]

    def call(*tensors):
        full = list(args)
        for i, tensor in zip(present, tensors):
            full[i] = tensor
        return function(op, full)

    return call, [args[i] for i in present]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("op", CONTRACTS)
def test_a_dispatch_mode_sees_the_implementation(op, grad, call):
    args = sample(op)
    CONTRACTS[op].key(args).requires_grad_(grad)
    with Watch() as watch:
        found = call(op, args)
    assert f"accel::{op}_torch" in watch.names
    for y, again in zip(each(found), each(call(op, args)), strict=True):
        assert torch.equal(y, again)
        assert y.requires_grad == grad


def test_a_profile_names_the_implementation_under_a_mode():
    with torch.profiler.profile() as profile, Watch():
        ops.linear(torch.ones(2, 3), torch.ones(4, 3))
    assert "accel::linear_torch" in {event.name for event in profile.events()}


@pytest.mark.parametrize("op", CONTRACTS)
def test_fake_tensors_have_the_result_s_shape_and_nothing_runs(op, call):
    real = sample(op)
    want = call(op, real)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in real]
        found = call(op, fakes)
    for got, real in zip(each(found), each(want), strict=True):
        assert type(got).__name__ == "FakeTensor"
        assert (got.shape, got.dtype, got.device) == (real.shape, real.dtype, real.device)


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("op", CONTRACTS)
def test_a_trace_has_one_node_that_serves_other_rows(op, tracing, call):
    function, tensors = tensors_only(call, op, sample(op))
    graph = make_fx(function, tracing_mode=tracing)(*tensors)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert [t for t in targets if t.startswith("accel")] == [f"accel.{op}_torch.default"]
    if tracing == "symbolic":
        for i in range(WITH_ROWS.get(op, 1)):
            tensors[i] = torch.cat([tensors[i], tensors[i]])
    torch.testing.assert_close(graph(*tensors), function(*tensors))


def test_symbolic_shapes_meet_a_builder_that_reads_shapes():
    def reasons(impl, request):
        assert all(type(n) is int for shape in request.shapes if shape for n in shape)
        return []

    picky = testing.fake_builder(
        {"linear": testing.fake_kernel("linear")}, reasons=reasons, reads_shapes=True
    )
    with testing.installed(testing.fake_backend(builders=[picky])):
        trace = make_fx(lambda x, w: ops.linear(x, w), tracing_mode="symbolic")
        graph = trace(torch.ones(2, 3), torch.ones(4, 3))
        assert "fake.linear_kernel" in str(graph.graph)


@pytest.mark.parametrize("op", CONTRACTS)
def test_meta_tensors_give_meta_tensors(op, call):
    real = sample(op)
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in real]
    for got, want in zip(each(call(op, meta)), each(call(op, real)), strict=True):
        assert got.is_meta
        assert (got.shape, got.dtype) == (want.shape, want.dtype)


def test_a_plain_subclass_stays_one():
    class Tagged(torch.Tensor):
        pass

    x = torch.ones(2, 3).as_subclass(Tagged)
    y = ops.linear(x, torch.ones(4, 3))
    assert type(y) is Tagged
    assert y.tolist() == [[3.0] * 4] * 2


def test_a_subclass_that_overrides_functions_is_asked():
    asked = []

    class Asking(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            asked.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    ops.linear(torch.ones(2, 3), torch.ones(4, 3).as_subclass(Asking))
    assert "accel.linear_torch.default" in asked


class Wrapper(torch.Tensor):
    """Holds another tensor and unwraps it for every operation, as sharded tensors do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, requires_grad=False
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        seen.append(function.name())
        plain = [a.inner if isinstance(a, Wrapper) else a for a in args]
        return Wrapper(function(*plain, **(kwargs or {})))


seen = []


def test_a_subclass_that_holds_another_tensor_is_dispatched_to():
    seen.clear()
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    y = ops.linear(Wrapper(x), w, act="relu")
    assert type(y) is Wrapper
    assert seen == ["accel::linear_torch"]
    assert torch.equal(y.inner, ops.linear(x, w, act="relu"))


def test_inference_mode_gives_inference_tensors_and_leaves_no_trace_in_what_follows():
    x, w = torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)
    with torch.inference_mode():
        y = ops.linear(x, w)
        assert y.is_inference()
        assert not y.requires_grad
    assert ops.linear(x, w).requires_grad
    assert not ops.linear(x, w.detach()).is_inference()


def test_a_parameter_or_buffer_is_as_good_as_a_tensor():
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    want = ops.linear(x, w)
    for kind in (torch.nn.Parameter, torch.nn.Buffer):
        assert torch.equal(ops.linear(x, kind(w)), want)


OF_EACH = ("test_schema", "test_autograd_registration", "test_faketensor")


def telling(op):
    """Samples by name: ``fullest`` with as many arguments given as any, one without rows, and a
    strided one."""
    made = {s.name: s.make(torch.float32, HOST) for s in CONTRACTS[op].samples()}
    defaults = [p.default for p in CONTRACTS[op].parameters.values()]

    def given(args):
        return sum(isinstance(a, torch.Tensor) or a != d for a, d in zip(args, defaults))

    wanted = ("no_rows", "layout_transposed")
    others = {name: args for name, args in made.items() if name in wanted}
    return {"fullest": max(made.values(), key=given), **others}


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("op", CONTRACTS)
def test_opcheck(op, impl, call):
    """What is traced, fake and gradient, is the contract's: by one implementation will do."""
    with ops.use(f"{op}={impl}"):
        call(op, sample(op))  # loads it
        torch_op = getattr(torch.ops.accel, f"{op}_{impl}").default
        for name, args in telling(op).items():
            traced = impl == "torch" and name != "layout_transposed"
            CONTRACTS[op].key(args).requires_grad_()
            tests = (*OF_EACH, "test_aot_dispatch_dynamic") if traced else OF_EACH
            torch.library.opcheck(torch_op, args, test_utils=tests)


def test_a_torch_op_may_be_called_with_its_defaults_left_out():
    x, w = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    want = torch.autograd.grad(ops.gated_linear(x, w, w).sum(), w)
    got = torch.autograd.grad(torch.ops.accel.gated_linear_torch(x, w, w).sum(), w)
    assert torch.equal(got[0], want[0])
