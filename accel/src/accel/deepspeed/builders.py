"""DeepSpeed's builders of the ops that accel has."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar

from accel import ops


class Builder:
    """A builder of DeepSpeed's: what it loads is :mod:`accel.ops`, whose functions find the
    device's kernels themselves, and always one."""

    NAME: ClassVar[str]
    BUILD_VAR: ClassVar[str]

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.NAME

    def absolute_name(self) -> str:
        return ops.__name__

    def is_compatible(self, verbose: bool = False) -> bool:
        return True

    def load(self, verbose: bool = False) -> ModuleType:
        return ops

    jit_load = load


class TransformerBuilder(Builder):
    NAME, BUILD_VAR = "transformer", "DS_BUILD_TRANSFORMER"


class StochasticTransformerBuilder(TransformerBuilder):
    NAME, BUILD_VAR = "stochastic_transformer", "DS_BUILD_STOCHASTIC_TRANSFORMER"


class InferenceBuilder(Builder):
    NAME, BUILD_VAR = "transformer_inference", "DS_BUILD_TRANSFORMER_INFERENCE"


class Kernels:
    """What DeepSpeed's own modules load: of its kernels, by their names, those that an op is.

    AttributeError for all others, by which its inference bindings know that torch must do.
    """

    def __init__(self, name: str, **kernels: Any) -> None:
        self.name = name
        vars(self).update(kernels)

    def __getattr__(self, kernel: str) -> Any:
        raise AttributeError(
            f"accel has no {kernel} of DeepSpeed's {self.name!r}; accel.deepspeed has the modules "
            "that are made of it under the same names, over accel's ops"
        )


class _ForDeepSpeed(Builder):
    """The same where DeepSpeed's own modules ask."""

    kernels: ClassVar[dict[str, Any]] = {}
    error_log = None

    def load(self, verbose: bool = False) -> Any:
        return Kernels(self.NAME, **self.kernels)

    jit_load = load


class _Transformer(_ForDeepSpeed, TransformerBuilder):
    pass


class _StochasticTransformer(_ForDeepSpeed, StochasticTransformerBuilder):
    pass


class _Inference(_ForDeepSpeed, InferenceBuilder):
    kernels: ClassVar[dict[str, Any]] = {
        "rms_norm": lambda x, gamma, eps: ops.rms_norm(x, gamma, eps=eps),
        "layer_norm": lambda x, gamma, beta, eps: ops.layer_norm(x, gamma, beta, eps=eps),
    }


FOR_DEEPSPEED: dict[str, type[Builder]] = {
    "TransformerBuilder": _Transformer,
    "StochasticTransformerBuilder": _StochasticTransformer,
    "InferenceBuilder": _Inference,
}
