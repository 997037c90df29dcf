"""clip_text: the text half of CLIP, which sees what came before (Radford et al. 2021)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons, unserved
from accel.engine.spec import EncoderSpec, LayerSpec
from accel.refusal import Refusal

_QUICK = "quick_gelu"


class ClipTextPolicy(ModelPolicy):
    name = "clip_text"
    model = "CLIPTextModel"
    source = "transformers.models.clip.modeling_clip"
    encodes = True

    def reasons(self, config: Any) -> list[Refusal]:
        act = config.hidden_act
        return [
            *unserved(config, output_attentions=False),
            *([] if act == _QUICK else activation_reasons(act)),
        ]

    def spec(self, config: Any) -> EncoderSpec:
        head_dim = config.hidden_size // config.num_attention_heads
        projection = "self_attn.{}_proj".format
        return EncoderSpec(
            encoder="encoder",
            layers="encoder.layers",
            layer=LayerSpec(
                attention="self_attn",
                attention_norm="layer_norm1",
                qkv=(projection("q"), projection("k"), projection("v")),
                out=projection("out"),
                mlp="mlp",
                mlp_norm="layer_norm2",
                up="mlp.fc1",
                down="mlp.fc2",
                act="mlp.activation_fn",
            ),
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            head_dim=head_dim,
            norm="layer_norm",
            norm_eps=config.layer_norm_eps,
            act=_QUICK if config.hidden_act == _QUICK else ACTIVATIONS[config.hidden_act],
            scales=(head_dim**-0.5,) * config.num_hidden_layers,
            probability_dropout=config.attention_dropout,
        )


POLICY = ClipTextPolicy
