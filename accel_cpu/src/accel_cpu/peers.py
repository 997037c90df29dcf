"""Libraries for the host processor that ``accel bench`` holds the kernels beside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel import Peer
from accel.bench.peers import first_of, only
from accel.contracts.quantized_linear import whole
from accel_cpu import ipex, onednn


def _packed_linear(x: Tensor, w: Tensor, b: Tensor | None, *_: Any) -> Callable[[], Tensor]:
    """With the weight packed before, as torch's inductor does when it freezes a model."""
    rows = x.flatten(0, -2)
    packed = torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), rows.shape[0])
    return partial(torch.ops.mkldnn._linear_pointwise, rows, packed, b, "none", [], "")


def _int4_product(
    x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None, bits: int, *_: Any
) -> Callable[[], Tensor]:
    """torch's own weight-only product: a value is (0 to 15 less 8) * scale + 0."""
    values = (whole(w, bits) + 8).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    both = torch.stack((scales.t(), torch.zeros_like(scales.t())), -1).to(x.dtype).contiguous()
    group = x.shape[-1] // scales.shape[1]
    return partial(torch.ops.aten._weight_int4pack_mm_for_cpu, x, packed, group, both)


def _ipex_linear(x: Tensor, w: Tensor, b: Tensor | None, *_: Any) -> Callable[[], Tensor]:
    """ipex.optimize packs the weight of a module."""
    import intel_extension_for_pytorch  # type: ignore[import-not-found,unused-ignore]

    layer = torch.nn.Linear(x.shape[-1], w.shape[0], bias=b is not None, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.copy_(w)
        if b is not None:
            layer.bias.copy_(b)
    return partial(intel_extension_for_pytorch.optimize(layer.eval(), dtype=x.dtype), x)


_FORWARD = only(gradient=False)
_IPEX = first_of(
    ipex.refusals,
    only(dtypes=(torch.float32, torch.bfloat16), gradient=False, act=None),
)

OF_LINEAR = (
    Peer("linear", "oneDNN, packed", _packed_linear, first_of(_FORWARD, onednn.reasons)),
    Peer("linear", "IPEX", _ipex_linear, _IPEX),
    Peer("quantized_linear", "torch int4pack_mm", _int4_product, only(gradient=False, bits=4)),
)
