"""logprob's kernels: a row's bits are those of its logits, whichever tiles these are made in."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from interpreter import backend, shim

with shim.decorating():
    from accel.triton_kernels import linear, logprob

ADJUSTED = (0.7, 5.0, 1.3)  # scale, softcap, temperature
WIDTH = 2 * logprob.BLOCK + 77


def drawn(dtype):
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=draw).to(dtype) for shape in ((5, 48), (WIDTH, 48)))
    return x, w, torch.tensor([0, WIDTH - 1, logprob.BLOCK, 5, logprob.BLOCK - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tile", [logprob.TILE_BYTES, 1], ids=["one_tile", "tiles"])
def test_of_hidden_rows_it_is_that_of_their_logits(dtype, tile, monkeypatch):
    monkeypatch.setattr(logprob, "TILE_BYTES", tile)
    x, w, ids = drawn(dtype)
    logits = linear.linear(backend.TUNING, x, w, None, None, torch.float32)
    of_logits = logprob.logprob(backend.TUNING, logits, ids, None, None, *ADJUSTED)
    of_rows = logprob.logprob(backend.TUNING, x, ids, w, None, *ADJUSTED)
    assert all(map(torch.equal, of_rows, of_logits))
    alone = logprob.logprob(backend.TUNING, x[2:3], ids[2:3], w, None, *ADJUSTED)
    assert all(torch.equal(one[0], all_[2]) for one, all_ in zip(alone, of_rows))


def test_an_id_out_of_range_is_nan():
    x, w, ids = drawn(torch.float32)
    found, _ = logprob.logprob(backend.TUNING, x, ids + 6, w, None, 1.0, None, 1.0)
    assert found.isnan().tolist() == [False, True, False, False, False]


def test_whole_numbers_are_numbers_like_others(monkeypatch):
    """To the compiler 2 is an integer, by which it does not divide in the kernel's rounding."""
    launched = []
    monkeypatch.setattr(logprob, "launch", lambda *args, **constants: launched.append(args))
    x, w, ids = drawn(torch.float32)
    logprob.logprob(backend.TUNING, x @ w.t(), ids, None, None, 2, 5, 3)
    fold, _merge = launched
    assert [number for number in fold if type(number) is float] == [2.0, 5.0, 3.0]
