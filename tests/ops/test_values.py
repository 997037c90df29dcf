"""What ops return, against float64, for every sample, dtype and implementation of the core."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import accel
from accel import ops, testing
from accel.contracts import CONTRACTS

HOST = torch.device(testing.HOST)
F32 = torch.float32

pytestmark = pytest.mark.usefixtures("torch_serves")


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, F32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", CONTRACTS)
def test_every_sample_is_right(op, dtype, impl, call, exact, assert_exact):
    with ops.use(f"{op}={impl}"):
        for sample in CONTRACTS[op].samples():
            args = sample.make(dtype, HOST)
            got, promised = call(op, args), CONTRACTS[op].fake(*args)
            assert dtypes(got) == dtypes(promised), sample.name
            assert_exact(op, got, exact(op, args))


def dtypes(results):
    return [t.dtype for t in results] if isinstance(results, tuple) else results.dtype


WRONG = {
    "linear": {"act": "gelu", "b": None, "w": lambda w: w * 1.01},
    "gated_linear": {"act": "gelu", "b_up": None, "b_gate": None, "w_up": lambda w: w * 1.01},
    "quantized_linear": {"act": "gelu", "b": None, "scales": lambda scales: scales * 1.01},
    "norm_linear": {
        "norm_w": None,
        "norm_b": None,
        "eps": 0.1,
        "x": lambda x: x + 0.1,
    },
    "grouped_linear": {
        "b": None,
        "act": "relu",
        "w": lambda w: w.flip(0),
        "ends": lambda ends: ends // 2,
    },
    "tiled_mlp": {
        "act": "relu",
        "b_down": None,
        "w_gate": lambda w: None if w is None else w * 1.01,
    },
    "rms_norm": {"eps": 1e-3, "w": None, "x": lambda x: x + 0.05},
    "layer_norm": {"eps": 1e-3, "w": None, "b": None, "x": lambda x: x * torch.arange(x.shape[-1])},
    "rotary": {"interleaved": True, "sin": lambda sin: -sin, "cos": lambda cos: cos * 1.02},
    "attention": {
        "causal": False,
        "scale": 0.3,
        "k": lambda k: k.flip(0),
        "v": lambda v: v * 1.02,
        "mask": lambda mask: None if mask is None else mask * 1.1,
        "slopes": lambda slopes: None if slopes is None else slopes * 1.1,
        "seed": lambda seed: None if seed is None else seed + 1,
        "window": 3,
        "softcap": 50.0,
    },
    "add_norm": {"residual": lambda residual: residual * 1.02, "w": None, "eps": 1e-3},
    "bias_act": {"act": "gelu", "b": None, "x": lambda x: x * 1.01},
    "softmax": {"scale": 1.5, "mask": None, "x": lambda x: x * 1.02},
    "dropout_add": {
        "residual": None,
        "b": None,
        "seed": lambda seed: None if seed is None else seed + 1,
        "rows": lambda rows: None if rows is None else rows + 1,
    },
    "embedding": {"ids": lambda ids: ids.flip(0) if ids.dim() else ids, "w": lambda w: w * 1.02},
    "transformer_layer": {
        "heads": 1,
        "pre_norm": lambda pre: not pre,
        "causal": True,
        "mask": None,
        "act": "relu",
        "norm_w": lambda w: w * 1.05,
        "out_b": lambda b: b * 0,
        "attn_dropout": 0.0,
    },
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in WRONG for name in WRONG[op]])
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_the_budget_tells_a_wrong_result(op, name, dtype, call, exact, assert_exact):
    """A gelu for a silu, a bias left out, a weight 1 % off: some sample shows each of them."""
    caught = 0
    for sample in CONTRACTS[op].samples():
        args = sample.make(dtype, HOST)
        named = dict(zip(CONTRACTS[op].parameters, args))
        change = WRONG[op][name]
        wrong = named | {name: change(named[name]) if callable(change) else change}
        try:
            assert_exact(op, call(op, tuple(wrong.values())), exact(op, args))
        except AssertionError:
            caught += 1
    assert caught


def test_the_arguments_are_left_as_they_were(call):
    for op, contract in CONTRACTS.items():
        for sample in contract.samples():
            args, again = sample.make(F32, HOST), sample.make(F32, HOST)
            call(op, args)
            for given, kept in zip(args, again):
                if isinstance(given, torch.Tensor):
                    assert torch.equal(given, kept), (op, sample.name)


def test_arguments_have_the_schema_s_names_and_defaults():
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(ops.linear(x=x, w=w), ops.linear(x, w, None, act=None, out_dtype=None))
    assert torch.equal(ops.gated_linear(x, w, w), ops.gated_linear(x, w, w, act="silu"))
    assert torch.equal(ops.rms_norm(x), ops.rms_norm(x, None, eps=1e-6))
    with pytest.raises(TypeError, match="positional"):
        ops.linear(x, w, None, "relu")


def test_threads_may_call_with_and_without_gradient_at_once():
    x, w = torch.randn(7, 5), torch.randn(3, 5)
    want, gradient = x @ w.t(), torch.ones(7, 3).t() @ x

    def work(_):
        with ops.use(exact=False):
            mine = w.clone().requires_grad_()
            recorded, plain = ops.linear(x, mine), ops.linear(x, w)
            recorded.sum().backward()
            assert torch.allclose(plain, want)
            assert torch.allclose(recorded, want)
            assert torch.allclose(mine.grad, gradient)
            assert (recorded.requires_grad, plain.requires_grad) == (True, False)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(work, range(200)))) == 200


@pytest.mark.parametrize("bad", [None, 3, [1.0], "x", object(), torch.float32])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_tensor_is_a_type_error(bad, place):
    args = [torch.ones(2, 3), torch.ones(4, 3)]
    args[place] = bad
    with pytest.raises(TypeError, match=f"{'xw'[place]} must be a torch.Tensor, not "):
        ops.linear(*args)


@pytest.mark.parametrize("bad", [None, "small", torch.tensor(1e-6), 1j])
def test_a_norm_s_eps_is_a_number(bad):
    with pytest.raises(TypeError, match="eps must be a number"):
        ops.rms_norm(torch.ones(2, 3), eps=bad)


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_a_norm_s_eps_is_not_negative(bad):
    ops.rms_norm(torch.ones(2, 3))
    with pytest.raises(accel.errors.OpArgumentError, match="eps must be at least 0"):
        ops.rms_norm(torch.ones(2, 3), eps=bad)
