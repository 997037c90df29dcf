"""IPEX as it is: what serves by it, and what its import leaves alone. `make test-ipex` runs these
in an environment of their own; accel conform proves the values."""

from importlib.util import find_spec

import pytest
import torch

from accel import ops
from accel.contracts import CONTRACTS
from accel.errors import OpRefusedError
from accel_conformance.measure import exact, shares
from accel_conformance.oracles import ORACLES
from accel_cpu.packing import frozen_weights

pytestmark = pytest.mark.skipif(
    find_spec("intel_extension_for_pytorch") is None,
    reason="IPEX is not installed: make test-ipex",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = ("linear", "rms_norm", "rotary")
IPEX = ";".join(f"{op}=accel_cpu.ipex" for op in OPS)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_nothing_of_it_is_imported_before_it_is_called(fresh):
    fresh(f"""
        import sys, torch, warnings
        from accel import ops
        from accel.ops import explain

        with ops.use({IPEX!r}, exact=False):
            for op in {OPS!r}:
                assert explain(op, device="cpu").chosen.impl.id == "accel_cpu.ipex"
            assert "intel_extension_for_pytorch" not in sys.modules
            ops.rms_norm(torch.ones(2, 8))
        assert "intel_extension_for_pytorch" in sys.modules
    """)


def test_the_kernels_bits_are_the_same_after_its_import(fresh):
    """torch's own sums and products are not: its import replaces them."""
    fresh("""
        import torch
        from accel import ops
        from accel.contracts import CONTRACTS

        def bits():
            with torch.no_grad():
                for op, contract in CONTRACTS.items():
                    if ops.explain(op, device="cpu").chosen.impl.id == "accel_cpu.native":
                        for sample in contract.samples():
                            args = sample.make(torch.float32, torch.device("cpu"))
                            call = getattr(ops, op)
                            y = call(**dict(zip(contract.parameters, args)))
                            for part in y if isinstance(y, tuple) else (y,):
                                yield op, sample.name, part.reshape(-1).view(torch.uint8)

        before = list(bits())
        import intel_extension_for_pytorch
        after = list(bits())
        assert len(before) > 300
        for (op, name, was), (_, _, now) in zip(before, after):
            assert torch.equal(was, now), (op, name)
    """)


@pytest.mark.parametrize("op", OPS)
def test_where_rows_must_not_vary_it_refuses(op):
    with ops.use(f"{op}=accel_cpu.ipex", strict=True):
        decision = ops.explain(op, device="cpu")
    assert decision.chosen is None
    assert "shape_invariant" in str(decision)


def test_a_product_it_does_not_have_is_refused_in_words():
    x, w = randn(3, 8), randn(5, 8, seed=1)
    with ops.use("linear=accel_cpu.ipex", exact=False):
        with pytest.raises(OpRefusedError, match="needs no activation, found silu"):
            ops.linear(x, w, act="silu")
        with pytest.raises(OpRefusedError, match="float16"):
            ops.linear(x.half(), w.half())


def test_gradients_are_those_of_the_contract():
    tensors = [t.requires_grad_() for t in (randn(7, 9), randn(5, 9, seed=1), randn(5, seed=2))]
    with ops.use("linear=accel_cpu.ipex", exact=False):
        y = ops.linear(*tensors)
    grad = randn(7, 5, seed=3)
    want = CONTRACTS["linear"].backward(grad, (True, True, True), *tensors, None, None)
    for found, right in zip(torch.autograd.grad(y, tensors, grad), want):
        torch.testing.assert_close(found, right)


def test_a_packed_weight_is_kept_where_the_user_says_that_it_stays():
    x, w, b = randn(3, 16), randn(6, 16, seed=1), randn(6, seed=2)
    with torch.no_grad(), ops.use("linear=accel_cpu.ipex", exact=False):
        first = ops.linear(x, w, b)
        with frozen_weights():
            assert torch.equal(ops.linear(x, w, b), first)
            without = ops.linear(x, w)
            w.data.zero_()
            assert torch.equal(ops.linear(x, w, b), first)
            assert torch.equal(ops.linear(x, w), without)
        assert torch.equal(ops.linear(x, w, b), b.expand(3, 6))


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_calls_for_gpus_say_what_the_contract_does(op, dtype):
    """On the host, by the build for it: the same names, in the same order of arguments."""
    from accel_xpu.ipex import TransformerBuilder

    builder = TransformerBuilder()
    (impl,) = (impl for impl in builder.impls if impl.op == op)
    kernel, contract = builder.load(impl), CONTRACTS[op]
    for sample in contract.samples():
        args = sample.make(dtype, torch.device("cpu"))
        y = kernel(*args)
        assert (y.dtype, y.shape) == (dtype, args[0].shape)
        want = ORACLES[op].value(*map(exact, args))
        assert shares(y, want, contract.tolerance[dtype]).within, sample.name
