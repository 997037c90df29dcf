"""llama: RMSNorm, rotary positions, grouped heads, gated MLP (Touvron et al. 2023)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons, rotary_reasons, unserved
from accel.engine.spec import DecoderSpec, LayerSpec
from accel.refusal import Refusal


class LlamaPolicy(ModelPolicy):
    name = "llama"
    model = "LlamaForCausalLM"
    source = "transformers.models.llama.modeling_llama"

    def reasons(self, config: Any) -> list[Refusal]:
        return [
            *rotary_reasons(config),
            *unserved(config, pretraining_tp=1),
            *activation_reasons(config.hidden_act),
        ]

    def activation(self, config: Any) -> str:
        """As accel.contracts.activation names it."""
        return ACTIVATIONS[config.hidden_act]

    def spec(self, config: Any) -> DecoderSpec:
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        return DecoderSpec(
            decoder="model",
            tokens="model.embed_tokens",
            rotary="model.rotary_emb",
            layers="model.layers",
            final_norm="model.norm",
            head="lm_head",
            layer=LayerSpec(
                attention="self_attn",
                attention_norm="input_layernorm",
                qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                out="self_attn.o_proj",
                mlp="mlp",
                mlp_norm="post_attention_layernorm",
                gate="mlp.gate_proj",
                up="mlp.up_proj",
                down="mlp.down_proj",
                act="mlp.act_fn",
            ),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            max_positions=config.max_position_embeddings,
            norm="rms_norm",
            norm_eps=config.rms_norm_eps,
            act=self.activation(config),
            scales=(head_dim**-0.5,) * config.num_hidden_layers,
            probability_dropout=config.attention_dropout,
        )


POLICY = LlamaPolicy
