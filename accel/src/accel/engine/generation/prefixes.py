"""Prefixes: of prompts, what the KV cache holds since the last rollout, so that it need not be
computed again.

A token's keys and values depend on the tokens before it and on what :class:`Made` says, and on
nothing else where exact: those of another rollout are, bit for bit, those that this one would make.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from accel.engine.cache import KVCache
from accel.engine.config import HybridEngineConfig
from accel.engine.fingerprint import Fingerprint, fingerprint
from accel.engine.forward import installed
from accel.engine.generation.prompts import Prompts
from accel.engine.generation.rollout import Answers
from accel.engine.modules.lora import LoraLinear
from accel.engine.serving import served
from accel.engine.spec import DecoderSpec
from accel.errors import UnsupportedCapability
from accel.layers.hooks import forward_hooks

# Numbers as bytes that sort as the numbers do.
_SORTED = np.dtype(">i8")


@dataclass(frozen=True, eq=False)
class Made:
    """What keys and values were made by: the model's ``weights``, the ``adapters`` that acted, by
    layer with their scales, ``copies`` of weights that somebody keeps, each as long as it is the
    same, which implementations ``serve``, and the ``hooks`` that modules have."""

    weights: Fingerprint
    adapters: list[list[tuple[str, float]]]
    copies: tuple[object, ...]
    serve: dict[str, str]
    hooks: list[tuple[int, ...]]

    @classmethod
    def by(
        cls, model: nn.Module, spec: DecoderSpec, config: HybridEngineConfig,
        copies: tuple[object, ...],
    ) -> Made:  # fmt: skip
        """As it is now, in the call that is active."""
        found = (installed(module) for module in model.modules())
        layers = [layer for layer in found if isinstance(layer, LoraLinear)]
        acting = [[(a.name, a.scale) for a in layer.acting()] for layer in layers]
        serve, _ = served(model, spec, config, lora=bool(layers))
        return cls(fingerprint(model), acting, copies, serve, forward_hooks(model))

    def differs(self, other: Made) -> str | None:
        """What is not as it was; None if all is."""
        changed = self.weights.differs(other.weights)
        if changed is not None:
            return f"{changed} has changed"
        if self.adapters != other.adapters:
            return "other LoRA adapters act, or with other scales"
        if any(one is not two for one, two in zip(self.copies, other.copies)):
            return "other copies of weights are read"
        if self.serve != other.serve:
            return "other implementations serve"
        return "modules have other hooks" if self.hooks != other.hooks else None


def require_kept(config: HybridEngineConfig, embeds: Tensor | None) -> None:
    """UnsupportedCapability unless prompts are tokens, and the cache outlasts a rollout."""
    if embeds is not None:
        raise UnsupportedCapability(
            "reuse_prefix tells prompts by their tokens; found inputs_embeds, give input_ids"
        )
    if config.release_inference_cache:
        raise UnsupportedCapability(
            "reuse_prefix needs the KV cache of the rollout before, which "
            "release_inference_cache=True gives back after each; set it to False, or generate "
            "inside `with engine.generating():`, which keeps it to its end"
        )


class Prefixes:
    """Those of one rollout, which may be made in several waves, by the same ``made``.

    ``reused``      how many tokens of its prompts were not computed again so far
    ``not_reused``  why none of the rollout before could be; None if that was not so
    """

    def __init__(self, cache: KVCache, prompts: Prompts, made: Made) -> None:
        self.cache = cache
        self.prompts = prompts
        self.made = made
        self.reused = 0
        self.not_reused: str | None = None
        if cache.held is None:
            self.not_reused = (
                "no rollout with reuse_prefix=True came right before, or its cache was given back"
            )
        else:
            self.not_reused = cache.held.made.differs(made)
        if self.not_reused is not None:
            cache.held = None

    def found(self, fed: Sequence[int]) -> list[tuple[int, int]]:
        """Of each prompt, in which row of the cache a sequence begins that has most of its
        beginning in common, and how many tokens: one at least is left to compute."""
        held: Held | None = self.cache.held
        if held is None:
            return []
        found = [held.longest(self.prompts.tokens[row]) for row in fed]
        self.reused += sum(count for _, count in found)
        return found

    def keep(self, rows: Tensor, answers: Answers) -> None:
        """A wave has made these of the answers, which lie in the cache in that order, but for the
        last token of each."""
        counts = answers.counts[rows].sum(1).tolist()
        if not all(counts):  # stopped before the first, and perhaps before prompts were computed
            return
        prompts = (self.prompts.tokens[row] for row in self.prompts.alike[rows].tolist())
        made = zip(prompts, answers.tokens[rows].tolist(), counts)
        held = [prompt + answer[: count - 1] for prompt, answer, count in made]
        self.cache.held = Held(self.made, held, self.cache.capacity)


class Held:
    """Sequences in a cache, by what made them: each with the row where it begins."""

    def __init__(self, made: Made, sequences: Sequence[Sequence[int]], capacity: int) -> None:
        self.made = made
        keyed = (np.array(tokens, _SORTED).tobytes() for tokens in sequences)
        self._sorted = sorted((key, row * capacity) for row, key in enumerate(keyed))

    def longest(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(row, count) of the longest common beginning with one of them, short of all tokens."""
        own = np.array(tokens, _SORTED)
        place = bisect_left(self._sorted, (own.tobytes(), 0))
        # In this order the nearest are the neighbours.
        near = self._sorted[max(place - 1, 0) : place + 1]
        counts = [(_common(own[:-1], np.frombuffer(key, _SORTED)), row) for key, row in near]
        count, row = max(counts, default=(0, 0))
        return row, count


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """How many numbers both begin with."""
    size = min(len(one), len(other))
    apart = np.flatnonzero(one[:size] != other[:size])
    return int(apart[0]) if len(apart) else size
