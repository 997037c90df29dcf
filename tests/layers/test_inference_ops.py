"""The inference ops: what they return, in numpy's float64, and what they leave alone."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from agreement import assert_agree, assert_slope
from inference_more_cases import CASES

import accel
from accel import testing
from accel.contracts import CONTRACTS, Tolerance
from accel.contracts.quantized_linear import quantize
from accel.layers import inference
from accel.layers.inference import InferenceConfig
from accel_conformance.measure import shares

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# One case of each op, the first: dynamo takes its time.
FIRST = list({case.op: case for case in reversed(CASES)}.values())


@contextmanager
def serving(impl):
    """Eager torch, the references, or what is installed here."""
    plugins = nullcontext() if impl == "installed" else testing.installed(testing.fake_backend())
    order = "*=reference" if impl == "reference" else None
    with plugins, accel.ops.use(order, exact=False, fallback="allow"):
        yield


@pytest.fixture
def impl():
    return "torch"


@pytest.fixture(autouse=True)
def _serving(impl):
    with serving(impl):
        yield


def seeded(case):
    return np.random.default_rng(sum(map(ord, str(case))))


def made(case, dtype):
    """(op, its arguments as tensors, the same in float64 as numpy has them)."""
    arguments, scales = case.make(seeded(case)), {}
    tensors, arrays = dict(arguments), dict(arguments)
    for name, value in arguments.items():
        if name == "position_ids":
            tensors[name] = torch.tensor(value)
        elif not isinstance(value, np.ndarray):
            continue
        elif name in case.quantized:
            by_rows = case.settings.get("transposed_mode", False)
            w = torch.from_numpy(value if by_rows else value.T)
            whole, scales[name] = quantize(w.float(), group_size=w.shape[1] // 2)
            spread = scales[name].double().repeat_interleave(w.shape[1] // 2, 1)
            tensors[name] = whole if by_rows else whole.t()
            arrays[name] = (whole * spread).numpy()
            arrays[name] = arrays[name] if by_rows else arrays[name].T
        else:
            tensors[name] = torch.from_numpy(value).to(dtype)
            arrays[name] = tensors[name].double().numpy()
    config = InferenceConfig(
        dtype=torch.int8 if case.quantized else dtype, quantization_scales=scales, **case.settings
    )
    return case.op(config), tensors, arrays


def called(case, op, tensors):
    found = getattr(op, case.method)(**tensors)
    return found if isinstance(found, tuple) else (found,)


def assert_near(case, got, want, dtype):
    """Float64 to its roundoff; else within what the contracts it goes through allow together.
    Zeros that fill up do not count as result."""
    assert got.dtype is dtype
    assert tuple(got.shape) == want.shape
    if dtype is F64:
        assert_agree(got.detach(), torch.from_numpy(want))
        return
    allowed = [CONTRACTS[op].tolerance[dtype] for op in case.through]
    together = Tolerance(sum(one.rms for one in allowed), sum(one.peak for one in allowed))
    size = np.sqrt(np.mean(np.square(want[want != 0])))
    used = shares(got, want, together, size)
    assert used.within, str(used)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("impl", ["torch", "reference", "installed"])
def test_every_op_is_what_numpy_says(case, dtype, impl):
    op, tensors, arrays = made(case, dtype)
    found, want = called(case, op, tensors), case.want(case.settings, **arrays)
    want = want if isinstance(want, tuple) else (want,)
    assert len(found) == len(want)
    for one, other in zip(found, want):
        assert_near(case, one, other, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_caller_s_tensors_are_left_alone(case):
    """They are as they were, and no result lies in their memory."""
    op, tensors, _ = made(case, F32)
    given = [t for t in tensors.values() if isinstance(t, torch.Tensor)]
    copies = [t.clone() for t in given]
    mine = {t.untyped_storage().data_ptr() for t in given}
    for _ in range(2):
        found = called(case, op, tensors)
        assert all(torch.equal(one, copy) for one, copy in zip(given, copies))
        assert not mine & {t.untyped_storage().data_ptr() for t in found}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_result_is_never_written_to_again(case):
    op, tensors, _ = made(case, F32)
    first = called(case, op, tensors)
    copies = [t.clone() for t in first]
    called(case, op, {n: -t if isinstance(t, torch.Tensor) and t.is_floating_point() else t
                      for n, t in tensors.items()})  # fmt: skip
    assert all(torch.equal(one, copy) for one, copy in zip(first, copies))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_the_slopes(case):
    """Along a random direction, beside the difference of two calls. Keys and values that attention
    keeps have none."""
    op, tensors, _ = made(case, F64)
    rng = torch.Generator().manual_seed(0)

    def draw(t):
        return torch.randn(t.shape, generator=rng, dtype=F64)

    soft = {n: t for n, t in tensors.items() if isinstance(t, torch.Tensor) and t.dtype is F64}
    along = {n: draw(t) for n, t in soft.items()}

    def run(step):
        moved = {n: (t + step * along[n]).requires_grad_(step == 0) for n, t in soft.items()}
        found = called(case, op, {**tensors, **moved})
        return (found[:1] if case.op is inference.SoftmaxContextOp else found), moved

    found, leaves = run(0)
    weights = [draw(t) for t in found]
    sum((t * w).sum() for t, w in zip(found, weights)).backward()
    slope = sum((t.grad * along[n]).sum() for n, t in leaves.items() if t.grad is not None)
    ahead, behind = (
        sum((t * w).sum() for t, w in zip(run(step)[0], weights)) for step in (1e-6, -1e-6)
    )
    assert slope != 0
    assert_slope(slope.item(), (ahead - behind).item(), step=1e-6)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_ops_compile_whole(case):
    op, tensors, _ = made(case, F32)
    want = called(case, op, tensors)
    compiled = torch.compile(getattr(op, case.method), backend="eager", fullgraph=True)
    found = compiled(**tensors)
    found = found if isinstance(found, tuple) else (found,)
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))


@pytest.mark.parametrize("op", [getattr(inference, n) for n in inference.__all__ if n[-2:] == "Op"])
def test_every_op_says_what_serves_it(op):
    found = op(InferenceConfig(dtype=BF16)).explain()
    assert set(found) == {*op.uses, *op.variants}
    assert all(d.chosen and d.request.dtype is BF16 for d in found.values())


def test_there_is_a_case_of_every_op():
    ops = {getattr(inference, n) for n in inference.__all__ if n.endswith("Op")}
    assert {case.op for case in CASES} == ops - {inference.BaseOp, inference.WorkspaceOp}


def test_the_fallback_of_linear_is_the_reference():
    op = inference.LinearOp(InferenceConfig(dtype=F32))
    x, w, b = torch.randn(2, 3, 8), torch.randn(8, 24), torch.randn(24)
    arguments = (x, w, b, True, True, 2)
    with accel.ops.use("linear=reference"):
        want = op(*arguments)
    found = op.linear_fallback(*arguments, False, 10000)
    assert torch.equal(found, want)
    turned = op.linear_fallback(x, w.t().contiguous(), *arguments[2:], True, 10000)
    # Its flag is heeded, whatever the config says. A product may sum a turned weight otherwise.
    torch.testing.assert_close(turned, want)
    assert found.shape == (3, 2, 2, 3, 32)
