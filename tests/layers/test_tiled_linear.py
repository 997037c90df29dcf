"""A linear layer in tiles: the plain one in all it computes, with every option and every hook."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_twins import F64, assert_twins, assert_within_budget, drawn, of_module, plain
from torch import nn
from torch.func import functional_call, grad, vmap

import accel
from accel import ops
from accel.layers.linear import Linear
from accel.layers.tiled_linear import TiledLinear
from accel.layers.tiling import partition_uniform
from accel.layers.zero3 import LinearModuleForZeroStage3

F32 = torch.float32


@pytest.fixture(autouse=True)
def torch_serves():
    with ops.use("*=torch", exact=False):
        yield


TILE_CLASSES = [Linear, nn.Linear, LinearModuleForZeroStage3]


def watch(tiled):
    """A hook, so that tiles are called and not only read."""
    tiled.linears[-1][-1].register_forward_hook(lambda *_: None)
    return tiled


def gradients_as_plain(tiled, grads):
    """Of the tiles' gradients those of the weight and the bias."""
    whole = copy.deepcopy(tiled)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.copy_(grads[name])
    return [whole.weight] + ([whole.bias] if whole.use_bias else [])


# -- values ------------------------------------------------------------------------------------


@given(
    rows=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    splits=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    already=st.booleans(),
    combine=st.booleans(),
    recompute=st.booleans(),
    watched=st.booleans(),
    tile=st.sampled_from(TILE_CLASSES),
)
@settings(max_examples=120, deadline=None)
def test_a_tiled_layer_is_the_plain_one(
    rows, sizes, splits, bias, already, combine, recompute, watched, tile
):
    twin = plain(*sizes, bias=bias)
    in_splits, out_splits = (min(s, size) for s, size in zip(splits, sizes))
    tiled = TiledLinear.from_linear(
        twin, in_splits, out_splits, input_is_already_split=already, combine_out_splits=combine,
        recompute=recompute, linear_cls=tile,
    )  # fmt: skip
    if watched:
        watch(tiled)

    def called(x):
        cut = partition_uniform(sizes[0], in_splits)
        parts = [x[..., a:b] for a, b in pairwise(cut)]
        y = tiled(parts if already else x)
        return y if combine else torch.cat(y, -1)

    called.named_parameters = tiled.named_parameters
    x = drawn(*rows, sizes[0])
    y, dx, grads = of_module(called, x)
    want, want_dx, wanted = of_module(twin, x)
    assert_twins((y, dx, *gradients_as_plain(tiled, grads)), (want, want_dx, *wanted.values()))


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tile", TILE_CLASSES, ids=lambda tile: tile.__name__)
@pytest.mark.parametrize("impl", ["torch", "accel_cpu.native"])
@pytest.mark.parametrize("watched", [False, True])
def test_every_dtype_is_within_the_budget_of_float64(dtype, tile, impl, watched):
    y, dx, grads = of_module(plain(64, 48), drawn(6, 64))
    tiled = TiledLinear.from_linear(plain(64, 48, dtype=dtype), 2, 3, linear_cls=tile)
    if watched:
        watch(tiled)
    with ops.use(f"linear={impl};tiled_linear={impl}"):
        assert tiled.explain()["tiled_linear"].chosen.impl.id == impl
        found = of_module(tiled, drawn(6, 64, dtype=dtype))
    # What a tile returns is rounded: two add up to a result, three to a gradient of the input.
    assert_within_budget(found[:1], (y,), dtype, roundings=2)
    assert_within_budget(found[1:2], (dx,), dtype, roundings=3)
    assert_within_budget(gradients_as_plain(tiled, found[2]), grads.values(), dtype)


def test_a_row_of_exact_tiles_does_not_depend_on_its_neighbours():
    tiled = TiledLinear(64, 48, in_splits=3, out_splits=2)
    x = torch.randn(33, 64)
    with ops.use("linear=accel_cpu.native;tiled_linear=accel_cpu.native"):
        whole = tiled(x)
        assert all(torch.equal(tiled(x[i : i + 1])[0], whole[i]) for i in range(33))


def test_a_shard_of_the_input_is_split_by_its_own_size():
    class Shard(nn.Module):
        def __init__(self, columns, rows, bias):
            super().__init__()

        def forward(self, x):
            return x.sum(-1, keepdim=True)

    x = drawn(2, 7)
    assert_twins([TiledLinear(20, 1, in_splits=3, linear_cls=Shard)(x)], [x.sum(-1, keepdim=True)])


# -- how it is computed ------------------------------------------------------------------------


def test_tiles_are_called_as_modules_and_return_fresh_tensors():
    tiled, seen = TiledLinear(8, 6, in_splits=2, out_splits=3), []
    for o, row in enumerate(tiled.linears):
        for i, tile in enumerate(row):
            tile.register_forward_hook(
                lambda m, args, y, at=(o, i): seen.append((at, y._is_view()))
            )
    tiled(torch.randn(2, 5, 8))
    assert seen == [((o, i), False) for o in range(3) for i in range(2)]


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_whether_anyone_watches_changes_no_bit_of_an_exact_result(dtype):
    tiled, x = TiledLinear(70, 50, in_splits=3, out_splits=2, dtype=dtype), torch.randn(5, 70)
    impl = "accel_cpu.native"
    with ops.use(f"linear={impl};tiled_linear={impl}"), torch.no_grad():
        alone = tiled(x.to(dtype))
        assert torch.equal(watch(tiled)(x.to(dtype)), alone)


def a_hook_on_all(tiled):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    return handle.remove


def an_own_forward(tiled):
    tile = tiled.linears[1][0]
    tile.forward = lambda x, partial=None: type(tile).forward(tile, x, partial)


def a_parametrization(tiled):
    nn.utils.parametrizations.weight_norm(tiled.linears[0][0])


@pytest.mark.parametrize("way", [a_hook_on_all, an_own_forward, a_parametrization])
def test_whatever_expects_tiles_to_be_called_has_them_called(way, monkeypatch):
    tiled, called = TiledLinear(8, 6, in_splits=2, out_splits=2), []
    forward = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda *a: called.append(a[0]) or forward(*a))
    tiled(torch.randn(2, 8))
    assert not called
    undo = way(tiled)
    try:
        tiled(torch.randn(2, 8))
        assert len(called) == 4
    finally:
        undo and undo()


def test_only_the_gradients_that_are_needed_are_computed():
    tiled, x = TiledLinear(8, 6, in_splits=2, out_splits=2), torch.randn(3, 8)
    frozen = tiled.linears[0][1].requires_grad_(False)
    y = tiled(x)
    assert y.grad_fn.needs_input_grad == (False, False, True, False, True, True, False, True)
    y.sum().backward()
    assert frozen.weight.grad is None
    want = torch.ones(3, 3).t() @ x[:, 4:]
    torch.testing.assert_close(tiled.linears[1][1].weight.grad, want)


def test_only_the_last_tile_of_a_row_has_the_bias():
    tiled = TiledLinear(8, 6, in_splits=3, out_splits=2)
    biased = [[tile.bias is not None for tile in row] for row in tiled.linears]
    assert biased == [[False, False, True]] * 2


def kept_and_peak(step):
    """Bytes over those before, counted while a step runs, at its end and at its highest."""
    acc = accel.get_accelerator()
    step()
    before = acc.memory_allocated()
    acc.reset_peak_memory_stats()
    y = step()
    del step
    return acc.memory_allocated() - before, acc.max_memory_allocated() - before, y


@pytest.mark.parametrize("splits", [(2, 1), (4, 1), (1, 4), (2, 4), (4, 2)], ids=str)
@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("watched", [False, True])
def test_at_most_one_output_is_allocated_beyond_the_plain_layer_s(splits, record, watched):
    twin = nn.Linear(64, 512)
    tiled, x = TiledLinear.from_linear(twin, *splits), torch.randn(512, 64)
    output = 512 * 512 * 4
    beyond = output if watched else 0
    if watched:
        watch(tiled)
    with accel.use_accelerator("cpu"), torch.set_grad_enabled(record):
        _, plainly, _ = kept_and_peak(lambda: twin(x))
        kept, peak, _ = kept_and_peak(lambda: tiled(x))
    assert plainly >= output
    assert peak <= plainly + beyond + output * 0.02
    assert kept <= output * 1.02, "no partial sum is kept for the backward"


def test_recomputing_keeps_the_inputs_of_tiles_alone():
    class Wide(nn.Linear):
        def forward(self, x):
            return super().forward(x).exp().log()  # keeps what it computes

    x = torch.randn(64, 32)
    kept = []
    for recompute in (False, True):
        tiled = TiledLinear(32, 64, out_splits=2, linear_cls=Wide, recompute=recompute)
        tiled(x).sum().backward()
        bytes_kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, found=bytes_kept: found.append(t.numel()) or t, lambda t: t
        )
        with hooks:
            tiled(x)
        kept.append(sum(bytes_kept))
    plainly, again = kept
    assert plainly > 2 * 64 * 64
    assert again == 2 * x.numel()


def test_a_tiled_layer_compiles_whole():
    torch.compiler.reset()
    tiled = TiledLinear(8, 6, in_splits=2, out_splits=3)
    x = drawn(2, 3, 8, dtype=F32)
    tiled(x)
    compiled = torch.compile(tiled, backend="aot_eager", fullgraph=True)
    y, dx, grads = of_module(tiled, x)
    found, found_dx, found_grads = of_module(compiled, x)
    torch.testing.assert_close((found, found_dx), (y, dx))
    torch.testing.assert_close(list(found_grads.values()), list(grads.values()))


def test_derivatives_of_second_order_and_torch_func():
    tiled = TiledLinear(4, 3, in_splits=2, out_splits=2, dtype=F64)
    x = drawn(2, 4).requires_grad_()
    leaves = dict(tiled.named_parameters())
    function = lambda x, *p: functional_call(tiled, dict(zip(leaves, p)), (x,))  # noqa: E731
    assert torch.autograd.gradgradcheck(function, (x, *leaves.values()))
    assert torch.autograd.gradgradcheck(lambda x, *_: tiled(x), (x, *leaves.values()))
    per_row = vmap(grad(lambda row: tiled(row).square().sum()))(x.detach())
    want = torch.autograd.grad(tiled(x).square().sum(), x)
    assert_twins([per_row], want)


def test_several_gradients_come_back_at_once():
    tiled = TiledLinear(4, 3, in_splits=2, out_splits=2, dtype=F64)
    leaves = (drawn(2, 4).requires_grad_(), *tiled.parameters())
    y, upstream = tiled(leaves[0]), drawn(5, 2, 3)
    batched = torch.autograd.grad(y, leaves, upstream, retain_graph=True, is_grads_batched=True)
    alone = [torch.autograd.grad(y, leaves, one, retain_graph=True) for one in upstream]
    assert_twins(batched, map(torch.stack, zip(*alone)))


def test_autocast_lowers_the_product():
    tiled = TiledLinear.from_linear(plain(64, 48, dtype=F32), 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y = tiled(drawn(6, 64, dtype=F32))
    want = plain(64, 48)(drawn(6, 64)).detach()
    assert y.dtype is torch.bfloat16
    assert_within_budget([y], [want], torch.bfloat16, roundings=2)
