"""distilbert: bert with half of its layers, and names of its own (Sanh et al. 2019)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons, unserved
from accel.engine.spec import EncoderSpec, LayerSpec
from accel.refusal import Refusal


class DistilBertPolicy(ModelPolicy):
    name = "distilbert"
    model = "DistilBertModel"
    source = "transformers.models.distilbert.modeling_distilbert"
    encodes = True

    def reasons(self, config: Any) -> list[Refusal]:
        return [
            *unserved(config, output_attentions=False),
            *activation_reasons(config.activation),
        ]

    def spec(self, config: Any) -> EncoderSpec:
        head_dim = config.dim // config.n_heads
        return EncoderSpec(
            encoder="transformer",
            layers="transformer.layer",
            layer=LayerSpec(
                norms_sums=True,
                attention="attention",
                attention_norm="sa_layer_norm",
                qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
                out="attention.out_lin",
                mlp="ffn",
                mlp_norm="output_layer_norm",
                up="ffn.lin1",
                down="ffn.lin2",
                act="ffn.activation",
                mlp_dropout="ffn.dropout",
            ),
            heads=config.n_heads,
            kv_heads=config.n_heads,
            head_dim=head_dim,
            norm="layer_norm",
            norm_eps=1e-12,
            act=ACTIVATIONS[config.activation],
            scales=(head_dim**-0.5,) * config.n_layers,
            probability_dropout=config.attention_dropout,
            causal=False,
        )


POLICY = DistilBertPolicy
