"""LinearOp and VectorMatMulOp: one product with a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel import ops
from accel import registry as _registry
from accel.contracts import checks
from accel.errors import AccelWarning, OpArgumentError
from accel.layers.inference import autotune
from accel.layers.inference.autotune import Tuned
from accel.layers.inference.base import WeightOp
from accel.layers.inference.config import InferenceConfig
from accel.layers.inference.flash import flash_layout
from accel.selection import get_accelerator

# Of a tuned kernel's rows: DeepSpeed's Fp16Matmul._cache_stride.
_TUNING_STRIDE = 32


class LinearOp(WeightOp):
    """``input @ weight + bias`` in the config's dtype, if asked in the layout of flash attention.

    ``linear_func`` is what serves; ``tuned`` says what ``triton_autotune`` did, None where it was
    not asked for or this is not layer 0.
    """

    uses = ("linear", "quantized_linear")

    def __init__(self, config: InferenceConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        self.linear_func: Callable[..., Tensor] = self._linear
        self.tuned: Tuned | None = None
        if config.use_triton:
            self._warn_without_triton()
        if config.triton_autotune and config.layer_id == 0:
            self.tuned = self._triton_autotune(
                min(2, config.max_out_tokens), config.max_out_tokens, config.hidden_size,
                config.dtype,
            )  # fmt: skip

    def forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, add_bias: bool,
        do_flash_attn: bool, num_heads: int, external_cache: bool | None = None,
        num_layers: int | None = None,
    ) -> Tensor:  # fmt: skip
        """``[..., out]``, or ``[3, B, num_heads, S, size]`` if ``do_flash_attn``.

        input ``[..., in]``; weight ``[out, in]`` in ``transposed_mode``, else ``[in, out]``; bias
        ``[out]``, added if ``add_bias``. For flash attention input is ``[B, S, in]`` and out holds
        queries, keys and values of ``num_heads`` heads, whose sizes are filled up with zeros to
        :func:`accel.layers.inference.flash.padded_head_size`.

        ``external_cache`` and ``num_layers`` are the caller's words about a workspace that
        DeepSpeed's results lie in; there is none here, and they change nothing there either.

        OpArgumentError where a shape, dtype or device does not fit.
        """
        return self.linear_func(
            input, weight, bias, add_bias, do_flash_attn, num_heads, self.config.transposed_mode,
            self.config.rope_theta,
        )  # fmt: skip

    def linear_fallback(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, add_bias: bool,
        do_flash_attn: bool, num_heads: int, transpose: bool, rope_theta: float,
    ) -> Tensor:  # fmt: skip
        """The same by the ops' references, the plainest torch there is, on any device."""
        with ops.use("linear=reference;quantized_linear=reference", exact=False, fallback="allow"):
            return self._linear(
                input, weight, bias, add_bias, do_flash_attn, num_heads, transpose, rope_theta
            )

    def _linear(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, add_bias: bool,
        do_flash_attn: bool, num_heads: int, transpose: bool, rope_theta: float,
    ) -> Tensor:  # fmt: skip
        """``rope_theta`` is for DeepSpeed's workspace, and has no part in a product."""
        if add_bias and bias is None:
            raise OpArgumentError("LinearOp: add_bias=True needs a bias; found None")
        if do_flash_attn:
            self._require_heads(input, num_heads)
        y = self.product(input, weight, bias if add_bias else None, transposed=transpose)
        return flash_layout(y, num_heads) if do_flash_attn else y

    def _require_heads(self, input: Tensor, num_heads: int) -> None:
        if input.dim() != 3:
            raise OpArgumentError(
                f"LinearOp: for flash attention input must be [B, S, in]; found "
                f"{checks.describe(input)}"
            )
        if num_heads < 1:
            raise OpArgumentError(f"LinearOp: num_heads must be at least 1; found {num_heads}")
        if 0 < self.config.num_kv != self.config.heads:
            self.refuse("do_flash_attn", True, "its layout has as many heads of keys as of "
                        f"queries, and the config has num_kv={self.config.num_kv}")  # fmt: skip

    def _warn_without_triton(self) -> None:
        op = "quantized_linear" if self.config.dtype is torch.int8 else "linear"
        serves = self.explain()[op].chosen
        if serves is not None and not serves.impl.id.endswith(".triton"):
            _registry.registry().warn_once(
                ("use_triton", serves.impl),
                f"use_triton is set, and {op} is served by {serves.impl.id}: no Triton kernel of "
                "it takes these requests here (LinearOp.explain() shows why)",
                AccelWarning,
            )

    @staticmethod
    def _triton_autotune(
        min_seqlen: int, max_seqlen: int, hidden_size: int, dtype: torch.dtype = torch.float16
    ) -> Tuned:
        """Tune the kernel that serves ``[rows, hidden_size] x [hidden_size, 3 * hidden_size]`` on
        the accelerator, for every 32nd number of rows from ``min_seqlen`` until past
        ``max_seqlen``. See :mod:`accel.layers.inference.autotune`."""
        if not 1 <= min_seqlen <= max_seqlen or hidden_size < 1:
            raise OpArgumentError(
                "LinearOp: autotuning needs 1 <= min_seqlen <= max_seqlen and a hidden_size; found "
                f"{min_seqlen}, {max_seqlen} and {hidden_size}"
            )
        device = get_accelerator().device()
        numbers = torch.Generator(device).manual_seed(0)  # torch's own are the user's
        w, x = (
            torch.randn(rows, hidden_size, generator=numbers, dtype=dtype, device=device)
            for rows in (3 * hidden_size, max_seqlen + _TUNING_STRIDE)
        )
        lengths = range(min_seqlen, len(x) + 1, _TUNING_STRIDE)
        return autotune.tune("linear", [(x[:rows], w) for rows in lengths])


class VectorMatMulOp(WeightOp):
    """``input @ weight``."""

    uses = ("linear", "quantized_linear")

    def forward(self, input: Tensor, weight: Tensor, async_op: bool = False) -> Tensor:
        """``[..., out]`` of input ``[..., in]`` and a weight laid out as the config says."""
        if async_op:
            self.refuse("async_op", async_op, "work is already queued on the caller's stream")
        return self.product(input, weight)
