"""HybridEngineConfig: DeepSpeed's ``hybrid_engine`` block, and what it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from accel.errors import ConfigError, UnsupportedCapability
from accel.settings import Fixed, require_known

# Of ``rollout_weights``: bits of a number.
BITS = {"int8": 8, "int4": 4}


@dataclass(unsafe_hash=True)  # nothing writes to it
class HybridEngineConfig(Fixed):
    """Settings of a :class:`accel.HybridEngine`. Bad ones raise ConfigError.

    Under DeepSpeed's names:

    ``enabled``                    False leaves the model to itself: no layer is replaced
    ``max_out_tokens``             most tokens of a sequence, prompt and answer together; None: as
                                   many as the model has positions. DeepSpeed's default is 512
    ``inference_tp_size``          ranks that share a layer when generating, and generate all of
                                   their prompts together: see ``accel.engine.generation.shared``
    ``release_inference_cache``    give the KV cache back after every ``generate``
    ``pin_parameters``             of a model under ``fully_shard``: a rollout gathers everything
                                   at its beginning and keeps it to its end, where there is room;
                                   see ``gather_bytes``. False: never
    ``tp_gather_partition_size``   of such a model: layers that are gathered at a time where all are
                                   not, if there is room; else it is one and the next
    ``enable_cuda_graph``          replay a decode step as a graph. None: where the device has
                                   graphs and nothing watches the model; True refuses a device
                                   without them. Kernels that read values on the host, as eager
                                   torch's attention does, are always run

    Under the names of DeepSpeed's whole configuration:

    ``gradient_accumulation_steps``  ``backward`` and ``step`` per update of the parameters
    ``gradient_clipping``          total norm the gradients are scaled down to; None: any

    Ours:

    ``master_weights``             the optimizer steps on fp32 copies of 16-bit parameters, which
                                   get the results, rounded; their gradients are added up in fp32,
                                   beside the copies
    ``exact``                      training and generation agree bitwise, or the engine refuses;
                                   False permits implementations whose rows depend on their company
    ``check_exact``                every ``generate`` scores its answers once more, as ``logprobs``
                                   does and at its cost, one forward (or one per
                                   ``micro_batch_size`` rows), and raises ExactnessError if a bit
                                   differs. Only while ``exact``
    ``fuse_lora``                  rollouts read weights with their LoRA adapters added, which are
                                   made at their beginning and lie beside the parameters. Not while
                                   ``exact``: what they hold is rounded once more
    ``rollout_weights``            "int8" or "int4": rollouts multiply by quantised copies of the
                                   layers' weights, of 8 bits with a scale a row or of 4 with one
                                   for up to 64 columns, and the head's of 8. They are made anew at
                                   a rollout's beginning and lie beside the parameters. Not while
                                   ``exact``: values are not training's, but those that
                                   ``logprobs(weights="rollout")`` gives, bitwise. None: parameters
    ``kv_cache_bytes``             most bytes the KV cache may take; what it has no room for is made
                                   in several waves. None: no limit
    ``inference_tp_group``         the ranks of ``inference_tp_size``: a process group, or a mesh of
                                   one dimension. None: as many consecutive ones, as in DeepSpeed
    ``inference_tp_sums``          they split the projections back to the hidden size over their
                                   input, and add up: two collectives a layer in place of four. Not
                                   while ``exact``: the sums' order is the communication's
    ``gather_bytes``               most bytes that gathered parameters of a sharded model may take
                                   on a rank, beside its shard. None: half of what is free
    ``shard``                      the engine shards the model itself, by ``fully_shard`` over this
                                   DeviceMesh, or (True) over all processes. The optimizer, which
                                   must not have stepped, gets the new parameters. None: it does not
    ``micro_batch_size``           rows per forward in ``logprobs``; None: all at once
    ``on_stats``                   called with ``(phase, seconds)`` whenever a phase ends
    """

    enabled: bool = True
    max_out_tokens: int | None = None
    inference_tp_size: int = 1
    release_inference_cache: bool = False
    pin_parameters: bool = True
    tp_gather_partition_size: int = 8
    enable_cuda_graph: bool | None = None
    gradient_accumulation_steps: int = 1
    gradient_clipping: float | None = None
    master_weights: bool = False
    exact: bool = True
    check_exact: bool = False
    fuse_lora: bool = False
    rollout_weights: str | None = None
    kv_cache_bytes: int | None = None
    inference_tp_group: Any = None
    inference_tp_sums: bool = False
    gather_bytes: int | None = None
    shard: Any = None
    micro_batch_size: int | None = None
    on_stats: Callable[[str, float], None] | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(setting.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{setting.name} must be True or False, not {value!r}")
        for name in (
            "max_out_tokens", "kv_cache_bytes", "gather_bytes", "micro_batch_size",
        ):  # fmt: skip
            _require_positive(name, getattr(self, name), optional=True)
        if self.shard is not None and self.shard is not True and not hasattr(self.shard, "ndim"):
            raise ConfigError(
                f"shard must be a DeviceMesh, True for all processes, or None; found {self.shard!r}"
            )
        if self.shard is not None and not self.enabled:
            raise ConfigError(
                "shard asks the engine to shard the model, and enabled=False leaves the model to "
                "itself; call torch's fully_shard on it, or set enabled=True, or leave shard out"
            )
        for name in (
            "inference_tp_size", "tp_gather_partition_size", "gradient_accumulation_steps",
        ):  # fmt: skip
            _require_positive(name, getattr(self, name))
        norm = self.gradient_clipping
        real = isinstance(norm, (int, float)) and not isinstance(norm, bool)
        if norm is not None and not (real and 0 < norm < math.inf):
            raise ConfigError(f"gradient_clipping must be a positive norm or None, not {norm!r}")
        self._require_parallel()
        if self.fuse_lora and self.exact:
            raise ConfigError(
                "fuse_lora=True adds LoRA adapters to rounded weights, so that a rollout's values "
                "are not training's; exact=True refuses it. Set exact=False to permit it, or leave "
                "adapters on the fly (fuse_lora=False)"
            )
        if self.rollout_weights not in (None, *BITS):
            raise ConfigError(
                f"rollout_weights must be {' or '.join(map(repr, BITS))}, or None for the "
                f"parameters; found {self.rollout_weights!r}"
            )
        if self.rollout_weights and self.exact:
            raise ConfigError(
                f"rollout_weights={self.rollout_weights!r} has rollouts read quantised weights, so "
                "that their values are not training's; exact=True refuses it. Set exact=False to "
                "permit it, or leave rollouts the parameters (rollout_weights=None)"
            )
        if self.check_exact and not self.exact:
            raise ConfigError(
                "check_exact=True demands that generate and logprobs agree bit for bit, which "
                "exact=False gives up; set exact=True, or leave check_exact"
            )
        if self.enable_cuda_graph not in (None, True, False):
            raise ConfigError(
                f"enable_cuda_graph must be True, False or None, not {self.enable_cuda_graph!r}"
            )

    def __deepcopy__(self, memo: object) -> HybridEngineConfig:
        return self  # nothing writes to it, and process groups have no copies

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "inference_tp_group": None}  # another process has other groups

    def _require_parallel(self) -> None:
        size, asked = self.inference_tp_size, f"inference_tp_size={self.inference_tp_size}"
        if self.inference_tp_sums and self.exact:
            raise ConfigError(
                "inference_tp_sums=True adds partial products up across ranks, so that a rollout's "
                "values are not training's; exact=True refuses it. Set exact=False to permit it, "
                "or leave products whole (inference_tp_sums=False)"
            )
        if size == 1 and (self.inference_tp_sums or self.inference_tp_group is not None):
            raise ConfigError(
                "inference_tp_sums and inference_tp_group speak of the ranks of inference_tp_size, "
                "which is 1; set it, or leave them"
            )
        if size > 1 and self.rollout_weights is not None:
            raise UnsupportedCapability(
                f"{asked} beside rollout_weights={self.rollout_weights!r}: quantised copies are "
                "not split over ranks so far; possible is either alone"
            )
        if size > 1 and self.enable_cuda_graph:
            raise UnsupportedCapability(
                f"{asked} beside enable_cuda_graph=True: a step in which ranks speak to each other "
                "is not recorded so far; leave enable_cuda_graph None or False"
            )

    @property
    def exact_rollouts(self) -> bool:
        """Whether a rollout's values are bitwise those that scoring it with its weights gives."""
        return self.exact or self.rollout_weights is not None

    def without_effect(self) -> list[str]:
        """Settings that speak of sharded parameters, where they are not their defaults."""
        names = ("pin_parameters", "tp_gather_partition_size", "gather_bytes")
        return [name for name in names if getattr(self, name) != getattr(type(self), name)]

    @classmethod
    def of(cls, config: HybridEngineConfig | Mapping[str, Any] | None) -> HybridEngineConfig:
        """A configuration from what may stand for one: itself, a dict, or None for the defaults."""
        if isinstance(config, Mapping):
            return cls.from_dict(config)
        return config or cls()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> HybridEngineConfig:
        """From a dict such as DeepSpeed's ``hybrid_engine`` block; unknown keys are refused."""
        require_known(settings, (field.name for field in fields(cls)))
        return cls(**settings)

    @classmethod
    def from_deepspeed(cls, settings: Mapping[str, Any]) -> HybridEngineConfig:
        """From DeepSpeed's whole configuration: ``hybrid_engine``, ``gradient_accumulation_steps``,
        ``gradient_clipping`` (0 is none there) and ``bf16``, which means master weights.

        Everything else in it is refused by name: optimizer, schedule, batches and sharding are made
        in PyTorch, and given to the engine.
        """
        taken = ("hybrid_engine", "gradient_accumulation_steps", "gradient_clipping", "bf16")
        require_known(settings, taken)
        found = dict(settings)
        block, half = found.pop("hybrid_engine", {}), found.pop("bf16", {})
        require_known(half, ("enabled",))
        clipping = found.pop("gradient_clipping", None) or None
        masters = half.get("enabled", False)
        return cls.from_dict(
            {**block, **found, "gradient_clipping": clipping, "master_weights": masters}
        )


def _require_positive(name: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        none = " or None" if optional else ""
        raise ConfigError(f"{name} must be a positive int{none}, not {value!r}")
