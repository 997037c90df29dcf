"""attention: what is added to scores, cut off, hidden and dropped, against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accel import ops, testing, torch_impls
from accel.contracts import ATTENTION
from accel.contracts import attention as contract_module
from accel.contracts import spans as spans_module
from accel.refusal import Refusal
from accel.testing import HOST
from accel_conformance.oracles.random import kept

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
INF = float("inf")
H, G, D, E = 4, 2, 5, 3
TENSORS = ("q", "k", "v", "spans", "mask", "slopes", "seed")
SEED = torch.tensor(7)


def drawn(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def table(*rows):
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


# Two spans of one length that lie one after another, a shorter one, and one with a blind query.
SPANS = table((0, 3, 0, 4), (3, 3, 4, 4), (6, 2, 8, 5), (8, 3, 13, 2))
M, N, LONGEST, KEYS = 12, 15, 3, 6


def qkv():
    return drawn(M, H, D), drawn(N, G, D, seed=1), drawn(N, G, E, seed=2)


def hiding(mask):
    """With whole rows of -inf, and some of others."""
    mask = mask.clone()
    mask[0, 0, 0] = -INF
    mask[-1, -1, -1, :2] = -INF
    return mask


MASKS = {
    "of_keys": drawn(4, 1, 1, KEYS, seed=3),
    "of_all": drawn(1, 1, 1, KEYS, seed=3),
    "of_heads": drawn(1, H, LONGEST, KEYS, seed=3),
    "of_each": drawn(4, H, LONGEST, KEYS, seed=3),
    "hiding": hiding(drawn(4, 1, LONGEST, KEYS, seed=3)),
    "hiding_for_all": hiding(drawn(1, H, 1, KEYS, seed=3)),
}
SLOPES = torch.tensor([0.5, 0.25, 0.125, -1.0], dtype=F64)

CASES = {
    **{f"mask_{name}": {"mask": mask} for name, mask in MASKS.items()},
    "mask_two_way": {"mask": MASKS["hiding"], "causal": False},
    "slopes": {"slopes": SLOPES},
    "slopes_two_way": {"slopes": SLOPES, "causal": False},
    "window": {"window": 2},
    "window_of_one": {"window": 1},
    "window_two_way": {"window": 2, "causal": False},
    "softcap": {"softcap": 0.7, "scale": 1.0},
    "dropout": {"dropout": 0.4, "seed": SEED},
    "dropout_two_way": {"dropout": 0.4, "seed": SEED, "causal": False, "mask": MASKS["of_keys"]},
    "all_dropped": {"dropout": 1.0, "seed": SEED},
    "everything": {
        "mask": MASKS["of_heads"], "slopes": SLOPES, "seed": SEED, "scale": 0.9, "window": 3,
        "softcap": 1.5, "dropout": 0.3,
    },
}  # fmt: skip
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


# -- what padding and masks may not change -----------------------------------------------------


LENGTHS, PADDED = (4, 6, 2), 6


def test_a_padded_batch_has_the_rows_of_a_packed_one(attend):
    """With the dropped probabilities, by a mask that has no row for each query."""
    total, tokens = sum(LENGTHS), len(LENGTHS) * PADDED
    real = torch.cat([torch.arange(n) + i * PADDED for i, n in enumerate(LENGTHS)])
    starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    packed = table(*((s, n, s, n) for s, n in zip(starts, LENGTHS)))
    padded = table(*((i * PADDED, PADDED, i * PADDED, PADDED) for i in range(len(LENGTHS))))
    mask = torch.zeros(len(LENGTHS), 1, 1, PADDED, dtype=F64)
    for i, n in enumerate(LENGTHS):
        mask[i, ..., n:] = -INF
    rows = [drawn(total, heads, D, seed=i) for i, heads in enumerate((H, G, G))]
    spread = [t.new_ones(tokens, *t.shape[1:]).index_copy(0, real, t) for t in rows]
    for options in ({}, {"dropout": 0.4, "seed": SEED}):
        want = attend(*rows, packed, causal=False, **options)
        found = attend(*spread, padded, mask, causal=False, **options)[real]
        torch.testing.assert_close(found, want)
        assert torch.equal(found == 0, want == 0)


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_whom_the_mask_hides_from_all_gives_zero_with_gradient_zero(attend, dtype):
    q, k, v = (t.to(dtype) for t in qkv())
    q[:3] = float("nan")
    mask = torch.zeros(4, 1, 1, KEYS, dtype=dtype)
    mask[0] = -INF
    args = ATTENTION.bind((q, k, v, SPANS, mask))
    found = attend(*args)
    assert not found[:3].any()
    assert not found.isnan().any()
    grads = ATTENTION.backward(torch.ones_like(found), [True] * 3 + [False, True, False], *args)
    for grad, of_span in zip((*grads[:3], grads[4]), (slice(3), slice(4), slice(4), slice(1))):
        assert not grad.isnan().any()
        assert not grad[of_span].any()


def test_minus_ten_thousand_is_a_number(attend):
    """Where every key has it, it changes nothing, and where some have it they weigh nothing."""
    q, k, v = qkv()
    everywhere = torch.full((1, 1, 1, KEYS), -10000.0, dtype=F64)
    torch.testing.assert_close(attend(q, k, v, SPANS, everywhere), attend(q, k, v, SPANS))
    some = torch.zeros(1, 1, 1, KEYS, dtype=F64)
    some[..., 2:] = -10000.0
    hidden = some.masked_fill(some < 0, -INF)
    span = table((0, M, 0, 4))
    of_some, of_hidden = (attend(q, k, v, span, m, causal=False) for m in (some, hidden))
    torch.testing.assert_close(of_some, of_hidden)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 1, 2, 5), (4, H, 2, 9)], ids=str)
def test_a_mask_too_small_for_a_span_is_named(attend, shape):
    with pytest.raises(IndexError, match=r"span \d has \d queries and \d keys; the mask \[") as e:
        attend(*qkv(), SPANS, torch.zeros(shape, dtype=F64))
    assert str(list(shape)) in str(e.value)


def test_spans_that_are_alike_are_one_call(monkeypatch):
    calls = []

    def counted(q, *args, **kwargs):
        calls.append(tuple(q.shape))
        return torch_s_own(q, *args, **kwargs)

    torch_s_own = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    torch_impls._KERNELS["attention"](*ATTENTION.bind((*qkv(), SPANS, MASKS["of_keys"])))
    assert calls == [(2, H, 3, D), (1, H, 2, D), (1, H, 2, D)]


# -- through the door --------------------------------------------------------------------------


def picky(impl, request):
    assert request.options.keys() == {"mask", "slopes", "window", "softcap", "dropout"}
    found = request.options["mask"]
    return [Refusal("option", "no mask", "a mask")] if found else []


@pytest.fixture
def _picky():
    kernel = {"attention": testing.fake_kernel("attention")}
    builder = testing.fake_builder(kernel, family="TransformerBuilder", reasons=picky)
    with testing.installed(testing.fake_backend(builders=[builder])), ops.use(exact=False):
        yield


@pytest.mark.usefixtures("_picky")
def test_an_implementation_may_refuse_a_tensor_for_being_there():
    q, k, v = (t.float().requires_grad_() for t in qkv())
    mask = MASKS["of_keys"].float()
    for given, served in ((None, "fake"), (mask, "accel"), (None, "fake")):
        torch.compiler.reset()
        graphs = []

        def keep(module, inputs, graphs=graphs):
            graphs.append(str(module.graph))
            return module.forward

        attend = lambda given=given: ops.attention(q, k, v, SPANS, given)  # noqa: E731
        with torch.profiler.profile() as profile:
            found = torch.compile(attend, backend=keep, fullgraph=True)()
        assert f"{served}.attention" in graphs[0]
        assert f"{served}::attention" in "".join(event.name for event in profile.events())
        torch.testing.assert_close(found, attend())
    assert ops.explain("attention").chosen.impl.id == "fake.kernel"
    assert ops.explain("attention", mask=True).chosen.impl.id == "torch"
    with pytest.raises(TypeError, match="mask must be True or False"):
        ops.explain("attention", mask=mask)
    torch.compiler.reset()


@pytest.mark.usefixtures("torch_serves")
def test_autocast_leaves_slopes_in_what_is_computed_in():
    q, k, v = (t.float() for t in qkv())
    mask, slopes = MASKS["of_keys"].float(), SLOPES.float()
    with torch.autocast(HOST, dtype=BF16):
        found = ops.attention(q, k, v, SPANS, mask, slopes)
    lowered = [t.to(BF16) for t in (q, k, v, mask)]
    assert torch.equal(found, ops.attention(*lowered[:3], SPANS, lowered[3], slopes))


@pytest.mark.usefixtures("torch_serves")
def test_all_of_it_compiles_with_its_gradient():
    torch.compiler.reset()
    named = CASES["everything"]

    def step(q, k, v, mask, slopes, seed):
        options = {n: named[n] for n in ("scale", "window", "softcap", "dropout")}
        return ops.attention(q, k, v, SPANS, mask, slopes, seed, **options).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for seed in (SEED, SEED + 1):
        leaves = [t.requires_grad_() for t in (*qkv(), named["mask"].clone(), SLOPES.clone())]
        got = torch.autograd.grad(compiled(*leaves, seed), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(step(*leaves, seed), leaves))
    torch.compiler.reset()


@pytest.mark.usefixtures("torch_serves")
def test_functorch_differentiates_it_per_sample():
    q, k, v = qkv()
    masks = torch.stack([MASKS["of_keys"], MASKS["of_keys"] * 2])

    def loss(mask, v):
        return ops.attention(q, k, v, SPANS, mask, None, SEED, dropout=0.3).square().sum()

    found = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), (0, None))(masks, v)
    for i, mask in enumerate(masks):
        leaves = [mask.clone().requires_grad_(), v.clone().requires_grad_()]
        want = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(tuple(g[i] for g in found), want)


@pytest.mark.parametrize("window", [2.0, True, "2"], ids=str)
def test_a_window_is_a_whole_number(window):
    with pytest.raises(TypeError, match="window must be a whole number"):
        ATTENTION.check(*ATTENTION.bind((*qkv(), SPANS), {"window": window}))
