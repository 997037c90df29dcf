"""bloom: positions by slopes alone, and a norm behind the embeddings (Scao et al. 2022)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import NO_LIMIT, alibi_slopes, unserved
from accel.engine.spec import DecoderSpec, LayerSpec
from accel.refusal import Refusal


class BloomPolicy(ModelPolicy):
    name = "bloom"
    model = "BloomForCausalLM"
    source = "transformers.models.bloom.modeling_bloom"

    def reasons(self, config: Any) -> list[Refusal]:
        return unserved(config, slow_but_exact=False)

    def spec(self, config: Any) -> DecoderSpec:
        head_dim = config.hidden_size // config.n_head
        return DecoderSpec(
            decoder="transformer",
            tokens="transformer.word_embeddings",
            embedding_norm="transformer.word_embeddings_layernorm",
            layers="transformer.h",
            final_norm="transformer.ln_f",
            head="lm_head",
            layer=LayerSpec(
                adds_to_normed=config.apply_residual_connection_post_layernorm,
                attention="self_attention",
                attention_norm="input_layernorm",
                qkv=("self_attention.query_key_value",),
                qkv_rows="grouped",
                out="self_attention.dense",
                mlp="mlp",
                mlp_norm="post_attention_layernorm",
                up="mlp.dense_h_to_4h",
                down="mlp.dense_4h_to_h",
                act="mlp.gelu_impl",
                dropout=config.hidden_dropout,
            ),
            heads=config.n_head,
            kv_heads=config.n_head,
            head_dim=head_dim,
            max_positions=NO_LIMIT,
            norm="layer_norm",
            norm_eps=config.layer_norm_epsilon,
            act="gelu_tanh",
            scales=(head_dim**-0.5,) * config.n_layer,
            slopes=alibi_slopes(config.n_head),
            probability_dropout=config.attention_dropout,
        )


POLICY = BloomPolicy
