"""tiled_linear with a place for its result."""

import pytest
import torch

from accel import ops
from accel.errors import OpArgumentError

F32, BF16 = torch.float32, torch.bfloat16
BESIDE = 9  # columns before and behind a place
CANARY = 7.0


def operands(dtype=F32, *, lead=(3, 5), k=50, n=33):
    generator = torch.Generator().manual_seed(0)
    shapes = ((*lead, k), (n, k), (n,), (*lead, n))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def place(like):
    """(a place of ``like``'s shape inside longer rows, those rows)"""
    n = like.shape[-1]
    rows = torch.full((*like.shape[:-1], n + 2 * BESIDE), CANARY, dtype=like.dtype)
    return rows[..., BESIDE : BESIDE + n], rows


@pytest.fixture(params=["torch", "reference", "accel_cpu.native"])
def same(request):
    """Served by one implementation: how its result in a place is beside its result."""
    with ops.use(f"tiled_linear={request.param}", exact=False):
        # torch's products differ in bits with where the result lies; conformance holds the budget.
        yield torch.testing.assert_close if request.param == "torch" else exactly


def exactly(found, wanted):
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("given", ["", "b", "partial", "b partial"])
def test_a_result_is_written_where_asked_and_nowhere_else(same, dtype, given):
    x, w, b, partial = operands(dtype)
    args = (x, w, b if "b" in given else None, partial if "partial" in given else None)
    wanted = ops.tiled_linear(*args)
    out, rows = place(wanted)
    assert ops.tiled_linear(*args, out=out) is out
    same(out, wanted)
    out.fill_(CANARY)
    assert (rows == CANARY).all()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_partial_sum_is_added_to_where_it_lies(same, dtype):
    x, w, b, partial = operands(dtype)
    wanted = ops.tiled_linear(x, w, b, partial)
    out, _ = place(wanted)
    out.copy_(partial)
    ops.tiled_linear(x, w, b, out, out=out)
    same(out, wanted)


def test_the_place_s_dtype_is_the_result_s(same):
    x, w, b, partial = operands(BF16)
    out, _ = place(partial.float())
    ops.tiled_linear(x, w, b, partial, out=out)
    same(out, ops.tiled_linear(x, w, b, partial, out_dtype=F32))


@pytest.mark.parametrize("lead", [(), (0,), (1,), (2, 0, 3)])
def test_any_number_of_rows(same, lead):
    x, w, b, partial = operands(lead=lead)
    out, _ = place(partial)
    ops.tiled_linear(x, w, b, partial, out=out)
    same(out, ops.tiled_linear(x, w, b, partial))


def test_columns_apart_are_written_too():
    x, w, b, partial = operands(lead=(15,))
    out = torch.empty(33, 15).t()
    ops.tiled_linear(x, w, b, partial, out=out)
    assert torch.equal(out, ops.tiled_linear(x, w, b, partial))


def test_what_watches_torch_sees_the_op_and_the_copy():
    x, w, b, partial = operands()
    out, _ = place(partial)
    with torch.autocast(x.device.type, BF16):
        wanted = ops.tiled_linear(x, w, b, partial, out_dtype=F32)
        ops.tiled_linear(x, w, b, partial, out=out)
    assert torch.equal(out, wanted)
    assert not torch.equal(out, ops.tiled_linear(x, w, b, partial))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(x, out):
        return ops.tiled_linear(x, w, b, partial, out=out) + 1

    out.zero_()
    assert torch.equal(compiled(x, out), out + 1)
    assert torch.equal(out, ops.tiled_linear(x, w, b, partial))


def strided(shape, strides):
    return torch.empty(100_000).as_strided(shape, strides)


BAD = {
    "shape": (lambda: torch.empty(3, 5, 32), "out must be"),
    "expands": (lambda: torch.empty(5, 33), "out must be"),
    "elsewhere": (lambda: torch.empty(3, 5, 33, device="meta"), "out must be"),
    "integers": (lambda: torch.empty(3, 5, 33, dtype=torch.int64), "out_dtype"),
    "rows_at_two_distances": (lambda: strided((3, 5, 33), (1000, 33, 1)), "equal distances"),
    "one_row_for_all": (lambda: torch.empty(33).expand(3, 5, 33), "one place"),
    "no_tensor": (lambda: [1.0], "must be a torch.Tensor"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_place_that_does_not_fit_is_refused(bad):
    make, says = BAD[bad]
    x, w, b, partial = operands()
    with pytest.raises((OpArgumentError, TypeError), match=says):
        ops.tiled_linear(x, w, b, partial, out=make())


def test_bad_arguments_are_refused_and_leave_the_place_alone():
    x, w, b, partial = operands()
    out, rows = place(partial)
    with pytest.raises(OpArgumentError, match="partial must be"):
        ops.tiled_linear(x, w, b, partial[:2], out=out)
    with pytest.raises(OpArgumentError, match="leave one"):
        ops.tiled_linear(x, w, b, partial, out_dtype=BF16, out=out)
    assert (rows == CANARY).all()


@pytest.mark.parametrize("which", ["x", "w", "out"])
def test_what_autograd_records_has_no_place(which):
    x, w, b, partial = operands()
    out, _ = place(partial)
    {"x": x, "w": w, "out": out}[which].requires_grad_()
    with pytest.raises(RuntimeError, match="records"):
        ops.tiled_linear(x, w, b, partial, out=out)
    with torch.no_grad():
        ops.tiled_linear(x, w, b, partial, out=out)
