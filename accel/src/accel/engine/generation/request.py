"""What ``generate`` was asked for, read once and refused by name where it cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accel.engine.call import ACTIVE
from accel.engine.generation.prompts import Prompts, prompts
from accel.engine.spec import DecoderSpec
from accel.errors import CapacityError, OpArgumentError, UnsupportedCapability

# Fields of transformers' GenerationConfig that are served, or that ask for nothing.
_SERVED = frozenset({
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias",
    "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits",
    "num_return_sequences", "eos_token_id", "pad_token_id", "bos_token_id", "output_logits",
    "output_scores", "return_dict_in_generate", "use_cache", "disable_compile",
    "transformers_version",
})  # fmt: skip
_DEFAULT_NEW_TOKENS = 20  # transformers' default

# Objects of the caller's that look at the batch, which may keep something for each of its rows.
_LOOKERS = ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer")


@dataclass(frozen=True)
class Asked:
    """A call of ``generate``: its arguments, none of them read yet."""

    ids: Tensor | None
    mask: Tensor | None
    embeds: Tensor | None
    generation_config: Any
    settings: dict[str, Any]
    seed: int | None
    sample_ids: Sequence[int] | Tensor | None
    return_logprobs: bool
    reuse_prefix: bool
    adapter: str | None
    abort: Any
    fallback: str | None

    def read(self, model: Any, **more: Any) -> Request:
        """See :func:`read`."""
        return read(model, abort=self.abort, **self.given(), **more)

    def given(self) -> dict[str, Any]:
        """What transformers' ``generate`` takes too."""
        return {
            "input_ids": self.ids, "attention_mask": self.mask, "inputs_embeds": self.embeds,
            "generation_config": self.generation_config, **self.settings,
        }  # fmt: skip

    def ours(self) -> list[str]:
        """By name, what only the engine's has."""
        asked = {
            "seed": None if isinstance(self.seed, Drawn) else self.seed,
            "sample_ids": self.sample_ids, "return_logprobs": self.return_logprobs,
            "adapter": None if self.adapter == ACTIVE else str(self.adapter),
            "abort": self.abort, "reuse_prefix": self.reuse_prefix,
        }  # fmt: skip
        return [n for n, value in asked.items() if value is not None and value is not False]


class Drawn(int):
    """A seed that the caller has not chosen: what draws without one may leave it."""


@dataclass(frozen=True)
class Request:
    """``processors`` and ``criteria`` are transformers' own lists; without them a token is taken
    from the logits and ends an answer if it is among ``ends``.

    ``filler``  stands behind the end of an answer: the padding, or what ended it
    ``kept``    what is kept of every step: "scores", "logits"
    ``whole``   objects of the caller's look at the batch: it is neither split nor made smaller
    """

    prompts: Prompts
    max_new_tokens: int
    sampled: bool
    processors: Any
    criteria: Any
    ends: Tensor
    filler: int
    kept: tuple[str, ...] = ()
    as_object: bool = False
    whole: bool = False
    streamer: Any = None
    abort: Callable[[], bool] = field(default=lambda: False)

    @property
    def looks_back(self) -> bool:
        """True if something looks at the tokens before."""
        return bool(self.processors or self.criteria)

    def processed(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The scores to choose from; the logits themselves if nothing changes them."""
        if not self.processors:
            return logits
        # The caller's own may write to what they are given.
        return self.processors(ids, logits.clone() if self.whole else logits)  # type: ignore[no-any-return]

    def ended(self, ids: Tensor, token: Tensor, scores: list[Tensor] | None) -> Tensor | None:
        """Which rows have; None if none can before the last step."""
        found = None
        if len(self.ends):
            found = torch.isin(token, self.ends)
        if self.criteria:
            told = self.criteria(ids, None if scores is None else tuple(scores))
            found = told if found is None else found | told
        return found


def read(
    model: Any,
    *,
    input_ids: Any = None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    generation_config: Any = None,
    abort: Any = None,
    may_be_none: bool = False,
    **settings: Any,
) -> Request:
    """From prompts, a GenerationConfig and keyword arguments, merged by transformers' rules. No
    prompt at all is refused unless there ``may_be_none``."""
    objects = {name: settings.pop(name, None) for name in (*_LOOKERS, "tokenizer")}
    # transformers has these in objects only
    outputs = {name: settings.pop(f"output_{name}", None) for name in ("scores", "logits")}
    given = (settings.get("max_length"), getattr(generation_config, "max_length", None))
    total = next(filter(None, given), model.generation_config.max_length)
    merged, unknown = model._prepare_generation_config(generation_config, **settings)
    _refuse_unserved(merged, unknown)
    eos, pad = merged.eos_token_id, merged.pad_token_id
    eos = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    padding = None if pad in eos else pad  # transformers' rule: an end is not padding
    asked = prompts(
        input_ids, attention_mask, inputs_embeds, merged.num_return_sequences, padding,
        may_be_none,
    )  # fmt: skip
    width = asked.fed.shape[1]
    new_tokens = merged.max_new_tokens
    if new_tokens is None:
        new_tokens = total - width if total else _DEFAULT_NEW_TOKENS
    if new_tokens < 1:
        raise OpArgumentError(
            f"nothing to generate: {new_tokens} new tokens asked for (prompts of {width})"
        )
    criteria = _criteria(model, merged, objects)
    whole = any(objects[name] not in (None, []) for name in _LOOKERS)
    kept = tuple(name for name in outputs if outputs[name] or getattr(merged, f"output_{name}"))
    return Request(
        prompts=asked,
        max_new_tokens=new_tokens,
        sampled=bool(merged.do_sample),
        criteria=criteria,
        processors=_processors(model, merged, objects, asked, new_tokens, whole),
        ends=torch.tensor(eos, dtype=torch.int64, device=asked.fed.device),
        filler=pad if pad is not None else eos[0] if eos else 0,
        kept=kept,
        as_object=bool(merged.return_dict_in_generate or kept),
        whole=whole,
        streamer=objects["streamer"],
        abort=getattr(abort, "is_set", abort) or (lambda: False),
    )


def require_room(spec: DecoderSpec, longest: int, new_tokens: int, limit: int | None) -> None:
    """CapacityError unless prompt and answer have positions, and stay within ``limit`` tokens."""
    needed = longest + new_tokens
    asked = f"a prompt of {longest} tokens and {new_tokens} new ones need {needed} positions"
    if needed > spec.max_positions:
        raise CapacityError(f"{asked}; the model has {spec.max_positions}")
    if limit is not None and needed > limit:
        raise CapacityError(f"{asked}; max_out_tokens permits {limit}")


def _refuse_unserved(config: Any, unknown: dict[str, Any]) -> None:
    neutral = {**type(config)().to_dict(), **config._get_default_generation_params()}
    asked = [
        name
        for name, value in config.to_dict().items()
        if name not in _SERVED
        and not name.startswith("_")
        and value not in (None, False)
        and value != neutral.get(name)
    ]
    asked += [n for n, value in unknown.items() if value is not None and value is not False]
    if asked:
        raise UnsupportedCapability(
            f"generate does not serve {', '.join(sorted(asked))} so far; "
            'fallback="transformers" hands such a call to the model\'s own generate'
        )


def _criteria(model: Any, config: Any, objects: dict[str, Any]) -> Any:
    """transformers' list, but for the length and the ends, which the loop knows of."""
    config._eos_token_tensor = config.max_length = None
    return model._get_stopping_criteria(
        config, list(objects["stopping_criteria"] or ()), objects["tokenizer"]
    )


def _processors(
    model: Any, config: Any, objects: dict[str, Any], asked: Prompts, new_tokens: int, whole: bool
) -> Any:
    """transformers' list. It counts columns of the ids, in which embeddings have none."""
    seen, fed = asked.ids.shape[1], asked.fed.shape[1]
    config.max_length = seen + new_tokens
    config.min_length = max(config.min_length - (fed - seen), 0)
    if config.min_new_tokens is not None:  # which comes before
        config.min_length = 0
    model._prepare_special_tokens(config, True, device=asked.fed.device)
    # Elsewhere padding is told by what stands for it.
    padding = {"attention_mask": asked.aligned()[1]} if whole and seen else {}
    return model._get_logits_processor(
        config,
        input_ids_seq_length=seen,
        prefix_allowed_tokens_fn=objects["prefix_allowed_tokens_fn"],
        logits_processor=list(objects["logits_processor"] or ()),
        device=asked.fed.device,
        model_kwargs=padding,
    )
