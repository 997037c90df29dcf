"""gpt_neo: gpt2 with scores that nothing divides, and windows in every other layer (2021)."""

from __future__ import annotations

from typing import Any, ClassVar

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons
from accel.engine.spec import DecoderSpec, LayerSpec
from accel.refusal import Refusal


class GptNeoPolicy(ModelPolicy):
    name = "gpt_neo"
    model = "GPTNeoForCausalLM"
    source = "transformers.models.gpt_neo.modeling_gpt_neo"
    small: ClassVar = {"attention_types": [[["global", "local"], 1]], "window_size": 9}

    def reasons(self, config: Any) -> list[Refusal]:
        return activation_reasons(config.activation_function)

    def spec(self, config: Any) -> DecoderSpec:
        projection = "attn.attention.{}_proj".format
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
                qkv=(projection("q"), projection("k"), projection("v")),
                out=projection("out"),
                attention_dropout="attn.attention.resid_dropout",
                mlp="mlp",
                mlp_norm="ln_2",
                up="mlp.c_fc",
                down="mlp.c_proj",
                act="mlp.act",
                mlp_dropout="mlp.dropout",
            ),
            heads=config.num_heads,
            kv_heads=config.num_heads,
            head_dim=config.hidden_size // config.num_heads,
            max_positions=config.max_position_embeddings,
            norm="layer_norm",
            norm_eps=config.layer_norm_epsilon,
            act=ACTIVATIONS[config.activation_function],
            scales=(1.0,) * config.num_layers,
            windows=tuple(
                config.window_size if kind == "local" else None for kind in config.attention_layers
            ),
            probability_dropout=config.attention_dropout,
        )


POLICY = GptNeoPolicy
