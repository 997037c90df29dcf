"""attention with torch's own gradient: the contract's values, kept and freed as torch would."""

import gc

import pytest
import torch
from attention_cases import CASES, SPANS, M, drawn, qkv, table
from torch.multiprocessing.reductions import StorageWeakRef

from accel import ops
from accel.contracts import ATTENTION
from accel.torch_impls import attention as by_torch

F64 = torch.float64
NAN = float("nan")
NEEDS = (True, True, True, *[False] * 9)
OPTIONS = ("causal", "scale", "window")
SERVED = {
    "equal": {"spans": table((0, 6, 0, 7), (6, 6, 7, 7))},
    "parts": {"spans": SPANS},
    "shared": {"spans": table((0, 4, 0, 6), (4, 3, 0, 9), (7, 4, 4, 8))},
    "steps": {"spans": table(*((i, 1, 0, i + 1) for i in range(M)))},
    "two_way": {"spans": SPANS, "causal": False},
    **{name: CASES[name] for name in CASES if name.startswith(("mask", "slopes", "window"))},
}

pytestmark = pytest.mark.usefixtures("torch_serves")


def fuses_shared_keys():
    """Whether torch's fused attention takes fewer heads of keys than of queries: 2.8's does not,
    and the contract's gradient serves."""
    q, k = (torch.ones(1, heads, 2, 4, requires_grad=True) for heads in (2, 1))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    return "Flash" in type(y.grad_fn).__name__


fused = pytest.mark.skipif(not fuses_shared_keys(), reason="torch's own keeps the scores here")


def arguments(case):
    """q, k and v with as many values as there are dimensions, as torch's fused kernels want."""
    q, k, _ = qkv()
    case = {"spans": SPANS, **case}
    return (q, k, drawn(*k.shape, seed=2), case.pop("spans")), case


@pytest.fixture
def no_contract(monkeypatch):
    """The contract's gradient may not be asked."""
    served = by_torch._backward
    asked = []

    def backward(*args, **kwargs):
        asked.append(True)
        return served(*args, **kwargs)

    monkeypatch.setattr(by_torch, "_backward", backward)
    yield
    assert asked


@fused
@pytest.mark.usefixtures("no_contract")
@pytest.mark.parametrize("case", SERVED)
def test_torch_s_gradient_is_the_contract_s(case):
    (*tensors, spans), case = arguments(SERVED[case])
    leaves = [t.requires_grad_() for t in tensors]
    y = ops.attention(*leaves, spans, **case)
    grad = drawn(*y.shape, seed=5)
    found = torch.autograd.grad(y, leaves, grad)
    want = ATTENTION.backward(grad, NEEDS, *ATTENTION.bind((*tensors, spans), case))
    torch.testing.assert_close(found, tuple(want[:3]))


@fused
@pytest.mark.usefixtures("no_contract")
@pytest.mark.parametrize("case", ["parts", "mask_hiding", "mask_two_way", "window_two_way"])
def test_what_nobody_sees_is_nothing_to_gradients(case):
    (q, k, v, spans), case = arguments(SERVED[case])
    args = ATTENTION.bind((q, k, v, spans), case)
    grad = drawn(*q.shape, seed=5)  # v has q's last dimension
    want = ATTENTION.backward(grad, NEEDS, *args)[:3]
    blind = (ATTENTION.reference(*args) == 0).flatten(1).all(1)
    assert blind.any()
    q[blind], grad[blind] = NAN, NAN
    leaves = [t.requires_grad_() for t in (q, k, v)]
    found = torch.autograd.grad(ops.attention(*leaves, spans, **case), leaves, grad)
    torch.testing.assert_close(found, tuple(want))


@pytest.mark.parametrize("given", ["mask", "slopes", "values"])
def test_where_torch_s_would_keep_the_scores_nothing_is_kept_but_the_arguments(given):
    q, k, v = (drawn(64, 2, 4, seed=i) for i in range(3))
    args = {"q": q, "k": k, "v": v, "spans": table((0, 64, 0, 64))}
    if given == "values":
        args["v"] = v[..., :3].clone()
    else:
        args[given] = drawn(2) if given == "slopes" else drawn(1, 1, 64, 64)
    leaves = [t.requires_grad_() for t in args.values() if t.is_floating_point()]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ops.attention(**args)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in args.values()}
    torch.autograd.grad(y.sum(), leaves)


@fused
@pytest.mark.parametrize("case", ["equal", "parts"])
def test_a_result_changed_in_place_is_noticed(case):
    (*tensors, spans), _ = arguments(SERVED[case])
    y = ops.attention(*(t.requires_grad_() for t in tensors), spans)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified (by an )?in-?place"):
        y.sum().backward()


@fused
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", ["equal", "parts"])
def test_memory_is_given_back_with_the_graph_or_by_the_backward(case, backward):
    (q, k, v, spans), _ = arguments(SERVED[case])
    leaf = torch.ones((), dtype=F64, requires_grad=True)
    storages = []

    def pack(t):
        storages.append(StorageWeakRef(t.untyped_storage()))
        return t.detach()  # for itself in its place a result would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = ops.attention(leaf + q, leaf + k, leaf + v, spans.clone())
    loss = y.sum()
    del y
    gc.disable()
    try:
        if backward:
            loss.backward()
        else:
            del loss
        assert len(storages) > 4
        assert all(storage.expired() for storage in storages)
    finally:
        gc.enable()
