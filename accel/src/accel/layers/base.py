"""OpLayer: a module built from ops, which can say what serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from accel import ops
from accel.ops.resolution import Decision


class OpLayer(nn.Module):
    """A module built from ops; ``uses`` names them, ``variants`` the ways in which it may ask one
    of them that other implementations may serve: words for it -> the op and its options.

    Ops are resolved for the device and dtype of the tensors a forward is given, and bound then.
    """

    uses: ClassVar[tuple[str, ...]] = ()
    variants: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}

    def explain(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> dict[str, Decision]:
        """Per op, and per variant of one, which implementation serves this layer and why every
        other one does not.

        ``device`` and ``dtype`` are by default those of the layer's parameters.
        """
        own = next(self.parameters(), None)
        if own is not None:
            device = own.device if device is None else device
            dtype = own.dtype if dtype is None else dtype
        return explained(type(self), device=device, dtype=dtype)


def explained(
    layer: type[OpLayer], *, device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Decision]:  # fmt: skip
    """:meth:`OpLayer.explain` of a layer that has not been made; device defaults to the
    accelerator's, dtype to fp32."""
    asked: dict[str, Any] = {"device": device, "dtype": dtype or torch.float32, "grad": True}
    plain = {op: ops.explain(op, **asked) for op in layer.uses}
    others = layer.variants.items()
    return plain | {words: ops.explain(op, **asked, **options) for words, (op, options) in others}
