"""Ops under torch.compile: one node that names the implementation, for every shape and option."""

import shutil

import pytest
import torch

import accel
from accel import ops, testing
from accel.contracts import CONTRACTS
from accel.errors import OpResolutionError

HOST = torch.device(testing.HOST)
F32 = torch.float32


@pytest.fixture(autouse=True)
def _compile_afresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs:
    """A compile backend that keeps what it is given and runs it as it is."""

    def __init__(self):
        self.graphs = []

    def __call__(self, module, inputs):
        self.graphs.append(module.graph)
        return module.forward

    def targets(self):
        return [str(n.target) for g in self.graphs for n in g.nodes if n.op == "call_function"]


def compiled(function, backend="aot_eager", **settings):
    return torch.compile(function, backend=backend, fullgraph=True, **settings)


def call(op, args):  # in a module the compiler can import, which conftest is not
    return getattr(ops, op)(**dict(zip(CONTRACTS[op].parameters, args)))


def squares(results):
    return sum(y.square().sum() for y in (results if isinstance(results, tuple) else (results,)))


# How many of the first arguments have a row for each row of the first, where it is not one.
WITH_ROWS = {
    "rotary": 3, "attention": 3, "logprob": 2, "dropout_add": 2, "softmax": 2, "add_norm": 2,
}  # fmt: skip


def layouts_and_acts(op):
    kinds = (
        "layout",
        "act",
        "eps",
        "tiny",
        "large",
        "out",
        "interleaved",
        "two_way",
        "scaled",
        "everything",
    )
    return [s for s in CONTRACTS[op].samples() if s.name.startswith(kinds)]


@pytest.mark.parametrize("op", CONTRACTS)
@pytest.mark.usefixtures("torch_serves")
def test_every_layout_and_option_compiles_whole(op, exact, assert_exact):
    for sample in layouts_and_acts(op):
        torch.compiler.reset()
        args = sample.make(F32, HOST)
        got = compiled(lambda *args: call(op, args))(*args)
        assert_exact(op, got, exact(op, args))


@pytest.mark.parametrize("op", CONTRACTS)
@pytest.mark.usefixtures("torch_serves")
def test_gradients_compile(op):
    args = next(iter(CONTRACTS[op].samples())).make(torch.float64, HOST)
    floats = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    leaves = [a.requires_grad_() for a in floats]
    want = torch.autograd.grad(squares(call(op, args)), leaves)
    loss = compiled(lambda *args: squares(call(op, args)))(*args)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), want)


@pytest.mark.parametrize("op", CONTRACTS)
@pytest.mark.usefixtures("torch_serves")
def test_one_graph_serves_any_number_of_rows(op):
    graphs = Graphs()
    args = next(iter(CONTRACTS[op].samples())).make(F32, HOST)
    with_rows, others = args[: WITH_ROWS.get(op, 1)], args[WITH_ROWS.get(op, 1) :]
    function = compiled(lambda *rows: call(op, (*rows, *others)), graphs, dynamic=True)
    # Not fewer than the sample's, of which others may speak.
    for count in (16, 47, 33):
        rows = [a[torch.arange(count) % len(a)] for a in with_rows]
        torch.testing.assert_close(function(*rows), call(op, (*rows, *others)))
    assert len(graphs.graphs) == 1


def fake(id, **impl):
    return testing.fake_builder({"linear": testing.fake_kernel("linear")}, id=id, **impl)


X, W = torch.randn(2, 3), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("order", "node"),
    [
        (None, "fake.linear_graphed"),
        ("linear=torch", "accel.linear_torch"),
        ("linear=reference", "accel.linear_reference"),
    ],
)
def test_the_graph_names_the_implementation(order, node):
    graphs = Graphs()
    backend = testing.fake_backend(builders=[fake("fake.graphed")])
    with testing.installed(backend), ops.use(order, exact=False):
        got = compiled(lambda x, w: ops.linear(x, w, act="relu"), graphs)(X, W)
    assert graphs.targets() == [f"{node}.default"]
    torch.testing.assert_close(got, (X @ W.t()).relu())


@pytest.mark.usefixtures("torch_serves")
def test_the_compiler_is_asked_by_metadata_and_gets_no_shapes():
    seen = []

    def reasons(impl, request):
        seen.append((request.shapes, dict(request.options)))
        return []

    backend = testing.fake_backend(builders=[fake("fake.told", reasons=reasons, reads_shapes=True)])
    with testing.installed(backend):
        compiled(lambda x, w: ops.linear(x, w, act="relu"))(X, W)
    assert set(map(str, seen)) == {str(((), {"act": "relu", "out_dtype": None}))}


@pytest.mark.usefixtures("torch_serves")
def test_bad_arguments_are_refused_while_compiling():
    with pytest.raises(Exception, match="last dimension must be w's in"):
        compiled(lambda x, w: ops.linear(x, w))(X, torch.ones(4, 5))


def test_nothing_that_serves_is_an_error_while_compiling():
    with (
        testing.installed(testing.fake_backend()),
        ops.use(strict=True),
        pytest.raises(Exception, match="no implementation serves linear") as caught,
    ):
        compiled(lambda x, w: ops.linear(x, w))(X, W)
    causes = [caught.value]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    assert any(isinstance(cause, OpResolutionError) for cause in causes)


@pytest.mark.usefixtures("torch_serves")
def test_a_module_with_parameters_compiles_and_trains():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(W.clone())

        def forward(self, x):
            return ops.rms_norm(ops.linear(x, self.weight, act="gelu"))

    layer = Layer()
    want = torch.autograd.grad(layer(X).square().sum(), layer.weight)
    compiled(layer)(X).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, want[0])


@pytest.mark.usefixtures("torch_serves")
def test_export_keeps_the_implementation_s_name():
    class Layer(torch.nn.Module):
        def forward(self, x, w):
            return ops.linear(x, w)

    program = torch.export.export(Layer(), (X, W))
    assert "accel.linear_torch.default" in str(program.graph)
    torch.testing.assert_close(program.module()(X, W), X @ W.t())


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.usefixtures("torch_serves")
def test_inductor_takes_a_result_s_strides_at_their_word(tmp_path, monkeypatch):
    """A norm of a transposed input keeps its strides in eager torch; compiled code that indexes
    the result as it was promised must get the same values."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.randn(6, 4).t()

    def function(x):
        return ops.rms_norm(x, eps=0.5) * 2 + 1

    with ops.use("rms_norm=reference", fallback="allow"):
        got = compiled(function, accel.get_accelerator().get_compile_backend())(x)
        torch.testing.assert_close(got, function(x))
