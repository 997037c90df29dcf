"""DeepSpeedHybridEngine: accel.HybridEngine under the names of DeepSpeed's methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from accel.deepspeed.containers import GatheredForward, InferenceContainer, containers
from accel.deepspeed.latency import Latency
from accel.deepspeed.settings import Settings, group_of, read
from accel.deepspeed.transposed import laid_out_by_columns
from accel.engine import HybridEngine, Rollout, hybridize, plan
from accel.engine.generation.request import Drawn
from accel.engine.memory import give_back, is_short
from accel.engine.modules.layer import DecoderLayer
from accel.engine.modules.lora import FusedWeights
from accel.engine.policy import ModelPolicy
from accel.errors import CapacityError, UnsupportedCapability, UnsupportedModelError


class DeepSpeedHybridEngine(HybridEngine):
    """The engine as scripts for DeepSpeed hold it; all of :class:`accel.HybridEngine` besides.

    ``config`` is DeepSpeed's configuration, a dict or a file of JSON, as
    :meth:`HybridEngineConfig.from_deepspeed` reads it, or a HybridEngineConfig; without it
    ``args.deepspeed_config`` is one. ``optimizer`` and ``lr_scheduler`` are PyTorch's. ``mpu`` says
    by ``get_tensor_model_parallel_group()`` or ``get_model_parallel_group()`` which ranks share a
    stream of prompts. What else DeepSpeed's takes is refused by name, unless it is None or False.

    ``module``              the model
    ``inference_policies``  see :meth:`populate_all_inference_policies`
    ``inference_mp_group``  the ranks that draw the same tokens; None: each draws its own
    """

    inference_mp_group: dist.ProcessGroup | None = None

    def __init__(
        self,
        args: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        lr_scheduler: Any = None,
        mpu: Any = None,
        config: Settings = None,
        **unserved: Any,
    ) -> None:
        asked = [n for n, value in unserved.items() if value is not None and value is not False]
        if asked:
            raise UnsupportedCapability(
                f"DeepSpeedHybridEngine does not take {', '.join(asked)}: parameters, data and "
                "process groups are made in PyTorch; possible are optimizer, lr_scheduler, mpu "
                "and config"
            )
        settings = getattr(args, "deepspeed_config", None) if config is None else config
        group, read_config = group_of(mpu), read(settings)
        if read_config is not None and read_config.inference_tp_size > 1 and group is not None:
            read_config = replace(read_config, inference_tp_group=group)
        super().__init__(model, optimizer, read_config, lr_scheduler)
        self.inference_mp_group = group
        self.inference_policies: dict[type, tuple[Any, ModelPolicy]] = {}
        self._containers: list[InferenceContainer] = []
        self._latency = Latency(self._stats)
        if self.plan is not None:
            self.populate_all_inference_policies()
            self._containers = self.create_inference_containers(self.module)

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model

    # -- what serves the model -------------------------------------------------------------

    def create_inference_module(self) -> None:
        """Look at the model again and put every forward in its place, as after an adapter was added
        or a module exchanged: all or nothing, UnsupportedModelError with every reason. The
        constructor has done it once."""
        self.plan = hybridize(self.model, self.config)
        self.populate_all_inference_policies()
        self._containers = self.create_inference_containers(self.module)

    def populate_all_inference_policies(self) -> dict[type, tuple[Any, ModelPolicy]]:
        """Fill ``inference_policies``: for every class of this model's modules that is served, what
        makes its forward, which is :meth:`new_inference_container` for decoder layers, and the
        policy it was read by. Returns the table."""
        found = self._planned()
        assert found.policy is not None
        table: dict[type, tuple[Any, ModelPolicy]] = {}
        for replacement in reversed(found.replacements):  # an inner linear is more than the head
            made = type(replacement.forward)
            maker = self.new_inference_container if made is DecoderLayer else made
            table.setdefault(type(replacement.forward.module), (maker, found.policy))
        self.inference_policies = table
        return table

    def create_inference_containers(
        self, module: nn.Module, layer_id: int = 0
    ) -> list[InferenceContainer]:
        """Containers of the decoder layers inside ``module``, from the one with that number in the
        model on; they hold the forwards that are in place."""
        inside = set(module.modules())
        found = containers(self._planned())
        return [c for c in found if c.module in inside and c.layer_id >= layer_id]

    def new_inference_container(
        self, orig_layer: nn.Module, policy_cls: type[ModelPolicy] | ModelPolicy, layer_id: int
    ) -> InferenceContainer:
        """New forwards for one decoder layer as it is now, not yet in their places: ``install()``
        puts them there. UnsupportedModelError if the model has another policy, or another layer of
        that number."""
        fresh = plan(self.model, self.config)
        found = containers(fresh)
        wanted = policy_cls if isinstance(policy_cls, type) else type(policy_cls)
        if not isinstance(fresh.policy, wanted):
            raise UnsupportedModelError(
                f"{type(fresh.model).__name__} is read by {type(fresh.policy).__name__}, not by "
                f"{wanted.__name__}"
            )
        if not 0 <= layer_id < len(found) or found[layer_id].module is not orig_layer:
            raise UnsupportedModelError(
                f"this {type(orig_layer).__name__} is not the model's decoder layer {layer_id} of "
                f"{len(found)}"
            )
        return found[layer_id]

    def convert_to_linear_transposed(self, model: nn.Module) -> list[str]:
        """Lay the weights of ``model``'s linear modules out by columns, ``[in, out]`` in memory;
        returns the paths of those that were not yet.

        Shapes, names, parameters and results stay what they are, bit for bit where the kernels are
        ours; some kernels are faster for it. Left alone are a weight that another module shares,
        such as a tied head's, and one that is sharded. Before DDP, which has buckets of its own.
        """
        return laid_out_by_columns(model)

    def _zero3_forward(self, layer_id: int) -> GatheredForward:
        """The forward of a decoder layer that first brings back parameters whose values lie
        elsewhere, as :func:`accel.layers.gathered` knows how; ``install()`` puts it in its place.
        Not needed where hooks do that, as those of ``fully_shard`` and DeepSpeed's ZeRO-3."""
        return GatheredForward(self._containers[layer_id].module, self._stats)

    # -- LoRA ------------------------------------------------------------------------------

    @property
    def is_lora_fused(self) -> bool:
        """True from :meth:`fuse_lora_weight` until it is undone."""
        return self._generate().fused is not None

    def fuse_lora_weight(self) -> None:
        """Have rollouts read weights with their LoRA adapters added, from now on.

        They are made when a rollout first needs them and lie beside the parameters, which are never
        written to; training and ``logprobs`` go on with adapters on the fly, so that nothing counts
        twice. Called again, or after ``step()``, they are made anew. UnsupportedCapability while
        ``exact``, since a fused weight is rounded once more than what trains.
        """
        if self.config.exact:
            raise UnsupportedCapability(
                "fuse_lora_weight: an exact engine adds LoRA adapters on the fly, as a fused "
                "weight is rounded once more than what trains; exact=False permits it"
            )
        self._generate().fused = FusedWeights()

    def unfuse_lora_weight(self) -> None:
        """Drop what :meth:`fuse_lora_weight` led to. No weight is restored, as none was changed."""
        self._generate().fused = None

    def unfuse_lora_weight_non_pinned(self) -> None:
        """The same: weights that are gathered layer by layer are fused beside their parameters
        too, so that what a gathered block leaves behind does not matter."""
        self.unfuse_lora_weight()

    # -- rollouts --------------------------------------------------------------------------

    def generate(self, *inputs: Any, **kwargs: Any) -> Tensor | Rollout:
        """As :meth:`accel.HybridEngine.generate`. Without a ``seed`` the ranks that share a stream
        of prompts (``inference_mp_group``) get one that the first of them has made, and streams
        different ones.

        A random number is a function of seed, prompt and position: ranks need agree on nothing
        else, and torch's generators are neither read nor set alike. All ranks of the group must
        call it, with the same prompts in any order.

        With ``inference_tp_size`` its ranks, ``mpu``'s group or as many consecutive ones, generate
        together and each has prompts of its own: they agree on the seed themselves.

        What ``fallback`` hands to transformers draws by torch's own generator, on every rank for
        itself.
        """
        if kwargs.get("seed") is None and self.config.inference_tp_size == 1:
            kwargs["seed"] = Drawn(self._seed_of_the_stream())
        found: Any = super().generate(*inputs, **kwargs)
        self._latency.samples += len(getattr(found, "sequences", found))
        return found  # type: ignore[no-any-return]

    def retake_inference_cache(self) -> None:
        """Make room for the keys and values of a rollout as large as the last, ahead of the next:
        where ``release_inference_cache`` gave it back. If memory is short, once more after garbage
        was collected; then CapacityError."""
        cache = self._generate().cache
        try:
            cache.retake()
            return
        except (RuntimeError, MemoryError) as error:
            if not is_short(error):
                raise
        give_back(cache, next(self.model.parameters()).device)
        try:
            cache.retake()
        except (RuntimeError, MemoryError) as error:
            raise CapacityError(
                f"the KV cache of the last rollout cannot be had again: {error}; free memory, or "
                "set kv_cache_bytes, and rollouts are made in several waves"
            ) from error

    def _seed_of_the_stream(self) -> int:
        seed, group = self._generate().new_seed(), self.inference_mp_group
        if not (dist.is_available() and dist.is_initialized()):
            return seed
        first = dist.get_rank() if group is None else dist.get_global_rank(group, 0)
        drawn = [(seed + first) % 2**63]
        if group is not None:
            dist.broadcast_object_list(drawn, group=group, group_src=0)
        return drawn[0]

    # -- training --------------------------------------------------------------------------

    def eval(self) -> DeepSpeedHybridEngine:
        """Set the evaluation mode; one iteration ends here, and the next begins (:meth:`latency`).
        Forwards are not exchanged: one serves both modes."""
        self._latency.turn()
        super().eval()
        return self

    def train(self, mode: bool = True) -> DeepSpeedHybridEngine:
        """Set the model's training mode. ``train(False)`` sets the other one, and ends nothing."""
        super().train(mode)
        return self

    def step(self, lr_kwargs: Mapping[str, Any] | None = None) -> None:
        """As :meth:`accel.HybridEngine.step`; then fused LoRA weights are made anew by the next
        rollout, since adapters have changed."""
        super().step(lr_kwargs)
        model = None if self.plan is None else self.plan.model
        fused = getattr(vars(model).get("generate"), "fused", None) if model is not None else None
        if fused is not None:
            fused.clear()

    def latency(self) -> dict[str, float]:
        """Where the time of the last iteration went, from one ``eval()`` to the next; empty before
        one has ended. In seconds, the device synchronised: ``e2e``, of which ``generate``,
        ``training`` (forward, backward, step) and ``others``; ``gather``, which is part of them.
        ``samples`` answers were made by this process; ``samples_per_second`` and
        ``average_samples_per_second`` over all iterations, if there were any."""
        return self._latency.found()
