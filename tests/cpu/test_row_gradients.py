"""accel_cpu.native: gradients of the ops that go through rows, and what their forwards promise
beyond the contracts' tolerances."""

import sys

import pytest
import torch
from instruction_sets import DTYPES, ISAS, randn, run, same_bits

from accel import ops
from accel.contracts import CONTRACTS
from accel.contracts.activation import ACTIVATIONS
from accel_conformance.case import Evidence
from accel_conformance.measure import exact, shares
from accel_conformance.oracles import ORACLES
from accel_conformance.suite.gradients import ROUNDINGS, check
from accel_conformance.target import Target
from accel_cpu.builders import LIBRARY, TilingBuilder, TransformerBuilder

OPS = (
    "rms_norm", "layer_norm", "add_norm", "bias_act", "dropout_add", "softmax", "rotary", "logprob",
    "attention",
)  # fmt: skip
NATIVE = ";".join(f"{op}=accel_cpu.native" for op in OPS)
ROWS = 131
BUILDERS = TransformerBuilder(), TilingBuilder()
SEED = torch.tensor(-(2**61) + 12345)
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _served():
    with ops.use(NATIVE):
        yield


def grads_of(y):
    """The same for the first rows of however many."""
    return randn(ROWS, *y.shape[1:], seed=9).to(y.dtype)[: len(y)]


def gradients(function, *tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    return torch.autograd.grad(results, leaves, [grads_of(y) for y in results])


def ids_of(x):
    return torch.arange(len(x)) % x.shape[-1]


# Of x and vectors of its width; the first gradient is x's, the others are summed over the rows.
CASES = {
    "rms_norm": (ops.rms_norm, 1),
    "layer_norm": (ops.layer_norm, 2),
    "add_norm": (lambda x, w: ops.add_norm(x, x.detach().flip(-1), w), 1),
    **{f"bias_act_{a}": (lambda x, b, a=a: ops.bias_act(x, b, act=a), 1) for a in ACTIVATIONS},
    "dropout_add": (lambda x, b: ops.dropout_add(x, None, b, SEED, p=0.3), 1),
    "softmax": (lambda x: ops.softmax(x, scale=0.5), 0),
    "logprob": (lambda x: ops.logprob(x, ids_of(x)), 0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_row_s_gradient_is_its_own_and_sums_do_not_depend_on_threads(case, dtype):
    function, vectors = CASES[case]
    for k in (1, 7, 64, 1000):
        x = randn(ROWS, k, dtype=dtype) * 3
        weights = [randn(k, dtype=dtype, seed=i + 1) for i in range(vectors)]
        found = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found[threads] = gradients(function, x, *weights)
        assert all(map(same_bits, found[1], found[2]))
        for m in (1, 2, 33):
            assert same_bits(gradients(function, x[:m], *weights)[0], found[1][0][:m])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_an_activation_has_the_same_bits_wherever_an_element_stands(act, dtype):
    z = torch.linspace(-20, 20, 701).to(dtype)
    alone = ops.bias_act(z[:, None], act=act).squeeze(-1)
    for start in range(18):
        for end in (start + 1, start + 15, 600, 701):
            assert same_bits(ops.bias_act(z[start:end], act=act), alone[start:end])


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_an_activation_s_far_ends(act):
    z = torch.tensor([-INF, -3e38, -1e20, -1e4, 1e4, 1e20, 3e38, INF, NAN], requires_grad=True)
    y = ops.bias_act(z, act=act)
    assert torch.equal(y[1:4], torch.zeros(3))  # of -inf some have a NaN, as 0 times infinity
    assert torch.equal(y[4:8], z[4:8])
    assert y[8].isnan()
    (slope,) = torch.autograd.grad(y.sum(), z)
    from agreement import assert_agree  # not of a script, which this file also is

    assert_agree(slope[1:7], torch.tensor([0.0, 0, 0, 1, 1, 1]), operations=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_has_the_bits_of_the_composition(dtype):
    reference = CONTRACTS["dropout_add"].reference
    for k in (1, 2, 511, 512, 513, 1030):
        x, residual, b = (
            randn(5, k, dtype=dtype),
            randn(5, k, dtype=dtype, seed=1),
            randn(k).to(dtype),
        )
        x[0, 0] = INF  # dropped, it is 0
        for rows in (None, torch.tensor([2**47 + 1, 0, 2**63 - 1, -3, 7])):
            for p in (0.0, 0.1, 0.5, 1 - 2**-31, 1 - 2**-40, 1.0):
                args = residual, b, SEED, rows
                assert same_bits(ops.dropout_add(x, *args, p=p), reference(x, *args, p))


def test_softmax_of_nothing_is_nothing_and_a_nan_stays():
    x = torch.full((4, 37), -INF)
    x[1, 3], x[2, 36], x[3, 0] = 5, NAN, NAN
    y = ops.softmax(x)
    assert torch.equal(y[0], torch.zeros(37))
    assert y[1, 3] == 1
    assert y[2:].isnan().all()


def test_the_total_of_add_norm_may_be_changed_in_place_before_the_backward():
    x, residual = randn(3, 9).requires_grad_(), randn(3, 9, seed=1)
    normed, total = ops.add_norm(x, residual)
    (want,) = torch.autograd.grad(normed.sum(), x, retain_graph=True)
    total.add_(1)
    assert torch.equal(torch.autograd.grad(normed.sum(), x)[0], want)


@pytest.mark.parametrize("adjustment", [{}, {"scale": 1.7, "softcap": 30.0, "temperature": 0.8}])
def test_the_gradient_of_an_unlikely_id_or_an_impossible_one(adjustment):
    z, ids = randn(3, 300) * 5, torch.tensor([3, 4, 5])
    z[0, 3], z[1, 4] = -40, -INF
    z[2, ::2] = -INF
    found = gradients(lambda z: ops.logprob(z, ids, **adjustment), z)[0]
    assert found.isfinite().all()
    grads = [exact(grads_of(z[:, 0]))] * 2
    options = {"scale": 1.0, "softcap": None, "temperature": 1.0} | adjustment
    given = (exact(z), exact(ids), None, None, *options.values())
    sums = ORACLES["logprob"].gradient(grads, *given)[0]
    budget = CONTRACTS["logprob"].tolerance[z.dtype]
    used = shares(found, sums.total, budget, sums.unit(), ROUNDINGS)
    assert used.within, str(used)


@pytest.mark.parametrize("isa", ISAS)
def test_gradients_on_every_instruction_set(isa):
    assert run(__file__, isa) == [isa, *OPS]


def assert_gradients_are_right(name):
    """Those of every sample of the contract, against float64."""
    builder = next(b for b in BUILDERS for impl in b.impls if impl.op == name)
    impl = next(impl for impl in builder.impls if impl.op == name)
    target = Target(CONTRACTS[name], impl, builder, torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16):
        for sample in target.contract.samples():
            with target.alone():
                seen = Evidence()
                check(target, sample.name, sample.make(dtype, target.device), seen)
            assert not seen.broken, (sample.name, dtype, *map(str, seen.broken))


if __name__ == "__main__":
    assert len(sys.argv) == 2
    LIBRARY.load()
    print(torch.ops.accel_cpu_kernels.isa())
    for op in OPS:
        assert_gradients_are_right(op)
        print(op)
