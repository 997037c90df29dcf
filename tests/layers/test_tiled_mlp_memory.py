"""TiledMLP holds the intermediate of one tile, and keeps nothing but its arguments."""

import pytest
import torch
from mlp_twin import Plain, made, tiled
from torch.utils._python_dispatch import TorchDispatchMode

from accel import torch_impls
from accel.contracts import TILED_MLP
from accel_cpu import plugin
from accel_cpu.accelerator import CpuAccelerator
from accel_cpu.memory_counter import COUNTER

pytestmark = pytest.mark.usefixtures("torch_serves")

ROWS, HIDDEN, INNER, TILE = 64, 4, 32, 8


class Largest(TorchDispatchMode):
    """The most elements that any operation's result has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return result


@pytest.mark.parametrize("gated", [False, True])
def test_no_tensor_holds_the_intermediate_of_all_rows(gated):
    layer = tiled(Plain(HIDDEN, INNER, gated=gated, bias=True), tile_rows=TILE)
    gate = layer.gate_proj if gated else None
    args = (
        made(ROWS, HIDDEN), layer.up_proj.weight, layer.down_proj.weight, gate and gate.weight,
        layer.up_proj.bias, layer.down_proj.bias, gate and gate.bias, "silu", TILE,
    )  # fmt: skip
    with torch.no_grad(), Largest() as seen:
        y = torch_impls._KERNELS["tiled_mlp"](*args)
        TILED_MLP.backward(made(*y.shape), tuple(a is not None for a in args[:7]), *args)
    assert seen.elements == max(TILE * INNER, ROWS * HIDDEN)
    assert seen.elements < ROWS * INNER


def test_nothing_but_the_arguments_is_kept_for_the_backward():
    layer, x = tiled(Plain(HIDDEN, INNER), tile_rows=TILE), made(ROWS, HIDDEN).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    held = {t.data_ptr() for t in (x, *layer.parameters())}
    assert kept
    assert {t.data_ptr() for t in kept} == held


# -- bytes, as the device counts them ----------------------------------------------------------


@pytest.fixture(scope="module")
def host(build_cache):
    """The host's own accelerator, which counts what torch allocates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
        COUNTER.library.build()
    return CpuAccelerator(plugin.accel_backend())


def peak(host, module, x):
    """Bytes of a forward and a backward at their highest, over what was held before: with the
    result, and the gradients of x and of every parameter."""
    module.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    grad = torch.ones(*x.shape[:-1], module.down_proj.out_features, dtype=x.dtype)
    held = host.memory_allocated()
    host.reset_peak_memory_stats()
    module(x).backward(grad)
    return host.max_memory_allocated() - held


@pytest.mark.parametrize("gated", [False, True])
def test_forward_and_backward_need_no_more_than_gradients_and_one_tile(host, gated):
    tokens, hidden, inner, tile, size = 2048, 32, 256, 128, 4
    plain = Plain(hidden, inner, gated=gated, dtype=torch.float32)
    layer, x = tiled(plain, tile_rows=tile), made(2, tokens // 2, hidden, dtype=torch.float32)
    of_weight = hidden * inner * size
    of_rows = tokens * hidden * size
    of_tile = tile * inner * size
    # Each weight's sum, and a tile's share in one of them; the result and the gradient of x; of a
    # tile what its backward holds, eight tensors of [tile_rows, intermediate] at most.
    allowed = (4 if gated else 3) * of_weight + 2 * of_rows + 8 * of_tile
    found, twin = peak(host, layer, x), peak(host, plain, x)
    assert found <= allowed
    # The twin keeps the intermediate before and after its activation, of all rows.
    assert twin >= 2 * tokens * inner * size


def test_a_longer_sequence_costs_no_more_than_its_own_rows(host):
    layer = tiled(Plain(32, 256, dtype=torch.float32), tile_rows=128)
    short, long = (made(n, 32, dtype=torch.float32) for n in (1024, 4096))
    more = peak(host, layer, long) - peak(host, layer, short)
    # The result's, the gradient's of x, and a page for each.
    assert more <= 2 * (long.nbytes - short.nbytes) + 2**14
