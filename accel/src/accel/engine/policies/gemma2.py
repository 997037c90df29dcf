"""gemma2: norms before and behind both branches, capped scores and logits, every other layer with
a window (Gemma Team 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from accel.engine.policies.llama import LlamaPolicy
from accel.engine.reading import (
    ACTIVATIONS,
    activation_reasons,
    rotary_reasons,
    unserved,
    windows_by_type,
)
from accel.engine.spec import DecoderSpec
from accel.refusal import Refusal


class Gemma2Policy(LlamaPolicy):
    name = "gemma2"
    model = "Gemma2ForCausalLM"
    source = "transformers.models.gemma2.modeling_gemma2"
    small: ClassVar = {"sliding_window": 21, "head_dim": 40, "query_pre_attn_scalar": 30}

    def reasons(self, config: Any) -> list[Refusal]:
        return [
            *rotary_reasons(config),
            *unserved(config, use_bidirectional_attention=None),
            *activation_reasons(config.hidden_activation),
        ]

    def activation(self, config: Any) -> str:
        return ACTIVATIONS[config.hidden_activation]

    def spec(self, config: Any) -> DecoderSpec:
        spec = super().spec(config)
        layer = replace(
            spec.layer,
            attention_out_norm="post_attention_layernorm",
            mlp_norm="pre_feedforward_layernorm",
            mlp_out_norm="post_feedforward_layernorm",
        )
        return replace(
            spec,
            layer=layer,
            scales=(config.query_pre_attn_scalar**-0.5,) * config.num_hidden_layers,
            windows=windows_by_type(config),
            score_softcap=config.attn_logit_softcapping,
            norm_offset=1.0,
            token_scale=config.hidden_size**0.5,
            logit_softcap=config.final_logit_softcapping,
        )


POLICY = Gemma2Policy
