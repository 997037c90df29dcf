"""bert: norms behind the sums, every token sees every other (Devlin et al. 2018)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons, unserved
from accel.engine.spec import EncoderSpec, LayerSpec
from accel.refusal import Refusal


class BertPolicy(ModelPolicy):
    name = "bert"
    model = "BertModel"
    source = "transformers.models.bert.modeling_bert"
    encodes = True

    def reasons(self, config: Any) -> list[Refusal]:
        return [
            *unserved(config, is_decoder=False, add_cross_attention=False, output_attentions=False),
            *activation_reasons(config.hidden_act),
        ]

    def spec(self, config: Any) -> EncoderSpec:
        head_dim = config.hidden_size // config.num_attention_heads
        part = "attention.self.{}".format
        return EncoderSpec(
            encoder="encoder",
            layers="encoder.layer",
            layer=LayerSpec(
                norms_sums=True,
                attention="attention",
                attention_norm="attention.output.LayerNorm",
                qkv=(part("query"), part("key"), part("value")),
                out="attention.output.dense",
                attention_dropout="attention.output.dropout",
                mlp=None,
                mlp_norm="output.LayerNorm",
                up="intermediate.dense",
                down="output.dense",
                act="intermediate.intermediate_act_fn",
                mlp_dropout="output.dropout",
            ),
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_dim=head_dim,
            norm="layer_norm",
            norm_eps=config.layer_norm_eps,
            act=ACTIVATIONS[config.hidden_act],
            scales=(head_dim**-0.5,) * config.num_hidden_layers,
            probability_dropout=config.attention_probs_dropout_prob,
            causal=False,
        )


POLICY = BertPolicy
