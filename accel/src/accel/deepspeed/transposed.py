"""Linear weights laid out by columns."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn


def laid_out_by_columns(model: nn.Module) -> list[str]:
    """See :meth:`accel.deepspeed.DeepSpeedHybridEngine.convert_to_linear_transposed`."""
    users = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    converted = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear) or users[id(module.weight)] > 1:
            continue
        data = module.weight.data
        if type(data) is Tensor and data.dim() == 2 and data.stride(0) != 1:
            module.weight.data = data.t().contiguous().t()
            converted.append(path)
    return converted
