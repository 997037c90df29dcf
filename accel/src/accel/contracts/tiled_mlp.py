"""tiled_mlp: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate, in fp32.

Rows are taken ``tile_rows`` at a time, in the forward and again in the backward, so that what lies
between the products, [rows, I], exists for one tile only and is never kept. A weight has one
gradient, summed over the tiles in fp32.

K: columns of x · I: the intermediate ones · N: columns of the result
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, gated_linear, inputs, linear
from accel.contracts.activation import activate, slope_times
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_twice
from accel.errors import OpArgumentError

NAME = "tiled_mlp"


def tiles(rows: int, tile_rows: int) -> Iterator[slice]:
    """``rows`` in slices of ``tile_rows``, the last one ragged; no rows are one empty tile. Counted
    first, so that what is traced is bound to the number of tiles and not of rows."""
    count = max((rows + tile_rows - 1) // tile_rows, 1)
    for start in range(count):
        yield slice(start * tile_rows, min((start + 1) * tile_rows, rows))


def reference(
    x: Tensor,  # [..., K]
    w_up: Tensor,  # [I, K]
    w_down: Tensor,  # [N, I]
    w_gate: Tensor | None = None,  # [I, K]
    b_up: Tensor | None = None,  # [I]
    b_down: Tensor | None = None,  # [N]
    b_gate: Tensor | None = None,  # [I]
    act: str = "silu",
    tile_rows: int = 1024,
) -> Tensor:  # [..., N]
    """All rows at once: tiles are a matter of memory, and change no result."""
    wide = checks.WIDE[x.dtype]
    if w_gate is None:
        hidden = linear.reference(x, w_up, b_up, act, wide)
    else:
        hidden = gated_linear.reference(x, w_gate, w_up, b_gate, b_up, act, wide)
    return linear.reference(hidden, w_down, b_down, None, x.dtype)


def check(
    x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None, b_up: Tensor | None,
    b_down: Tensor | None, b_gate: Tensor | None, act: str, tile_rows: int,
) -> None:  # fmt: skip
    given = {"x": x, "w_up": w_up, "w_down": w_down, "w_gate": w_gate, "b_up": b_up,
             "b_down": b_down, "b_gate": b_gate}  # fmt: skip
    checks.refuse_nontensor(NAME, given, optional=("w_gate", "b_up", "b_down", "b_gate"))
    checks.require_floats(NAME, x, {name: t for name, t in given.items() if name != "x"})
    checks.require_weight(NAME, "w_up", w_up, x)
    if w_down.dim() != 2 or w_down.shape[1] != w_up.shape[0]:
        raise OpArgumentError(
            f"{NAME}: w_down must be [out, {w_up.shape[0]}], of as many columns as w_up has rows; "
            f"found {checks.describe(w_down)} beside {checks.describe(w_up)}"
        )
    if w_gate is not None:
        checks.require_same_shape(NAME, "w_gate", w_gate, "w_up", w_up)
    elif b_gate is not None:
        raise OpArgumentError(
            f"{NAME}: b_gate must be None without w_gate; found {checks.describe(b_gate)}"
        )
    checks.require_bias(NAME, "b_up", b_up, w_up.shape[0])
    checks.require_bias(NAME, "b_down", b_down, w_down.shape[0])
    checks.require_bias(NAME, "b_gate", b_gate, w_up.shape[0])
    checks.require_act(NAME, act, optional=False)
    require_tile_rows(NAME, tile_rows)


def require_tile_rows(op: str, tile_rows: int) -> None:
    if isinstance(tile_rows, bool) or not isinstance(tile_rows, (int, torch.SymInt)):
        raise TypeError(f"{op}: tile_rows must be an int, not {type(tile_rows).__name__}")
    if tile_rows < 1:
        raise OpArgumentError(f"{op}: tile_rows must be at least 1; found {tile_rows}")


def fits(
    x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None, b_up: Tensor | None,
    b_down: Tensor | None, b_gate: Tensor | None,
) -> bool:  # fmt: skip
    if not linear.fits(x, w_up, b_up):
        return False
    inner, down, dtype = w_up.shape, w_down.shape, x.dtype
    if len(down) != 2 or down[1] != inner[0] or w_down.dtype is not dtype:
        return False
    if b_down is not None and (b_down.shape != down[:1] or b_down.dtype is not dtype):
        return False
    if w_gate is None:
        return b_gate is None
    return w_gate.shape == inner and linear.fits(x, w_gate, b_gate)


def fake(
    x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None = None,
    b_up: Tensor | None = None, b_down: Tensor | None = None, b_gate: Tensor | None = None,
    act: str = "silu", tile_rows: int = 1024,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], w_down.shape[0]))


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w_up: Tensor, w_down: Tensor,
    w_gate: Tensor | None, b_up: Tensor | None, b_down: Tensor | None, b_gate: Tensor | None,
    act: str, tile_rows: int,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Each tile's intermediate is computed again. Shares in a weight's gradient are added where the
    first of them lies, which autograd may record: nothing keeps the value of a sum."""
    wide = checks.WIDE[x.dtype]
    sums: dict[int, Tensor] = {}  # by the argument's place

    def through(
        grad: Tensor, x: Tensor, w: Tensor, need_x: bool, at_w: int, at_b: int
    ) -> Tensor | None:
        """Gradient of x by ``x @ w.T + b``; those of w and b are added to their sums."""
        need = (need_x, needs[at_w], needs[at_b])
        dx, dw, db, *_ = linear.backward(grad, need, x, w, None, None, None)
        for at, share in ((at_w, dw), (at_b, db)):
            if share is not None:
                sums[at] = sums[at].add_(share) if at in sums else share.to(wide)
        return dx

    def tile(grad: Tensor, x: Tensor) -> Tensor | None:
        up = linear.reference(x, w_up, b_up, None, wide)
        gate = None if w_gate is None else linear.reference(x, w_gate, b_gate, None, wide)
        turned = up if gate is None else gate  # what the activation is of
        active = activate(turned, act)
        inner = any(needs[at] for at in (0, 1, 3, 4, 6))
        hidden = (active if gate is None else active * up).to(x.dtype)
        d_hidden = through(grad, hidden, w_down, inner, 2, 5)
        if d_hidden is None:
            return None
        d_hidden = d_hidden.to(wide)
        d_up = slope_times(d_hidden, up, act) if gate is None else d_hidden * active
        dx = through(d_up, x, w_up, needs[0], 1, 4)
        if w_gate is None:
            return dx
        del active, d_up, hidden  # the tile's memory is at its highest next
        dx_gate = through(slope_times(d_hidden * up, turned, act), x, w_gate, needs[0], 3, 6)
        return dx if dx is None or dx_gate is None else dx + dx_gate

    # Counted, since -1 cannot be inferred beside a dimension of 0.
    m = math.prod(x.shape[:-1])
    flat, dy = x.reshape(m, x.shape[-1]), grad.reshape(m, grad.shape[-1])
    dx: Tensor | None = None
    for rows in tiles(m, tile_rows):
        d_tile = tile(dy[rows], flat[rows])
        if d_tile is not None:
            # Made of the tile's, whatever kind of tensor a transform has made of that.
            dx = d_tile.new_empty(flat.shape) if dx is None else dx
            dx[rows] = d_tile
    of_weights = (sums[at].to(x.dtype) if at in sums else None for at in range(1, 7))
    return None if dx is None else dx.reshape(x.shape), *of_weights, None, None


def cost(x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None, *rest: Any) -> Cost:
    k, n = w_up.shape[1], w_down.shape[0]
    m = x.numel() // max(k, 1)
    weights = w_up.numel() * (1 if w_gate is None else 2) + w_down.numel()
    return Cost(bytes=(m * k + weights + m * n) * x.element_size(), flops=2 * m * weights)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], inner: int, n: int, *, gated: bool = True,
             bias: bool = False, act: Any = "silu", tile_rows: int = 1024,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            k = shape[-1]

            def b(of: str, size: int) -> Tensor | None:
                return draw.plain(f"{name}.{of}", (size,), dtype, device) if bias else None

            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.weight(f"{name}.up", (inner, k), dtype, device, layout),
                draw.weight(f"{name}.down", (n, inner), dtype, device, layout),
                draw.weight(f"{name}.gate", (inner, k), dtype, device, layout) if gated else None,
                b("b_up", inner),
                b("b_down", n),
                b("b_gate", inner) if gated else None,
                act,
                tile_rows,
            )

        return Sample(name, make)

    yield case("even", (16, 32), 48, 24, tile_rows=4)
    yield case("odd", (7, 33), 21, 11, bias=True, tile_rows=3)
    yield case("vector", (17,), 21, 11, bias=True)
    yield case("batched", (2, 3, 5, 13), 17, 9, tile_rows=7)
    yield case("one", (1, 1), 1, 1, bias=True)
    yield case("no_rows", (0, 8), 12, 4, bias=True)
    yield case("no_sum", (4, 0), 12, 4, bias=True)
    yield case("no_inner", (4, 8), 0, 4, bias=True)
    yield case("long_sum", (3, 16), 1501, 5, tile_rows=2)
    yield case("many_rows", (131, 12), 20, 8, tile_rows=50)
    yield case("plain_gelu", (9, 25), 30, 15, gated=False, bias=True, act="gelu", tile_rows=4)
    yield case("act_gelu_tanh", (9, 25), 30, 15, act="gelu_tanh")
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 20), 24, 10, bias=True, tile_rows=4, layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    shapes = {"x": (3, 8), "w_up": (5, 8), "w_down": (4, 5), "w_gate": (5, 8), "b_up": (5,),
              "b_down": (4,), "b_gate": (5,)}  # fmt: skip
    good: dict[str, Any] = {k: inputs.maker(NAME, k, shape) for k, shape in shapes.items()}
    good |= {"act": "silu", "tile_rows": 2}
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "up_rank", "w_up must be", w_up=lambda w: w[0])
    yield inputs.spoil(good, "down_transposed", "w_down must be", w_down=lambda w: w.t())
    yield inputs.spoil(good, "down_rank", "w_down must be", w_down=lambda w: w[0])
    yield inputs.spoil(good, "gate_shape", "w_gate must have", w_gate=lambda w: w[:4])
    yield inputs.spoil(good, "bias_of_no_gate", "without w_gate", w_gate=None)
    yield inputs.spoil(good, "up_bias_shape", "b_up must be", b_up=lambda b: b[:1])
    yield inputs.spoil(good, "down_bias_shape", "b_down must be", b_down=lambda b: b[:1])
    yield inputs.spoil(good, "gate_bias_shape", "b_gate must be", b_gate=lambda b: b[:1])
    yield inputs.spoil(good, "dtype_differs", "dtype", w_down=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "unknown_act", "unknown act", act="swosh")
    yield inputs.spoil(good, "no_act", "unknown act", act=None)
    yield inputs.spoil(good, "no_tile", "tile_rows must be at least 1", tile_rows=0)
    yield inputs.spoil(good, "other_device", "device", w_gate=lambda w: w.to("meta"))


TILED_MLP = Contract(
    name=NAME,
    family="TilingBuilder",
    schema="(Tensor x, Tensor w_up, Tensor w_down, Tensor? w_gate=None, Tensor? b_up=None, "
    'Tensor? b_down=None, Tensor? b_gate=None, str act="silu", int tile_rows=1024) -> Tensor',
    options=("act",),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    reference_invariant=False,
    # An implementation may round the intermediate.
    tolerance=rounded_twice(Tolerance(rms=1e-6, peak=1e-5)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
