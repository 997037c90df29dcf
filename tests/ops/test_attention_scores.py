"""attention: what is added to scores, cut off, hidden and dropped, against plain loops."""

import numpy as np
import pytest
import torch
from attention_cases import CASES, F64, INF, SEED, SPANS, TENSORS, E, H, M, drawn, qkv, table

from accel import ops, torch_impls
from accel.contracts import ATTENTION
from accel.contracts import attention as contract_module
from accel.contracts import spans as spans_module
from accel_conformance.oracles.random import kept

each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def plain(q, k, v, spans, mask=None, slopes=None, seed=None, causal=True, scale=None, window=None,
          softcap=None, dropout=0.0):  # fmt: skip
    """One query and one head at a time, keys picked by the words of the contract."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows = [[q.new_zeros(v.shape[2])] * q.shape[1] for _ in range(q.shape[0])]
    for b, (q_start, q_len, k_start, k_len) in enumerate(spans.tolist()):
        for i in range(q_len):
            for h in range(q.shape[1]):
                g, at = h * k.shape[1] // q.shape[1], i + k_len - q_len
                scores, values, left = [], [], []
                for j in range(k_len):
                    far = at - j if causal else abs(at - j)
                    if (causal and far < 0) or (window is not None and far >= window):
                        continue
                    s = (q[q_start + i, h] * k[k_start + j, g]).sum() * scale
                    s = s if softcap is None else softcap * torch.tanh(s / softcap)
                    if mask is not None:
                        value = mask[min(b, len(mask) - 1), min(h, mask.shape[1] - 1),
                                     min(i, mask.shape[2] - 1), j]  # fmt: skip
                        if value == -INF:
                            continue
                        s = s + value
                    s = s if slopes is None else s + slopes[h] * (j - at)
                    row = np.array([(b * q.shape[1] + h) * 2**32 + i])
                    scores.append(s)
                    values.append(v[k_start + j, g])
                    left.append(not dropout or bool(kept(seed.numpy(), row, j + 1, dropout)[0, j]))
                if any(left):
                    p = torch.stack(scores).softmax(0) * torch.tensor(left)
                    rows[q_start + i][h] = p @ torch.stack(values) / (1 - dropout)
    return torch.stack([torch.stack(row) for row in rows])


@pytest.fixture(params=["reference", "torch"])
def attend(request):
    """An implementation with the schema's defaults."""
    kernels = {"reference": ATTENTION.reference, "torch": torch_impls._KERNELS["attention"]}
    return lambda *args, **kwargs: kernels[request.param](*ATTENTION.bind(args, kwargs))


@each_case
def test_values_are_those_of_loops(attend, options):
    args = (*qkv(), SPANS)
    torch.testing.assert_close(attend(*args, **options), plain(*args, **options))


@pytest.fixture(params=["blocks", "one_block", "whole"])
def _parts(request, monkeypatch):
    """Two queries at a time; as much as goes together; or as under a trace, as tensors."""
    if request.param == "blocks":
        monkeypatch.setattr(spans_module, "BLOCK_SCORES", 2 * H * 4)
    if request.param == "whole":
        monkeypatch.setattr(contract_module, "readable", lambda spans: False)


@each_case
@pytest.mark.usefixtures("_parts")
def test_gradients_are_those_of_loops(options):
    named = dict(zip(TENSORS, (*qkv(), SPANS))) | options
    leaves = {
        name: t.clone().requires_grad_()
        for name, t in named.items()
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    grad = drawn(M, H, E, seed=4)
    out = plain(**(named | leaves))
    if out.requires_grad:
        wanted = torch.autograd.grad(out, leaves.values(), grad, materialize_grads=True)
    else:
        wanted = [torch.zeros_like(leaf) for leaf in leaves.values()]
    found = ATTENTION.backward(grad, [n in leaves for n in TENSORS], *ATTENTION.bind((), named))
    assert [found[TENSORS.index(name)].dtype for name in leaves] == [F64] * len(leaves)
    for name, want in zip(leaves, wanted):
        torch.testing.assert_close(found[TENSORS.index(name)], want)
    assert sum(one is not None for one in found) == len(leaves)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.usefixtures("torch_serves")
def test_first_and_second_derivatives_are_right(traced, monkeypatch):
    if traced:
        monkeypatch.setattr(contract_module, "readable", lambda spans: False)
    spans = table((0, 2, 0, 2), (2, 2, 2, 2), (4, 2, 1, 3))  # alike, and one that shares keys
    shapes = ((6, 2, 3), (4, 1, 3), (4, 1, 2), (3, 2, 1, 3), (2,))
    leaves = [drawn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]

    def function(q, k, v, mask, slopes):
        return ops.attention(
            q, k, v, spans, mask, slopes, SEED, scale=0.9, window=3, softcap=2.0, dropout=0.2
        )

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)
