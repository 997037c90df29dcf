"""SharedGenerate: ranks that share a model's layers make all of their answers together.

As in DeepSpeed each rank has prompts of its own. They are put below each other, in the order of the
ranks, padded to one width, and answered by one rollout that all of them run; each gets its rows
back, cut to what it would have alone. So a group's calls are one call of one process with all of
its prompts, and that says what a row's random numbers are: one seed, and among the group's prompts
one that stands there twice has two samples.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel.engine.config import HybridEngineConfig
from accel.engine.forward import installed
from accel.engine.generation import sampling
from accel.engine.generation.company import Company
from accel.engine.generation.fallback import require_known, require_transferable
from accel.engine.generation.generate import Generate
from accel.engine.generation.offers import Offer, agreed, joined, own_rows, samples
from accel.engine.generation.request import Asked
from accel.engine.modules.lora import LoraLinear, require_adapter
from accel.engine.parallel.ranks import Ranks
from accel.engine.parallel.share import Share
from accel.engine.roles import require_current
from accel.engine.sharding import Outer
from accel.engine.spec import DecoderSpec
from accel.errors import AccelError, RankError, UnsupportedCapability
from accel.host import HOST
from accel.layers.hooks import has_hooks

# What a call may not have, and why.
_UNSHARED = {
    "inputs_embeds": "prompts are told to other ranks by their tokens",
    "reuse_prefix": "what caches hold is not agreed on between ranks",
    "max_time": "clocks differ between ranks",
    **dict.fromkeys(
        ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer"),
        "it would see other ranks' rows, and each rank's must decide alike",
    ),
}
# Of the configuration, what must be alike for ranks to do the same.
_ALIKE = ("exact", "check_exact", "fuse_lora", "kv_cache_bytes", "max_out_tokens",
          "micro_batch_size", "inference_tp_sums")  # fmt: skip


class SharedGenerate(Generate):
    """As :class:`Generate`, by all ranks of a tensor-parallel group at once, which must all call
    it, with the same settings; one without prompts gives ids ``[0, P]``, or none.

    ``seed`` is the group's: the same on every rank, or the first rank's own where none gives one,
    which differs from group to group. ``sample_ids`` are given on all ranks with prompts or on
    none. ``abort`` on any rank stops all. ``max_length`` counts columns of the common width.

    Before anything is computed ranks tell each other what they were asked for. RankError, on all of
    them, where that differs, or where one cannot take part (that one raises what it found itself);
    and on the others, after the process group's timeout, where one raises in the middle or dies.
    UnsupportedCapability for what is not shared so far: embeddings, ``reuse_prefix``, ``max_time``,
    and the caller's own processors, criteria and streamers. ``fallback`` is given on all ranks or
    on none: if one of them is refused, each has its own prompts answered by transformers, alone.
    """

    def __init__(
        self, model: nn.Module, spec: DecoderSpec, config: HybridEngineConfig, outer: Outer
    ) -> None:
        # What passes between ranks is no part of a graph.
        super().__init__(model, spec, replace(config, enable_cuda_graph=False), outer)
        self.ranks = Ranks(config.inference_tp_size, config.inference_tp_group)
        self.share = Share(spec, self.ranks, sums=config.inference_tp_sums)
        _ = self.ranks.group  # made now, on all processes

    def _answer(self, asked: Asked) -> Any:
        company = Company(self.model)  # parameters may be shared with other groups
        try:
            mine = self._offer(asked)
        except BaseException as error:  # Ctrl-C too: the others wait for this rank's
            with suppress(RankError):  # what has happened here is what counts
                self.ranks.exchange(f"{type(error).__name__}: {error}")
                company.tell()
            raise
        told = self.ranks.exchange(mine)
        try:
            offers = agreed(told)
        except AccelError:
            company.tell()
            raise
        refused = [offer.refused for offer in offers if offer.refused]
        if refused:
            self.made = self.reused = 0
            if asked.ids is None and asked.embeds is None:
                asked = replace(asked, ids=mine.ids)  # none
            with company.telling():
                reason = mine.refused or f"others of the group have: {refused[0]}"
                return self._hand_over(asked, UnsupportedCapability(reason), company)
        stop = getattr(asked.abort, "is_set", asked.abort) or (lambda: False)
        device = self._device

        def some_stop() -> bool:
            return self.ranks.any(bool(stop()), device)

        every, real = joined(offers)
        joint = super()._answer(replace(
            asked, ids=every.to(device), mask=real.to(device), seed=offers[0].seed,
            sample_ids=samples(offers), return_logprobs=True, fallback=None,
            abort=some_stop if any(offer.stops for offer in offers) else None,
        ))  # fmt: skip
        ids = mine.ids if asked.ids is None else asked.ids
        own = own_rows(joint, offers, self.ranks.rank, ids)
        self.made = int(own.response_mask.sum())
        wanted = asked.return_logprobs or any(offer.as_object for offer in offers)
        return own if wanted else own.sequences

    def new_seed(self) -> int:
        """As in any engine, and another one in another group."""
        seed = super().new_seed()
        if not self.ranks.stream:
            return seed
        made = np.random.SeedSequence((seed, self.ranks.stream))
        return int(made.generate_state(1, np.uint64)[0] >> 1)

    def _offer(self, asked: Asked) -> Offer:
        """What this rank brings; raises what a call of it alone would."""
        require_current(self.model, self.spec)
        require_adapter(self.model, asked.adapter)
        require_known(asked.fallback)
        refused, ids, mask, as_object, numbers = None, asked.ids, asked.mask, False, None
        try:
            self._require_shared(asked)
            if ids is None or (ids.dim() == 2 and not len(ids)):
                ids = torch.zeros(0, 0, dtype=torch.int64) if ids is None else ids
                mask = torch.zeros_like(ids)
            else:
                request = asked.read(self.model)
                ids, mask, as_object = request.prompts.ids, request.prompts.mask, request.as_object
                if asked.sample_ids is not None:
                    numbers = [int(sample) for sample in asked.sample_ids]
                    sampling.samples_of(request.prompts.contents(), numbers)  # looks at how many
        except UnsupportedCapability as error:
            require_transferable(asked, error)
            refused, ids = str(error), torch.zeros(0, 0, dtype=torch.int64)
            mask = ids
        seed, chosen = asked.seed, asked.seed is not None
        return Offer(
            ids.to(HOST), (mask != 0).to(HOST, torch.int64), self.new_seed() if seed is None else
            seed, chosen, numbers, asked.abort is not None, as_object,
            self._asked(asked), refused,
        )  # fmt: skip

    def _require_shared(self, asked: Asked) -> None:
        """UnsupportedCapability for what is not, by name."""
        given = {**asked.given(), "reuse_prefix": asked.reuse_prefix}
        configs = [asked.generation_config, self.model.generation_config]
        for name, why in _UNSHARED.items():
            if any(map(_asks, (given.get(name), *(getattr(c, name, None) for c in configs)))):
                raise UnsupportedCapability(
                    f"generate with inference_tp_size={self.ranks.degree} does not serve {name}: "
                    f"{why}; leave it out, or set inference_tp_size=1"
                )

    def _asked(self, asked: Asked) -> dict[str, str]:
        """All that decides what ranks do, as text."""
        found = {name: _told(v) for name, v in asked.settings.items() if v is not None}
        configs: list[tuple[str, Any]] = [
            ("generation_config", asked.generation_config),
            ("the model's generation_config", self.model.generation_config),
        ]
        for name, config in configs:
            if config is not None:
                found |= {f"{name}.{k}": _told(v) for k, v in config.to_dict().items()}
        found |= {name: repr(getattr(self.config, name)) for name in _ALIKE}
        found["adapter"], found["fallback"] = repr(asked.adapter), repr(asked.fallback)
        forwards = ((path, installed(module)) for path, module in self.model.named_modules())
        found["LoRA layers and their adapters"] = repr([
            (path, sorted(forward.names()), [(a.name, a.scale) for a in forward.acting()])
            for path, forward in forwards
            if isinstance(forward, LoraLinear)
        ])  # fmt: skip
        if self.config.inference_tp_sums:  # elsewhere a hook changes nothing of what passes
            watched = [path for path, m in self.model.named_modules() if has_hooks(m)]
            found["modules with hooks"] = repr(watched)
        return found


def _asks(value: Any) -> bool:
    return isinstance(value, Tensor) or value not in (None, False, [])


def _told(value: Any) -> str:
    """A setting as text; of an object without one of its own, what it is."""
    if isinstance(value, Tensor):
        return repr(value.tolist())
    return repr(value) if "__repr__" in vars(type(value)) else type(value).__name__
