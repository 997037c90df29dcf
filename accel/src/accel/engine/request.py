"""What ``generate`` was asked for, read once and refused by name where it cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.engine.spec import DecoderSpec
from accel.errors import CapacityError, OpArgumentError, UnsupportedCapability

# Fields of transformers' GenerationConfig that are served, or that ask for nothing.
_SERVED = frozenset({
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p",
    "num_return_sequences", "eos_token_id", "pad_token_id", "bos_token_id", "output_logits",
    "return_dict_in_generate", "use_cache", "transformers_version",
})  # fmt: skip
_DEFAULT_NEW_TOKENS = 20  # transformers' default

Scores = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Request:
    """``process(ids, logits)`` is temperature, top-k and top-p by transformers' own processors;
    None if a token is the most likely one. ``eos`` are ids that end an answer, ``pad`` stands for
    no token."""

    max_new_tokens: int
    process: Scores | None
    eos: tuple[int, ...]
    pad: int | None
    samples_each: int
    output_logits: bool
    as_object: bool

    @property
    def filler(self) -> int:
        """What stands behind the end of an answer: the padding, or what ended it."""
        return self.pad if self.pad is not None else self.eos[0] if self.eos else 0

    def prompts(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The prompts' attention mask; where none is given, pad tokens are padding unless they also
        end answers (transformers' rule)."""
        if mask is None:
            mask = torch.ones_like(ids)
            if self.pad is not None and self.pad not in self.eos:
                mask = (ids != self.pad).to(ids.dtype)
        if mask.shape != ids.shape:
            raise OpArgumentError(
                f"attention_mask must be {list(ids.shape)} like input_ids; found {list(mask.shape)}"
            )
        empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
        if empty or not ids.numel():
            raise OpArgumentError(
                f"a prompt needs a token to begin with; empty: {empty or list(ids.shape)}"
            )
        return mask


def read(model: Any, ids: object, config: Any, settings: dict[str, Any]) -> Request:
    """From a GenerationConfig and keyword arguments, merged by the rules of transformers."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        found = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise OpArgumentError(f"input_ids must be whole numbers [batch, length]; found {found}")
    output_logits = settings.pop("output_logits", None)  # which transformers has in objects only
    given = (settings.get("max_length"), getattr(config, "max_length", None))
    total = next(filter(None, given), model.generation_config.max_length)
    merged, unknown = model._prepare_generation_config(config, **settings)
    _refuse_unserved(merged, unknown)
    new_tokens = merged.max_new_tokens
    if new_tokens is None:
        new_tokens = total - ids.shape[1] if total else _DEFAULT_NEW_TOKENS
    if new_tokens < 1:
        raise OpArgumentError(
            f"nothing to generate: {new_tokens} new tokens asked for (prompts of {ids.shape[1]})"
        )
    eos = merged.eos_token_id
    return Request(
        max_new_tokens=new_tokens,
        process=_processors(merged) if merged.do_sample else None,
        eos=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
        pad=merged.pad_token_id,
        samples_each=merged.num_return_sequences,
        output_logits=bool(output_logits or merged.output_logits),
        as_object=bool(merged.return_dict_in_generate or output_logits or merged.output_logits),
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
            "accel.restore(model).generate is transformers' own"
        )


def _processors(config: Any) -> Scores:
    from transformers.generation import logits_process

    found: Any = logits_process.LogitsProcessorList()
    if config.temperature is not None and config.temperature != 1.0:
        found.append(logits_process.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        found.append(logits_process.TopKLogitsWarper(top_k=config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        found.append(logits_process.TopPLogitsWarper(top_p=config.top_p))
    return found  # type: ignore[no-any-return]
