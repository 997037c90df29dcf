"""Wrong norms, softmaxes, positions and dropouts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.contracts.softmax import scores
from accel_conformance.faults.planting import Kernel, faults_of
from accel_conformance.faults.values import wide

fault = faults_of("numeric")


@fault("accuracy", "ops/*", op="rms_norm")
def epsilon_forgotten(kernel: Kernel) -> Kernel:
    """Epsilon is taken for zero."""
    return lambda x, w, eps: kernel(x, w, 0.0)


@fault("accuracy", "ops/*/hidden", also="gradient", op="softmax")
def nothing_seen_is_nan(kernel: Kernel) -> Kernel:
    """A row that sees nothing is NaN, as nothing over nothing is."""

    def faulty(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        blind = (scores(x, mask, scale) == -torch.inf).all(-1, keepdim=True)
        return kernel(x, mask, scale).masked_fill_(blind, torch.nan)

    return faulty


@fault("accuracy", "ops/*interleaved*", also="contained", op="rotary")
def halves_for_pairs(kernel: Kernel) -> Kernel:
    """Interleaved pairs are taken for halves of a head."""
    return lambda x, cos, sin, interleaved: kernel(x, cos, sin, False)


def normed(x: Tensor, w: Tensor | None, scale: Tensor) -> Tensor:
    """What follows the sum in a norm of root mean squares."""
    y = x.to(scale.dtype) * scale
    return (y if w is None else y * w.to(y.dtype)).to(x.dtype)


@fault("accuracy", "ops/*", op="rms_norm")
def epsilon_outside_the_root(kernel: Kernel) -> Kernel:
    """Epsilon is added to the root, where it belongs under it."""

    def faulty(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        squares = x.to(wide(x)).square().mean(-1, keepdim=True)
        return normed(x, w, 1 / (squares.sqrt() + eps))

    return faulty


@fault("accuracy", "ops/*", also="contained", op="rms_norm")
def mean_of_magnitudes(kernel: Kernel) -> Kernel:
    """Rows are divided by their mean magnitude, not by the root of their mean square."""

    def faulty(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        return normed(x, w, 1 / (x.to(wide(x)).abs().mean(-1, keepdim=True) + eps))

    return faulty


@fault(
    "accuracy", "ops/*/float16/large", "ops/*/float16/tiny", op="rms_norm", also="rows contained"
)
def squared_in_half(kernel: Kernel) -> Kernel:
    """Squares are taken in float16, which has no number over 65504."""

    def faulty(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        if x.dtype is not torch.float16:
            return kernel(x, w, eps)
        squares = x.square().float().mean(-1, keepdim=True)
        return normed(x, w, 1 / (squares + eps).sqrt())

    return faulty


@fault("accuracy", "ops/*/bfloat16/*", "ops/*/float16/*", op="layer_norm", also="contained")
def mean_rounded(kernel: Kernel) -> Kernel:
    """The mean is rounded to x's dtype before it is subtracted."""

    def faulty(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
        mean = x.to(wide(x)).mean(-1, keepdim=True)
        spread = (x.to(wide(x)) - mean).square().mean(-1, keepdim=True)
        y = (x.to(wide(x)) - mean.to(x.dtype)) / (spread + eps).sqrt()
        y = y if w is None else y * w
        return (y if b is None else y + b).to(x.dtype)

    return faulty


@fault("accuracy", "ops/*", op="layer_norm", also="contained")
def one_off_the_count(kernel: Kernel) -> Kernel:
    """The variance is divided by one less than the number of columns."""

    def faulty(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
        n = x.shape[-1]
        # Which makes it larger by n/(n-1), and so the result smaller by the root of that.
        y = kernel(x, w, None, eps) * (max(n - 1, 1) / max(n, 1)) ** 0.5
        return y if b is None else (y + b).to(x.dtype)

    return faulty


@fault("accuracy", "ops/*", op="add_norm", also="contained")
def residual_after_the_norm(kernel: Kernel) -> Kernel:
    """The residual is added to the norm of x, where the norm is of their sum."""

    def faulty(x: Tensor, residual: Tensor, *rest: Any) -> Any:
        y, _ = kernel(x, torch.zeros_like(residual), *rest)
        return y + residual, x + residual

    return faulty


@fault("accuracy", "ops/*", op="softmax", also="contained gradient")
def mask_after_softmax(kernel: Kernel) -> Kernel:
    """The mask is added to probabilities instead of scores."""

    def faulty(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        p = kernel(x, None, scale)
        return p if mask is None else (p + mask).to(x.dtype)

    return faulty


@fault("accuracy", "ops/*/steep", "ops/*/far_below", op="softmax", also="contained rows gradient")
def maximum_left_in(kernel: Kernel) -> Kernel:
    """The exponentials are of scores, not of scores less their largest: they overflow."""

    def faulty(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        z = scores(x, mask, scale).exp()
        total = z.sum(-1, keepdim=True)
        return torch.where(total == 0, 0.0, z / total).to(x.dtype)

    return faulty


@fault("accuracy", "ops/*/far_below", op="softmax", also="contained rows gradient")
def maximum_from_zero(kernel: Kernel) -> Kernel:
    """The largest score is looked for from 0 on: of scores far below, no exponential is left."""

    def faulty(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        if not x.shape[-1]:
            return kernel(x, mask, scale)
        z = scores(x, mask, scale)
        shares = (z - z.amax(-1, keepdim=True).clamp(min=0)).exp()
        total = shares.sum(-1, keepdim=True)
        return torch.where(total == 0, 0.0, shares / total).to(x.dtype)

    return faulty


@fault("accuracy", "ops/*", op="rotary", also="contained")
def turned_the_other_way(kernel: Kernel) -> Kernel:
    """The sine has the wrong sign."""
    return lambda x, cos, sin, interleaved: kernel(x, cos, -sin, interleaved)


@fault("accuracy", "ops/*", op="rotary", also="rows padded contained")
def position_off_by_one(kernel: Kernel) -> Kernel:
    """Each row is turned by the angle of the row before."""

    def faulty(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        if not cos.dim() > 1:
            return kernel(x, cos, sin, interleaved)
        return kernel(x, cos.roll(1, -2), sin.roll(1, -2), interleaved)

    return faulty


@fault("accuracy", "ops/*", op="rotary", also="contained")
def rest_not_passed_through(kernel: Kernel) -> Kernel:
    """Elements of a head beyond the pairs are left out of the copy."""

    def faulty(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        result = kernel(x, cos, sin, interleaved)
        result[..., 2 * cos.shape[-1] :] = 0
        return result

    return faulty


@fault("accuracy", "ops/*", op="dropout_add", also="contained")
def survivors_not_scaled(kernel: Kernel) -> Kernel:
    """What dropout leaves is not divided by the share that is left."""

    def faulty(
        x: Tensor, residual: Tensor | None, b: Tensor | None, seed: Tensor | None, *rest: Any
    ) -> Tensor:
        dropped = kernel(x, None, b, seed, *rest).to(wide(x)) * (1 - rest[-1])
        return (dropped if residual is None else residual + dropped).to(x.dtype)

    return faulty


@fault("accuracy", "ops/*", op="dropout_add", also="contained")
def seed_ignored(kernel: Kernel) -> Kernel:
    """The same elements are dropped whatever the seed."""

    def faulty(x: Tensor, residual: Any, b: Any, seed: Tensor | None, *rest: Any) -> Tensor:
        return kernel(x, residual, b, None if seed is None else seed * 0, *rest)

    return faulty


@fault("accuracy", "ops/*", op="bias_act")
def tanh_for_erf(kernel: Kernel) -> Kernel:
    """gelu is its approximation by tanh."""
    return lambda x, b, act: kernel(x, b, "gelu_tanh" if act == "gelu" else act)


@fault("accuracy", "ops/*/post_norm", "ops/*/dropout_post", op="transformer_layer")
def norm_always_first(kernel: Kernel) -> Kernel:
    """A layer that is normed after each half is normed before it."""
    return lambda *args: kernel(*args[:16], True, *args[17:])


@fault("accuracy", "ops/*", op="transformer_layer", also="contained")
def layer_sees_everything(kernel: Kernel) -> Kernel:
    """The layer leaves out its mask."""
    return lambda *args: kernel(*args[:13], None, *args[14:])
