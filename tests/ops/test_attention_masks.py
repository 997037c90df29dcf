"""attention with masks, slopes and dropout: what padding may not change, and the way to kernels."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import (
    CASES,
    F64,
    INF,
    KEYS,
    MASKS,
    SEED,
    SLOPES,
    SPANS,
    D,
    G,
    H,
    M,
    drawn,
    qkv,
    table,
)
from torch._dynamo.testing import CompileCounterWithBackend

from accel import ops, testing, torch_impls
from accel.contracts import ATTENTION
from accel.refusal import Refusal
from accel.testing import HOST

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(params=["reference", "torch"])
def attend(request):
    """An implementation with the schema's defaults."""
    kernels = {"reference": ATTENTION.reference, "torch": torch_impls._KERNELS["attention"]}
    return lambda *args, **kwargs: kernels[request.param](*ATTENTION.bind(args, kwargs))


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
    sizes = {"head_size", "value_size"}
    assert request.options.keys() == {"mask", "slopes", "window", "softcap", "dropout", *sizes}
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


@pytest.fixture
def _compile_afresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def everything(extra=0):
    """(its leaves, with rows of no span at the end, and its options)"""
    options = dict(CASES["everything"])
    rows = (torch.cat([t, t[:extra]]) for t in qkv())
    leaves = (*rows, options.pop("mask").clone(), options.pop("slopes").clone())
    del options["seed"]
    return [t.requires_grad_() for t in leaves], options


@pytest.mark.usefixtures("torch_serves", "_compile_afresh")
def test_all_of_it_compiles_with_its_gradient():
    leaves, options = everything()

    def step(q, k, v, mask, slopes, seed):
        return ops.attention(q, k, v, SPANS, mask, slopes, seed, **options).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False)
    for seed, dropout in ((SEED, 0.3), (SEED + 1, 0.3), (SEED, 0.1)):
        options["dropout"] = dropout
        got = torch.autograd.grad(compiled(*leaves, seed), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(step(*leaves, seed), leaves))


@pytest.mark.usefixtures("torch_serves", "_compile_afresh")
def test_one_graph_serves_any_number_of_rows_with_its_gradient():
    def step(leaves, options):
        q, k, v, mask, slopes = leaves
        return ops.attention(q, k, v, SPANS, mask, slopes, SEED, **options).square().sum()

    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=graphs, fullgraph=True)
    for extra in (0, 3, 5):
        leaves, options = everything(extra)
        for t in leaves[:3]:
            torch._dynamo.mark_dynamic(t, 0)
        got = torch.autograd.grad(compiled(leaves, options), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(step(leaves, options), leaves))
    # torch 2.8 has one for odd and one for even numbers of rows, as it asks what is contiguous.
    assert graphs.frame_count == (1 if torch.__version__ >= "2.13" else 2)


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
