"""HybridEngineConfig: DeepSpeed's ``hybrid_engine`` block, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from accel.errors import ConfigError, UnsupportedCapability
from accel.settings import Fixed, require_known


@dataclass(unsafe_hash=True)  # nothing writes to it
class HybridEngineConfig(Fixed):
    """Settings of a :class:`accel.HybridEngine`. Bad ones raise ConfigError.

    Under DeepSpeed's names:

    ``enabled``                    False leaves the model to itself: no layer is replaced
    ``max_out_tokens``             most tokens of a sequence, prompt and answer together; None: as
                                   many as the model has positions. DeepSpeed's default is 512
    ``inference_tp_size``          ranks that share a layer when generating; only 1 so far
    ``release_inference_cache``    give the KV cache back after every ``generate``
    ``pin_parameters``, ``tp_gather_partition_size``  speak of ZeRO-3 partitions; without them
                                   there is nothing to pin or to gather
    ``enable_cuda_graph``          replay a decode step as a graph; no backend offers that so far

    Ours:

    ``exact``                      training and generation agree bitwise, or the engine refuses;
                                   False permits implementations whose rows depend on their company
    ``kv_cache_bytes``             most bytes the KV cache may take; None: no limit
    ``micro_batch_size``           rows per forward in ``logprobs``; None: all at once
    ``on_stats``                   called with ``(phase, seconds)`` whenever a phase ends
    """

    enabled: bool = True
    max_out_tokens: int | None = None
    inference_tp_size: int = 1
    release_inference_cache: bool = False
    pin_parameters: bool = True
    tp_gather_partition_size: int = 8
    enable_cuda_graph: bool = False
    exact: bool = True
    kv_cache_bytes: int | None = None
    micro_batch_size: int | None = None
    on_stats: Callable[[str, float], None] | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(setting.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{setting.name} must be True or False, not {value!r}")
        for name in ("max_out_tokens", "kv_cache_bytes", "micro_batch_size"):
            _require_positive(name, getattr(self, name), optional=True)
        for name in ("inference_tp_size", "tp_gather_partition_size"):
            _require_positive(name, getattr(self, name))
        if self.inference_tp_size != 1:
            raise UnsupportedCapability(
                f"inference_tp_size is {self.inference_tp_size}; generation is not split over "
                "ranks so far, only 1 is possible"
            )
        if self.enable_cuda_graph:
            raise UnsupportedCapability(
                "enable_cuda_graph: no backend replays a decode step as a graph so far; leave it "
                "False"
            )

    def without_effect(self) -> list[str]:
        """Settings that speak of ZeRO-3 partitions, where they are not their defaults."""
        names = ("pin_parameters", "tp_gather_partition_size")
        return [name for name in names if getattr(self, name) != getattr(type(self), name)]

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> HybridEngineConfig:
        """From a dict such as DeepSpeed's ``hybrid_engine`` block; unknown keys are refused."""
        require_known(settings, (field.name for field in fields(cls)))
        return cls(**settings)


def _require_positive(name: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        none = " or None" if optional else ""
        raise ConfigError(f"{name} must be a positive int{none}, not {value!r}")
