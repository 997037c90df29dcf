"""rms_norm and layer_norm through Intel's extension for PyTorch (IPEX), 2.8 for torch 2.8.

**Not run on hardware**; the calls were run on the host, by its build for CPUs. It is end of life
upstream, and nothing needs it.

Importing it replaces some of torch's own operations in the whole process. So nothing of it is
imported before one of these was chosen, and their priorities are below eager torch's: they serve
who asks for them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

from accel import Impl, OpBuilder, Refusal, Request

ID = "accel_xpu.ipex"
_DISTRIBUTION = "intel-extension-for-pytorch"
_EVERY = frozenset({torch.float32, torch.bfloat16, torch.float16})


class TransformerBuilder(OpBuilder):
    """Norms by IPEX's kernels for GPUs."""

    device_type = "xpu"
    impls = tuple(Impl(op, ID, _EVERY, priority=4) for op in ("rms_norm", "layer_norm"))

    def reasons(self, impl: Impl, request: Request) -> list[Refusal]:
        """Why it cannot serve, told without importing it."""
        refused = _refused()
        return [] if refused is None else [refused]

    def load(self, impl: Impl) -> Callable[..., Any]:
        """The kernel, after the import."""
        import_module(_DISTRIBUTION.replace("-", "_"))
        return _rms_norm if impl.op == "rms_norm" else _layer_norm


@cache
def _refused() -> Refusal | None:
    """Why it cannot be imported here. Beside another torch its import ends the process."""
    remedy = "pip install accel-xpu[ipex] from Intel's index of builds for XPU, or do without"
    try:
        version = metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return Refusal("library", _DISTRIBUTION, "not installed", remedy)
    wanted = ".".join(version.split(".")[:2])
    if torch.__version__.split(".")[:2] != wanted.split("."):
        have = f"torch {torch.__version__} beside {_DISTRIBUTION} {version}"
        return Refusal("version", f"torch {wanted} for it", have, remedy)
    if "xpu" not in version:  # the indexes that everybody uses have the one for CPUs
        want = f"its build for XPU, such as {version.partition('+')[0]}+xpu"
        return Refusal("library", want, version, remedy)
    return None


def _rms_norm(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
    norms: Any = import_module("intel_extension_for_pytorch.llm.functional")
    y: Tensor = norms.rms_norm(x.contiguous(), _filled(w, x, 1), eps)
    return y


def _layer_norm(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    norms: Any = import_module("intel_extension_for_pytorch.llm.functional")
    weight, bias = _filled(w, x, 1), _filled(b, x, 0)
    y: Tensor = norms.fast_layer_norm(x.contiguous(), x.shape[-1:], weight, bias, eps)
    return y


def _filled(vector: Tensor | None, x: Tensor, value: float) -> Tensor:
    """One without gaps, which its kernels do not look for; of an absent one, ``value``s."""
    return x.new_full(x.shape[-1:], value) if vector is None else vector.contiguous()
