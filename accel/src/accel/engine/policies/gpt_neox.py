"""gpt_neox: two parallel branches, each with a norm of its own (Black et al. 2022)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons, rotary_reasons
from accel.engine.spec import DecoderSpec, LayerSpec
from accel.refusal import Refusal


class GptNeoXPolicy(ModelPolicy):
    name = "gpt_neox"
    model = "GPTNeoXForCausalLM"
    source = "transformers.models.gpt_neox.modeling_gpt_neox"

    def reasons(self, config: Any) -> list[Refusal]:
        return [*rotary_reasons(config), *activation_reasons(config.hidden_act)]

    def spec(self, config: Any) -> DecoderSpec:
        head_dim = config.hidden_size // config.num_attention_heads
        return DecoderSpec(
            decoder="gpt_neox",
            tokens="gpt_neox.embed_in",
            rotary="gpt_neox.rotary_emb",
            embedding_dropout="gpt_neox.emb_dropout",
            layers="gpt_neox.layers",
            final_norm="gpt_neox.final_layer_norm",
            head="lm_head",
            layer=LayerSpec(
                parallel=config.use_parallel_residual,
                attention="attention",
                attention_norm="input_layernorm",
                qkv=("attention.query_key_value",),
                qkv_rows="grouped",
                out="attention.dense",
                attention_dropout="post_attention_dropout",
                mlp="mlp",
                mlp_norm="post_attention_layernorm",
                up="mlp.dense_h_to_4h",
                down="mlp.dense_4h_to_h",
                act="mlp.act",
                mlp_dropout="post_mlp_dropout",
            ),
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_dim=head_dim,
            max_positions=config.max_position_embeddings,
            norm="layer_norm",
            norm_eps=config.layer_norm_eps,
            act=ACTIVATIONS[config.hidden_act],
            scales=(head_dim**-0.5,) * config.num_hidden_layers,
            probability_dropout=config.attention_dropout,
        )


POLICY = GptNeoXPolicy
