"""phi3: llama with one projection for q, k and v and one for gate and up (Abdin et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from accel.engine.policies.llama import LlamaPolicy
from accel.engine.spec import DecoderSpec


class Phi3Policy(LlamaPolicy):
    name = "phi3"
    model = "Phi3ForCausalLM"
    source = "transformers.models.phi3.modeling_phi3"
    small: ClassVar = {"sliding_window": 21}

    def spec(self, config: Any) -> DecoderSpec:
        spec = super().spec(config)
        layer = replace(
            spec.layer,
            qkv=("self_attn.qkv_proj",),
            gate="mlp.gate_up_proj",
            up="mlp.gate_up_proj",
            act="mlp.activation_fn",
            attention_dropout="resid_attn_dropout",
            mlp_dropout="resid_mlp_dropout",
        )
        windows = (config.sliding_window,) * config.num_hidden_layers
        return replace(spec, layer=layer, windows=windows)


POLICY = Phi3Policy
