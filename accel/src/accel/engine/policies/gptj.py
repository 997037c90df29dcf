"""gptj: one norm for two parallel branches, neighbouring elements turned together (2021)."""

from __future__ import annotations

from typing import Any, ClassVar

from accel.engine.policy import ModelPolicy
from accel.engine.reading import ACTIVATIONS, activation_reasons
from accel.engine.spec import DecoderSpec, LayerSpec, Rotary
from accel.refusal import Refusal


class GptJPolicy(ModelPolicy):
    name = "gptj"
    model = "GPTJForCausalLM"
    source = "transformers.models.gptj.modeling_gptj"
    small: ClassVar = {"rotary_dim": 16, "attn_pdrop": 0.1}

    def reasons(self, config: Any) -> list[Refusal]:
        return activation_reasons(config.activation_function)

    def spec(self, config: Any) -> DecoderSpec:
        head_dim = config.n_embd // config.n_head
        return DecoderSpec(
            decoder="transformer",
            tokens="transformer.wte",
            rotary=Rotary(config.rotary_dim),
            interleaved=True,
            embedding_dropout="transformer.drop",
            layers="transformer.h",
            final_norm="transformer.ln_f",
            head="lm_head",
            layer=LayerSpec(
                parallel=True,
                attention="attn",
                attention_norm="ln_1",
                qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
                out="attn.out_proj",
                attention_dropout="attn.resid_dropout",
                mlp="mlp",
                up="mlp.fc_in",
                down="mlp.fc_out",
                act="mlp.act",
                mlp_dropout="mlp.dropout",
            ),
            heads=config.n_head,
            kv_heads=config.n_head,
            head_dim=head_dim,
            max_positions=config.n_positions,
            norm="layer_norm",
            norm_eps=config.layer_norm_epsilon,
            act=ACTIVATIONS[config.activation_function],
            scales=(head_dim**-0.5,) * config.n_layer,
            probability_dropout=config.attn_pdrop,
        )


POLICY = GptJPolicy
