"""olmo2: llama with norms behind its branches, and on queries and keys as a whole (2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accel.engine.policies.llama import LlamaPolicy
from accel.engine.spec import DecoderSpec


class Olmo2Policy(LlamaPolicy):
    name = "olmo2"
    model = "Olmo2ForCausalLM"
    source = "transformers.models.olmo2.modeling_olmo2"

    def spec(self, config: Any) -> DecoderSpec:
        spec = super().spec(config)
        layer = replace(
            spec.layer,
            attention_norm=None,
            attention_out_norm="post_attention_layernorm",
            mlp_norm=None,
            mlp_out_norm="post_feedforward_layernorm",
            q_norm="self_attn.q_norm",
            k_norm="self_attn.k_norm",
            whole_qk_norms=True,
        )
        return replace(spec, layer=layer)


POLICY = Olmo2Policy
