"""granite: llama whose embeddings, scores, branches and logits have multipliers (2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accel.engine.policies.llama import LlamaPolicy
from accel.engine.spec import DecoderSpec


class GranitePolicy(LlamaPolicy):
    name = "granite"
    model = "GraniteForCausalLM"
    source = "transformers.models.granite.modeling_granite"

    def spec(self, config: Any) -> DecoderSpec:
        spec = super().spec(config)
        return replace(
            spec,
            layer=replace(spec.layer, scale=config.residual_multiplier),
            scales=(config.attention_multiplier,) * config.num_hidden_layers,
            embedding_scale=config.embedding_multiplier,
            logit_scale=1 / config.logits_scaling,
        )


POLICY = GranitePolicy
