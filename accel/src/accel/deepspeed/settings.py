"""What DeepSpeed's users say to an engine: a configuration, and which ranks belong together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from accel.engine import HybridEngineConfig
from accel.errors import ConfigError

Settings = HybridEngineConfig | Mapping[str, Any] | str | os.PathLike[str] | None


def read(settings: Settings) -> HybridEngineConfig | None:
    """The engine's, from DeepSpeed's. ConfigError for what cannot be read."""
    if settings is None or isinstance(settings, HybridEngineConfig):
        return settings
    if not isinstance(settings, Mapping):
        try:
            settings = json.loads(Path(settings).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"DeepSpeed's configuration cannot be read: {error}") from error
    if not isinstance(settings, Mapping):
        raise ConfigError(f"DeepSpeed's configuration must be a dict; found {settings!r:.80}")
    return HybridEngineConfig.from_deepspeed(settings)


def group_of(mpu: Any) -> dist.ProcessGroup | None:
    """Which ranks share a stream, by either of Megatron's names; None without an mpu."""
    names = ("get_tensor_model_parallel_group", "get_model_parallel_group")
    for name in names:
        if hasattr(mpu, name):
            return getattr(mpu, name)()  # type: ignore[no-any-return]
    if mpu is not None:
        raise ConfigError(f"an mpu has {' or '.join(names)}; this {type(mpu).__name__} has neither")
    return None
