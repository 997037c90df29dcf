"""opt: learned positions from the third row on, norms before the branches or, in one size, behind
the sums, with embeddings narrower than the layers (Zhang et al. 2022)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons, unserved
from accel.engine.spec import DecoderSpec, LayerSpec
from accel.refusal import Refusal


class OptPolicy(ModelPolicy):
    name = "opt"
    model = "OPTForCausalLM"
    source = "transformers.models.opt.modeling_opt"

    def reasons(self, config: Any) -> list[Refusal]:
        return [
            *unserved(config, layerdrop=0.0),
            *activation_reasons(config.activation_function),
        ]

    def spec(self, config: Any) -> DecoderSpec:
        before = config.do_layer_norm_before
        normed = before and not config._remove_final_layer_norm
        projected = config.word_embed_proj_dim != config.hidden_size
        head_dim = config.hidden_size // config.num_attention_heads
        return DecoderSpec(
            decoder="model.decoder",
            tokens="model.decoder.embed_tokens",
            positions="model.decoder.embed_positions",
            first_position=2,
            embedding_in="model.decoder.project_in" if projected else None,
            embedding_out="model.decoder.project_out" if projected else None,
            layers="model.decoder.layers",
            final_norm="model.decoder.final_layer_norm" if normed else None,
            head="lm_head",
            layer=LayerSpec(
                norms_sums=not before,
                attention="self_attn",
                attention_norm="self_attn_layer_norm",
                qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                out="self_attn.out_proj",
                mlp=None,
                mlp_norm="final_layer_norm",
                up="fc1",
                down="fc2",
                act="activation_fn",
                dropout=config.dropout,
            ),
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_dim=head_dim,
            max_positions=config.max_position_embeddings,
            norm="layer_norm",
            norm_eps=1e-5,
            act=ACTIVATIONS[config.activation_function],
            scales=(head_dim**-0.5,) * config.num_hidden_layers,
            probability_dropout=config.attention_dropout,
        )


POLICY = OptPolicy
