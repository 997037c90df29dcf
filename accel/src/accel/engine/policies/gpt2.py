"""gpt2: LayerNorm, learned positions, one projection for q, k and v (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons, unserved
from accel.engine.spec import DecoderSpec, LayerSpec
from accel.refusal import Refusal


class Gpt2Policy(ModelPolicy):
    name = "gpt2"
    model = "GPT2LMHeadModel"
    source = "transformers.models.gpt2.modeling_gpt2"

    def reasons(self, config: Any) -> list[Refusal]:
        return [
            *unserved(config, add_cross_attention=False),
            *activation_reasons(config.activation_function),
        ]

    def spec(self, config: Any) -> DecoderSpec:
        head_dim = config.hidden_size // config.num_attention_heads
        scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
        by_layer = config.scale_attn_by_inverse_layer_idx
        return DecoderSpec(
            decoder="transformer",
            tokens="transformer.wte",
            positions="transformer.wpe",
            embedding_dropout="transformer.drop",
            layers="transformer.h",
            final_norm="transformer.ln_f",
            head="lm_head",
            layer=LayerSpec(
                attention="attn",
                attention_norm="ln_1",
                qkv=("attn.c_attn",),
                out="attn.c_proj",
                attention_dropout="attn.resid_dropout",
                mlp="mlp",
                mlp_norm="ln_2",
                up="mlp.c_fc",
                down="mlp.c_proj",
                act="mlp.act",
                mlp_dropout="mlp.dropout",
            ),
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_dim=head_dim,
            max_positions=config.max_position_embeddings,
            norm="layer_norm",
            norm_eps=config.layer_norm_epsilon,
            act=ACTIVATIONS[config.activation_function],
            scales=tuple(
                scale / (index + 1) if by_layer else scale
                for index in range(config.num_hidden_layers)
            ),
            probability_dropout=config.attn_pdrop,
        )


POLICY = Gpt2Policy
