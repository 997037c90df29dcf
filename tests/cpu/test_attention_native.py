"""accel_cpu.native attention: a query's bits are those of its keys, in prefill and in decode."""

import sys
from functools import partial

import pytest
import torch
from instruction_sets import DTYPES, ISAS, run, same_bits

from accel import ops
from accel_cpu.builders import TransformerBuilder

pytestmark = pytest.mark.usefixtures("_native")

NATIVE = "attention=accel_cpu.native"
GROUPS = (1, 2, 4, 8)  # heads of q to one of k
SIZES = (1, 8, 16, 33, 64, 80, 128)
NAN = float("nan")


def drawn(m, n, group, d, dtype=torch.float32, *, e=None, kv_heads=2, seed=0):
    """q, k and v whose scores differ by about a dozen, so that the largest one keeps changing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    q, k = draw(m, group * kv_heads, d) * 3, draw(n, kv_heads, d)
    return q.to(dtype), k.to(dtype), draw(n, kv_heads, e or d).to(dtype)


def table(*spans):
    return torch.tensor(spans, dtype=torch.int64).reshape(-1, 4)


def padded(rows, before, after):
    """A cache that holds ``rows`` between others that nobody may read."""
    nobody = (rows.new_full((count, *rows.shape[1:]), NAN) for count in (before, after))
    return torch.cat([next(nobody), rows, next(nobody)])


def decoded(attention, q, k, v, step, *, first=0, before=0, after=0):
    """The queries first, first + step, ... each in a decode step of its own over a cache whose
    slots around the keys so far hold NaN."""
    out = []
    for i in range(first, len(q), step):
        keys, values = (padded(t[: i + 1], before, after) for t in (k, v))
        out.append(attention(q[i : i + 1], keys, values, table((0, 1, before, i + 1))))
    return torch.cat(out)


def assert_prefill_is_decoding(attention, group, d, dtype, n=200, step=1):
    q, k, v = drawn(n, n, group, d, dtype, e=max(1, d - 3))
    prefill = attention(q, k, v, table((0, n, 0, n)))
    assert prefill.isfinite().all()
    assert same_bits(decoded(attention, q, k, v, step, after=3), prefill[::step])
    # All steps at once, as many sequences with a shared prefix.
    together = attention(q, k, v, table(*((i, 1, 0, i + 1) for i in range(n))))
    assert same_bits(together, prefill)
    # In pieces, and shorter prompts.
    for cut in (1, 47, 64, 65, n - 1):
        pieces = attention(q, k, v, table((cut, n - cut, 0, n), (0, cut, 0, cut)))
        assert same_bits(pieces, prefill)
        short = attention(q[:cut], k[:cut], v[:cut], table((0, cut, 0, cut)))
        assert same_bits(short, prefill[:cut])


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.usefixtures("_threads")
def test_prefill_is_decoding_bit_for_bit(group, d):
    assert_prefill_is_decoding(ops.attention, group, d, torch.float32, step=9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_length_in_every_dtype(dtype):
    assert_prefill_is_decoding(ops.attention, 2, 24, dtype)
    assert_prefill_is_decoding(ops.attention, 1, 64, dtype, step=7)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 1), (63, 65), (1000, 3)])
def test_the_cache_s_capacity_and_place_change_nothing(before, after):
    q, k, v = drawn(130, 130, 4, 32, torch.bfloat16)
    prefill = ops.attention(q, k, v, table((0, 130, 0, 130)))
    steps = decoded(ops.attention, q, k, v, 8, first=1, before=before, after=after)
    assert same_bits(steps, prefill[1::8])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.usefixtures("_threads")
def test_sequences_do_not_depend_on_those_beside_them(group, causal):
    lengths = [*range(1, 30), 63, 64, 65, 100, 127, 128, 129, 200]
    q, k, v = drawn(sum(lengths), sum(lengths), group, 40, torch.float16)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    spans = table(*((s, n, s, n) for s, n in zip(starts, lengths)))
    together = ops.attention(q, k, v, spans, causal=causal)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
    assert same_bits(ops.attention(q, k, v, spans[order], causal=causal), together)
    for start, n in zip(starts, lengths):
        rows = slice(start, start + n)
        alone = ops.attention(q[rows], k[rows], v[rows], table((0, n, 0, n)), causal=causal)
        assert same_bits(alone, together[rows])
        last = rows.stop - 1
        single = table((0, 1, 0, n))
        assert same_bits(
            ops.attention(q[last : last + 1], k[rows], v[rows], single, causal=causal),
            together[last : last + 1],
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_query_without_causal_is_the_query_alone(dtype):
    q, k, v = drawn(70, 131, 4, 33, dtype)
    together = ops.attention(q, k, v, table((0, 70, 0, 131)), causal=False)
    alone = [ops.attention(one, k, v, table((0, 1, 0, 131)), causal=False) for one in q.split(1)]
    assert same_bits(torch.cat(alone), together)


def test_heads_are_those_of_single_calls():
    """Grouped heads equal each head with a copy of its keys."""
    q, k, v = drawn(75, 75, 8, 48)
    spans = table((0, 75, 0, 75))
    together = ops.attention(q, k, v, spans)
    for head in range(16):
        one = slice(head // 8, head // 8 + 1)
        alone = ops.attention(q[:, head : head + 1], k[:, one], v[:, one], spans)
        assert same_bits(alone, together[:, head : head + 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_a_projection_and_of_a_cache_are_read_as_they_lie(dtype):
    qkv = drawn(90, 90, 1, 33, dtype, kv_heads=8)[0]
    q, k, v = qkv.split((4, 2, 2), 1)
    spans = table((0, 40, 0, 40), (40, 50, 40, 50))
    want = ops.attention(q.contiguous(), k.contiguous(), v.contiguous(), spans)
    assert same_bits(ops.attention(q, k, v, spans), want)
    by_head = (t.permute(1, 0, 2).contiguous().permute(1, 0, 2) for t in (q, k, v))
    assert same_bits(ops.attention(*by_head, spans), want)
    by_element = (t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (q, k, v))
    assert same_bits(ops.attention(*by_element, spans.t().contiguous().t()), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("garbage", [NAN, float("inf")])
def test_what_a_query_does_not_see_never_leaks(garbage, dtype):
    """Keys behind the last seen, keys of no span, and queries of no span."""
    q, k, v = drawn(60, 300, 4, 40, dtype)
    spans = table((50, 7, 150, 90), (3, 40, 20, 100))
    want = ops.attention(q, k, v, spans)
    q[:3] = q[43:50] = q[57:] = garbage
    for t in (k, v):
        t[:20] = t[120:150] = t[240:] = garbage
    found = ops.attention(q, k, v, spans)
    assert same_bits(found, want)
    assert not found[torch.tensor([0, 1, 2, *range(43, 50), 57, 58, 59])].any()
    # Causal: the span's last keys are for its last queries alone.
    for hidden in (1, 5, 30):
        k[120 - hidden : 120] = v[120 - hidden : 120] = garbage
        found = ops.attention(q, k, v, spans)
        assert same_bits(found[: 43 - hidden], want[: 43 - hidden])
        assert found[43 - hidden : 43].isnan().any((1, 2)).all()


def test_spans_that_hold_nothing():
    q, k, v = drawn(5, 6, 2, 8)
    assert not ops.attention(q, k, v, table()).any()
    assert not ops.attention(q, k, v, table((0, 5, 3, 0))).any()
    assert not ops.attention(q, k[:0], v[:0], table((0, 5, 0, 0)), causal=False).any()
    assert ops.attention(q[:0], k, v, table((0, 0, 0, 6))).shape == (0, 4, 8)
    more_queries = ops.attention(q, k, v, table((0, 0, 0, 3), (0, 5, 0, 2), (5, 0, 6, 0)))
    assert not more_queries[:3].any()
    assert same_bits(more_queries[3:], ops.attention(q[3:], k, v, table((0, 2, 0, 2))))


@pytest.mark.parametrize(
    "span", [(-1, 2, 0, 2), (0, -1, 0, 2), (4, 2, 0, 2), (0, 2, 5, 2), (0, 2, -1, 2), (0, 2, 0, 7),
             (2**62, 2**62, 0, 1), (0, 1, 2**62, 2**62 + 2**61)],
)  # fmt: skip
def test_a_span_out_of_range_is_named(span):
    q, k, v = drawn(5, 6, 2, 8)
    names = r"span 1 .*{}.*{}.*{}.*{}.* M = 5 .* N = 6".format(*span)
    with pytest.raises(IndexError, match=names):
        torch.ops.accel_cpu_kernels.attention_native(q, k, v, table((0, 1, 0, 1), span))


def test_a_query_of_two_spans_is_named():
    q, k, v = drawn(5, 6, 2, 8)
    with pytest.raises(IndexError, match="span 1 holds query 2"):
        torch.ops.accel_cpu_kernels.attention_native(q, k, v, table((0, 3, 0, 3), (2, 2, 3, 2)))


def hiding(*keys, n=200, heads=8):
    """A mask of the keys that adds a little and hides some from all heads, others from one."""
    mask = torch.randn(1, heads, 1, n, generator=torch.Generator().manual_seed(4))
    mask[..., list(keys)] = mask[:, 1, :, 60:140] = -torch.inf
    return mask


OPTIONS = {
    "mask": {"mask": hiding(0, 1, 63, 100, *range(128, 192))},
    "slopes": {"slopes": torch.linspace(0.01, 2, 8)},
    "one key": {"window": 1},
    "short window": {"window": 5},
    "window": {"window": 70},
    "softcap": {"softcap": 3.0},
}
OPTIONS["everything"] = {name: value for asked in OPTIONS.values() for name, value in asked.items()}


@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("_threads")
def test_what_is_done_to_scores_leaves_prefill_decoding(asked):
    assert_prefill_is_decoding(partial(ops.attention, **asked), 4, 24, torch.float32, step=7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_window_beyond_all_keys_changes_no_bit(dtype):
    q, k, v = drawn(150, 200, 2, 40, dtype)
    for causal in (True, False):
        attention = partial(ops.attention, q, k, v, table((0, 150, 0, 200)), causal=causal)
        for window in (200, 2**63 - 1):
            assert same_bits(attention(window=window), attention())


@pytest.mark.parametrize("causal", [True, False])
def test_what_lies_outside_a_window_never_leaks(causal):
    q, k, v = drawn(200, 300, 4, 40)
    spans, seen = table((0, 200, 0, 300)), slice(200, 260)
    attention = partial(ops.attention, spans=spans, causal=causal, window=20)
    want = attention(q, k, v)
    k[: seen.start] = v[: seen.start] = k[seen.stop :] = v[seen.stop :] = NAN
    found = attention(q, k, v)
    assert found.isnan().any((1, 2)).sum() > 100
    ahead = 0 if causal else 19
    rows = [i for i in range(200) if seen.start <= i + 100 - 19 and i + 100 + ahead < seen.stop]
    assert rows
    assert same_bits(found[rows], want[rows])


def test_keys_that_a_mask_hides_at_the_end_might_as_well_not_be_there():
    q, k, v = drawn(30, 200, 2, 16)
    mask = torch.zeros(1, 1, 1, 200)
    mask[..., 90:] = -torch.inf
    hidden = ops.attention(q, k, v, table((0, 30, 0, 200)), mask, causal=False)
    assert same_bits(hidden, ops.attention(q, k, v, table((0, 30, 0, 90)), causal=False))


@pytest.mark.usefixtures("_threads")
def test_dropout_is_a_sequence_s_own():
    q, k, v = drawn(190, 190, 2, 24)
    dropping = partial(ops.attention, seed=torch.tensor(7), dropout=0.5)
    together = dropping(q, k, v, table((0, 150, 0, 150), (150, 40, 150, 40)))
    assert same_bits(dropping(q[:150], k, v, table((0, 150, 0, 150))), together[:150])


def test_scores_without_bound():
    """Scores of -inf weigh nothing, even through the whole first block; no sum overflows."""
    q, k, v = torch.ones(1, 1, 2), torch.zeros(70, 1, 2), torch.arange(140.0).reshape(70, 1, 2)
    k[:66] = -torch.inf
    assert same_bits(ops.attention(q, k, v, table((0, 1, 0, 70))), v[66:].mean(0, keepdim=True))
    k[:66], k[66:] = -1e30, 1e30
    assert same_bits(ops.attention(q, k, v, table((0, 1, 0, 70))), v[66:].mean(0, keepdim=True))


def test_the_check_can_fail():
    """torch's own attention of a prompt differs from its decode steps, and this check sees it."""

    def composed(q, k, v, spans):
        n = int(spans[0, 3])
        k, v = (t[:n].repeat_interleave(2, 1) for t in (k, v))
        hidden = torch.ones(len(q), n).tril(n - len(q)) == 0
        scores = torch.einsum("mhd,nhd->hmn", q, k).masked_fill(hidden, -torch.inf)
        return torch.einsum("hmn,nhe->mhe", scores.softmax(-1), v)

    with pytest.raises(AssertionError):
        assert_prefill_is_decoding(composed, 2, 64, torch.float32, step=25)


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set_prefill_is_decoding(isa):
    assert run(__file__, isa) == [isa, "prefill is decoding"]


def on_this_instruction_set():
    builder = TransformerBuilder()
    (impl,) = (impl for impl in builder.impls if impl.op == "attention")
    builder.load(impl)
    print(torch.ops.accel_cpu_kernels.isa())
    attention = torch.ops.accel_cpu_kernels.attention_native
    for group, d, dtype in zip(GROUPS, (33, 16, 80, 1), (*DTYPES, torch.bfloat16)):
        assert_prefill_is_decoding(attention, group, d, dtype, step=11)
    for asked in OPTIONS.values():
        assert_prefill_is_decoding(partial(attention, **asked), 4, 20, torch.float32, step=33)
    print("prefill is decoding")


if __name__ == "__main__":
    assert len(sys.argv) == 2
    on_this_instruction_set()
