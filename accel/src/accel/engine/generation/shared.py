"""SharedGenerate: ranks that share a model's layers make all of their answers together.

As in DeepSpeed each rank has prompts of its own. They are put below each other, in the order of the
ranks, padded to one width, and answered by one rollout that all of them run; each gets its rows
back, cut to what it would have alone. So a group's calls are one call of one process with all of
its prompts, and that says what a row's random numbers are: one seed, and among the group's prompts
one that stands there twice has two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel.engine.call import ACTIVE
from accel.engine.config import HybridEngineConfig
from accel.engine.forward import installed
from accel.engine.generation import request as requests
from accel.engine.generation import sampling
from accel.engine.generation.company import Company
from accel.engine.generation.generate import Generate
from accel.engine.generation.offers import Offer, agreed, joined, own_rows, samples
from accel.engine.modules.lora import LoraLinear, require_adapter
from accel.engine.parallel.ranks import Ranks
from accel.engine.parallel.share import Share
from accel.engine.roles import require_current
from accel.engine.spec import DecoderSpec
from accel.errors import AccelError, RankError, UnsupportedCapability
from accel.host import HOST
from accel.layers.hooks import has_hooks

# What a call may not have, and why.
_UNSHARED = {
    "inputs_embeds": "prompts are told to other ranks by their tokens",
    "reuse_prefix": "what caches hold is not agreed on between ranks",
    "fallback": "others would wait for a rank that goes its own way",
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
    UnsupportedCapability for what is not shared so far: embeddings, ``reuse_prefix``, ``fallback``,
    ``max_time``, and the caller's own processors, criteria and streamers.
    """

    def __init__(self, model: nn.Module, spec: DecoderSpec, config: HybridEngineConfig) -> None:
        # What passes between ranks is no part of a graph.
        super().__init__(model, spec, replace(config, enable_cuda_graph=False))
        self.ranks = Ranks(config.inference_tp_size, config.inference_tp_group)
        self.share = Share(spec, self.ranks, sums=config.inference_tp_sums)
        _ = self.ranks.group  # made now, on all processes

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        *,
        inputs: Tensor | None = None,
        seed: int | None = None,
        sample_ids: Sequence[int] | Tensor | None = None,
        return_logprobs: bool = False,
        adapter: str | None = ACTIVE,
        abort: Any = None,
        **settings: Any,
    ) -> Any:
        if attention_mask is not None and not isinstance(attention_mask, Tensor):
            generation_config, attention_mask = attention_mask, None
        ids = input_ids if inputs is None else inputs
        company = Company(self.model)  # parameters may be shared with other groups
        mine: Offer | None = None
        try:
            mine = self._offer(
                ids, attention_mask, generation_config, seed, sample_ids, adapter, abort, settings
            )
        except Exception as error:
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
        stop = getattr(abort, "is_set", abort) or (lambda: False)
        device = next(self.model.parameters()).device
        if any(offer.stops for offer in offers):
            settings["abort"] = lambda: self.ranks.any(bool(stop()), device)
        every, real = joined(offers)
        joint = super().__call__(
            every.to(device), real.to(device), generation_config, seed=offers[0].seed,
            sample_ids=samples(offers), return_logprobs=True, adapter=adapter, **settings,
        )  # fmt: skip
        rank = self.ranks.rank
        own = own_rows(joint, offers, rank, mine.ids if ids is None else ids)
        self.made = int(own.response_mask.sum())
        wanted = return_logprobs or any(offer.as_object for offer in offers)
        return own if wanted else own.sequences

    def new_seed(self) -> int:
        """As in any engine, and another one in another group."""
        seed = super().new_seed()
        if not self.ranks.stream:
            return seed
        made = np.random.SeedSequence((seed, self.ranks.stream))
        return int(made.generate_state(1, np.uint64)[0] >> 1)

    def _offer(
        self, ids: Tensor | None, mask: Tensor | None, generation_config: Any, seed: int | None,
        sample_ids: Sequence[int] | Tensor | None, adapter: str | None, abort: Any,
        settings: dict[str, Any],
    ) -> Offer:  # fmt: skip
        """What this rank brings; raises what a call of it alone would."""
        require_current(self.model, self.spec)
        require_adapter(self.model, adapter)
        with self.cache.used():
            pass
        configs = [generation_config, self.model.generation_config]
        for name, why in _UNSHARED.items():
            given = settings.get(name), *(getattr(config, name, None) for config in configs)
            if any(map(_asks, given)):
                raise UnsupportedCapability(
                    f"generate with inference_tp_size={self.ranks.degree} does not serve {name}: "
                    f"{why}; leave it out, or set inference_tp_size=1"
                )
        as_object, numbers = False, None
        if ids is None or (ids.dim() == 2 and not len(ids)):
            ids = torch.zeros(0, 0, dtype=torch.int64) if ids is None else ids
            mask = torch.zeros_like(ids)
        else:
            request = requests.read(
                self.model, input_ids=ids, attention_mask=mask,
                generation_config=generation_config, **settings,
            )  # fmt: skip
            ids, mask, as_object = request.prompts.ids, request.prompts.mask, request.as_object
            if sample_ids is not None:
                numbers = [int(sample) for sample in sample_ids]
                sampling.samples_of(request.prompts.contents(), numbers)  # looks at how many
        return Offer(
            ids.to(HOST), (mask != 0).to(HOST, torch.int64), seed if seed is not None else
            self.new_seed(), seed is not None, numbers, abort is not None, as_object,
            self._asked(generation_config, adapter, settings),
        )  # fmt: skip

    def _asked(
        self, generation_config: Any, adapter: str | None, settings: dict[str, Any]
    ) -> dict[str, str]:
        """All that decides what ranks do, as text."""
        found = {name: _told(value) for name, value in settings.items() if value is not None}
        configs: list[tuple[str, Any]] = [
            ("generation_config", generation_config),
            ("the model's generation_config", self.model.generation_config),
        ]
        for name, config in configs:
            if config is not None:
                found |= {f"{name}.{k}": _told(v) for k, v in config.to_dict().items()}
        found |= {name: repr(getattr(self.config, name)) for name in _ALIKE}
        found["adapter"] = repr(adapter)
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
