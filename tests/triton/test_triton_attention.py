"""attention's kernel: a query has the same bits in a prefill and in a step, however work is cut."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from interpreter import backend, shim

from accel.contracts import CONTRACTS
from accel.errors import OpArgumentError
from accel.triton_kernels import limits

with shim.decorating():
    from accel.triton_kernels import attention

LENGTH = 290  # of keys: three splits of 128, the last one short
PLACES = (0, 63, 127, 128, 289)  # of queries: ends of blocks and of splits


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch):
    monkeypatch.setattr(attention, "SPLIT", 128)


def drawn(dtype):
    draw = torch.Generator().manual_seed(0)
    shapes = (LENGTH, 4, 16), (LENGTH, 2, 16), (LENGTH, 2, 16)
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def attended(q, k, v, span, **options):
    contract = CONTRACTS["attention"]
    spans = torch.tensor([span])
    return attention.attention(backend.TUNING, *contract.bind((q, k, v, spans), options))


def one_program_has_all(monkeypatch):
    monkeypatch.setattr(attention, "PROGRAMS", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_splits_apart_are_splits_one_after_another(dtype, monkeypatch):
    q, k, v = drawn(dtype)
    rows, span = q[-9:], (0, 9, 0, LENGTH)
    apart = attended(rows, k, v, span)
    one_program_has_all(monkeypatch)
    assert torch.equal(attended(rows, k, v, span), apart)


@pytest.mark.parametrize("options", [{}, {"window": 70}], ids=["all", "window"])
def test_steps_have_the_bits_of_a_prefill(options, monkeypatch):
    q, k, v = drawn(torch.bfloat16)
    steps = [attended(q[at : at + 1], k, v, (0, 1, 0, at + 1), **options) for at in PLACES]
    one_program_has_all(monkeypatch)
    whole = attended(q, k, v, (0, LENGTH, 0, LENGTH), **options)
    assert torch.equal(torch.cat(steps), whole[list(PLACES)])


NAN, INF = float("nan"), float("inf")
HIDES = {
    "causal": ({}, 1, NAN), "splits_apart": ({}, 512, NAN), "infinity": ({}, 1, INF),
    "window": ({"window": 20}, 1, NAN), "mask": ({"causal": False}, 1, NAN),
}  # fmt: skip


@pytest.mark.parametrize(("options", "programs", "value"), HIDES.values(), ids=HIDES)
def test_what_a_query_does_not_see_has_no_part_in_it(options, programs, value, monkeypatch):
    """Whatever it holds; and to those that see it nothing of it is lost."""
    monkeypatch.setattr(attention, "PROGRAMS", programs)
    queries, keys, spoilt = 40, 140, 118
    at = torch.arange(keys - queries, keys)
    sees = at >= spoilt
    if "window" in options:
        sees &= at < spoilt + options["window"]
    if "causal" in options:
        sees = at % 2 == 0
        mask = torch.zeros(1, 1, queries, keys, dtype=torch.bfloat16)
        mask[0, 0, ~sees, spoilt] = -INF
        options = {**options, "mask": mask}
    q, k, v = drawn(torch.bfloat16)
    span = (0, queries, 0, keys)
    wanted = attended(q[:queries], k, v, span, **options)
    v[spoilt, :, 3] = value
    found = attended(q[:queries], k, v, span, **options)
    assert torch.equal(found[~sees], wanted[~sees])
    assert not found[sees][..., 3].isfinite().any()
    found[..., 3] = wanted[..., 3]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("window", [2**31 - 1, 2**40])
def test_a_window_of_everything_hides_nothing(window):
    q, k, v = drawn(torch.float32)
    span = (0, 9, 0, LENGTH)
    every = attended(q[-9:], k, v, span, causal=False)
    assert torch.equal(attended(q[-9:], k, v, span, causal=False, window=window), every)


def test_a_span_beyond_the_keys_is_nan_where_it_cannot_be_read(monkeypatch):
    """As on a device, where to read it would be to wait: nothing is read outside."""
    monkeypatch.setattr(attention, "in_host_memory", lambda spans: False)
    q, k, v = drawn(torch.float32)
    found = attended(q[:4], k, v, (1, 2, LENGTH - 1, 2))
    assert found[1:3].isnan().all()
    assert not found[[0, 3]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_largest_head_is_served_and_one_more_refused_by_name(dtype):
    most = limits.largest_head(dtype)
    q = k = v = torch.ones(1, 2, most + 1, dtype=dtype)
    largest = attended(*(t[..., :most] for t in (q, k, v)), (0, 1, 0, 1))
    assert torch.equal(largest, v[..., :most])
    with pytest.raises(OpArgumentError, match=rf"may have {most} elements.*attention=torch"):
        attended(q, k, v, (0, 1, 0, 1))
