"""attention: which query sees which key, and gradients cut into blocks or taken at once."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from accel import ops, torch_impls
from accel.contracts import ATTENTION
from accel.contracts import attention as contract_module
from accel.contracts import spans as spans_module

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NAN = float("nan")
NEEDS = (True, True, True, False, False, False, False)  # of the tensors


def drawn(*shape, dtype=F64, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=["reference", "torch"])
def attend(request):
    """An implementation with the schema's defaults."""
    kernels = {"reference": ATTENTION.reference, "torch": torch_impls._KERNELS["attention"]}
    return lambda *args, **kwargs: kernels[request.param](*ATTENTION.bind(args, kwargs))


def plain_attention(q, k, v, mask, scale=None):
    """Without groups or spans: q [m, H, D], k [n, H, D], v [n, H, E], mask [m, n]."""
    scores = torch.einsum("mhd,nhd->hmn", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    p = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hmn,nhe->mhe", p, v)


def qkv(m, n, heads=4, groups=2, d=8, e=6, dtype=F64):
    return (
        drawn(m, heads, d, dtype=dtype),
        drawn(n, groups, d, dtype=dtype, seed=1),
        drawn(n, groups, e, dtype=dtype, seed=2),
    )


def spans(*rows):
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def test_a_causal_span_is_aligned_at_its_end(attend):
    q, k, v = qkv(3, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    grouped = (t.repeat_interleave(2, 1) for t in (k, v))
    got = attend(q, k, v, spans((0, 3, 0, 5)))
    torch.testing.assert_close(got, plain_attention(q, *grouped, mask))


def test_steps_of_one_query_are_the_whole_prompt(attend):
    q, k, v = qkv(6, 6)
    whole = attend(q, k, v, spans((0, 6, 0, 6)))
    steps = [attend(q[[i]], k, v, spans((0, 1, 0, i + 1))) for i in range(6)]
    torch.testing.assert_close(torch.cat(steps), whole)
    at_once = attend(q, k, v, spans(*((i, 1, 0, i + 1) for i in range(6))))
    torch.testing.assert_close(at_once, whole)


def test_both_ways_a_span_sees_all_its_keys_and_no_others(attend):
    q, k, v = qkv(3, 9, groups=4)
    got = attend(q, k, v, spans((0, 3, 2, 5)), causal=False)
    torch.testing.assert_close(got, plain_attention(q, k[2:7], v[2:7], torch.ones(3, 5).bool()))


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_who_sees_nothing_is_zero_and_what_nobody_sees_is_not_looked_at(attend, dtype):
    q, k, v = qkv(9, 8, dtype=dtype)
    table = spans((1, 5, 2, 3), (7, 0, 5, 2), (7, 1, 7, 0))
    seen = {3: 0, 4: 1, 5: 2}  # the queries that see any, by their place in the result
    for t, rows in ((q, (0, 6, 7, 8)), (k, (0, 1, 5, 6, 7)), (v, (0, 1, 5, 6, 7))):
        t[list(rows)] = NAN
    got = attend(q, k, v, table)
    assert got.dtype is dtype
    assert not got[[i for i in range(9) if i not in seen]].any()
    alone = attend(q[list(seen)], k[2:5], v[2:5], spans((0, 3, 0, 3)))
    torch.testing.assert_close(got[list(seen)], alone)


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_query_that_is_not_finite_gives_nan_and_leaves_the_others_alone(attend, value, dtype):
    q, k, v = qkv(20, 20, dtype=dtype)
    table = spans((0, 3, 0, 3), (3, 17, 3, 17))
    clean = attend(q, k, v, table)
    bad = [0, 2, 19]
    q[bad, :, -1] = value
    got = attend(q, k, v, table)
    assert got[bad].isnan().all()
    others = [i for i in range(20) if i not in bad]
    assert torch.equal(got[others], clean[others])


@pytest.mark.parametrize(
    "bad", [(0, 4, 0, 3), (2, 2, 0, 2), (0, 2, 4, 2), (-1, 1, 0, 1), (0, 1, 0, -1)], ids=str
)
def test_a_span_out_of_range_is_named(attend, bad):
    q, k, v = qkv(3, 5)
    with pytest.raises(IndexError, match=r"span 1, .*of 3 queries and 5 keys") as caught:
        attend(q, k, v, spans((0, 1, 0, 1), bad))
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("of", ["k", "v"])
@pytest.mark.parametrize("scores", [{}, {"softcap": 2.0}], ids=["plain", "capped"])
def test_a_nan_of_a_span_stays_in_it(attend, of, scores):
    tensors = dict(zip("qkv", qkv(9, 9)))
    table = spans((0, 3, 0, 3), (3, 4, 3, 4), (7, 2, 7, 2))
    clean = attend(*tensors.values(), table, **scores)
    tensors[of][6] = NAN
    got = attend(*tensors.values(), table, **scores)
    assert got[6].isnan().all()
    others = [0, 1, 2, 7, 8]
    assert torch.equal(got[others], clean[others])


def gradients(args, grad):
    """(the contract's gradients of q, k and v, those of autograd through its reference)"""
    leaves = [a.detach().requires_grad_() for a in args[:3]]
    by_autograd = torch.autograd.grad(ATTENTION.reference(*leaves, *args[3:]), leaves, grad)
    return ATTENTION.backward(grad, NEEDS, *args)[:3], by_autograd


@pytest.fixture
def small_blocks(monkeypatch):
    """Two queries of four heads at a time."""
    monkeypatch.setattr(spans_module, "BLOCK_SCORES", 2 * 4 * 7)


@pytest.fixture
def unreadable(monkeypatch):
    """As under a trace: the spans stay tensors."""
    monkeypatch.setattr(contract_module, "readable", lambda spans: False)


TABLES = {
    "packed": ((0, 5, 0, 5), (5, 6, 5, 7)),
    "shared": ((0, 4, 0, 6), (4, 3, 0, 9), (7, 4, 4, 8)),
    "blind": ((1, 9, 3, 4), (10, 1, 0, 0)),
    "none": (),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("table", TABLES)
def test_gradients_are_the_same_by_blocks_and_at_once(table, causal, monkeypatch):
    tensors = (*qkv(11, 12), spans(*TABLES[table]))
    args = ATTENTION.bind(tensors, {"causal": causal, "scale": 0.3})
    grad = drawn(11, 4, 6, seed=3)
    by_blocks = ATTENTION.backward(grad, NEEDS, *args)[:3]
    monkeypatch.setattr(contract_module, "readable", lambda spans: False)
    at_once, by_autograd = gradients(args, grad)
    for one, two, three in zip(by_blocks, at_once, by_autograd, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


@pytest.mark.usefixtures("small_blocks")
def test_a_block_is_no_larger_than_it_may_be_and_has_no_keys_that_none_sees():
    rows, keys = (torch.arange(n).reshape(n, 1, 1) for n in (7, 8))
    found = list(spans_module.blocks(spans((2, 5, 1, 7)), 7, 8, 4, True))
    assert [part.rows(rows).flatten().tolist() for part in found] == [[2, 3], [4, 5], [6]]
    assert [part.keys(keys).flatten().tolist() for part in found] == [
        [*range(1, last)] for last in (5, 7, 8)
    ]
    near = list(spans_module.blocks(spans((2, 5, 1, 7)), 7, 8, 4, True, 2))
    assert [part.keys(keys).flatten().tolist() for part in near] == [[2, 3, 4], [4, 5, 6], [6, 7]]


@pytest.mark.usefixtures("unreadable")
def test_nan_that_nobody_sees_stays_out_of_gradients():
    q, k, v = qkv(4, 5)
    seen = ATTENTION.bind((q[1:3], k[1:4], v[1:4], spans((0, 2, 0, 3))))
    want = ATTENTION.backward(drawn(2, 4, 6), NEEDS, *seen)
    q[[0, 3]], k[[0, 4]], v[[0, 4]] = NAN, NAN, NAN
    grad = torch.full((4, 4, 6), NAN, dtype=F64)
    grad[1:3] = drawn(2, 4, 6)
    got = ATTENTION.backward(grad, NEEDS, *ATTENTION.bind((q, k, v, spans((1, 2, 1, 3)))))
    for found, wanted, rows in zip(got[:3], want[:3], (slice(1, 3), slice(1, 4), slice(1, 4))):
        torch.testing.assert_close(found[rows], wanted)
        assert found.count_nonzero() == wanted.count_nonzero()


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.usefixtures("torch_serves")
def test_first_and_second_derivatives_of_attention_are_right(traced, monkeypatch):
    if traced:
        monkeypatch.setattr(contract_module, "readable", lambda spans: False)
    leaves = [t.requires_grad_() for t in qkv(5, 4, heads=2, groups=1, d=3, e=2)]
    table = spans((0, 3, 0, 2), (3, 2, 1, 3))  # a query that sees none, and shared keys
    function = lambda q, k, v: ops.attention(q, k, v, table, scale=0.9)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.usefixtures("torch_serves")
def test_spans_are_read_in_eager_mode_alone():
    table, found = spans((0, 3, 0, 3)), []

    def look(table):
        found.append(spans_module.readable(table))
        return table.clone()

    look(table)
    look(table.to("meta"))
    torch.vmap(look)(table)
    for tracing in ("real", "fake", "symbolic"):
        make_fx(look, tracing_mode=tracing)(table)
    torch.compile(look, backend="eager", fullgraph=True)(table)
    torch.compiler.reset()
    assert found == [True, *[False] * 6]


@pytest.mark.usefixtures("torch_serves")
def test_functorch_differentiates_attention_per_sample():
    q, k, v = qkv(3, 5)
    table = spans((0, 3, 0, 5))
    loss = lambda q, k, v: ops.attention(q, k, v, table).square().sum()  # noqa: E731
    batch = torch.stack([q, q * 2])
    got = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), (0, None, None))(batch, k, v)
    for i in range(2):
        leaves = [t.detach().clone().requires_grad_() for t in (batch[i], k, v)]
        want = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(tuple(g[i] for g in got), want)


@pytest.mark.usefixtures("torch_serves")
def test_attention_compiles_with_its_gradient_for_any_spans():
    torch.compiler.reset()

    def step(q, k, v, table):
        return ops.attention(q, k, v, table).square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for table in (spans((0, 5, 0, 7)), spans((0, 2, 0, 2))):
        leaves = [t.requires_grad_() for t in qkv(5, 7)]
        got = torch.autograd.grad(compiled(*leaves, table), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(step(*leaves, table), leaves))
    torch.compiler.reset()


def test_the_cost_of_attention_counts_the_pairs_that_see_each_other():
    q, k, v = qkv(5, 9, dtype=F32)
    table = spans((0, 2, 0, 4), (2, 3, 0, 2))
    causal = ATTENTION.cost(*ATTENTION.bind((q, k, v, table)))
    assert causal.flops == 2 * (3 + 4 + 0 + 1 + 2) * 4 * (8 + 6)
    assert causal.bytes == 4 * (5 * 4 + 6 * 2) * (8 + 6)
    both_ways = ATTENTION.cost(*ATTENTION.bind((q, k, v, table), {"causal": False}))
    assert both_ways.flops == 2 * (8 + 6) * 4 * (8 + 6)
    near = ATTENTION.cost(*ATTENTION.bind((q, k, v, table), {"window": 2}))
    assert near.flops == 2 * (2 + 2 + 0 + 1 + 2) * 4 * (8 + 6)
