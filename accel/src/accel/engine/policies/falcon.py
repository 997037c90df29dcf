"""falcon: three generations of one architecture, with rotary positions or slopes (2023)."""

from __future__ import annotations

from typing import Any

from accel.engine.policy import ModelPolicy
from accel.engine.reading import (
    ACTIVATIONS,
    AS_IT_IS,
    activation_reasons,
    alibi_slopes,
    rotary_reasons,
)
from accel.engine.spec import DecoderSpec, LayerSpec
from accel.refusal import Refusal


class FalconPolicy(ModelPolicy):
    name = "falcon"
    model = "FalconForCausalLM"
    source = "transformers.models.falcon.modeling_falcon"

    def reasons(self, config: Any) -> list[Refusal]:
        found = [*rotary_reasons(config), *activation_reasons(config.activation)]
        if config.parallel_attn:
            return found
        if config.new_decoder_architecture:
            have = "False beside new_decoder_architecture"
            found.append(Refusal("parallel_attn", "parallel_attn=True", have, AS_IT_IS))
        if config.attention_dropout != config.hidden_dropout:
            want, have = f"{config.attention_dropout}, as attention_dropout", config.hidden_dropout
            remedy = "set both alike"
            found.append(Refusal("hidden_dropout", want, str(have), remedy))
        return found

    def spec(self, config: Any) -> DecoderSpec:
        head_dim = config.hidden_size // config.num_attention_heads
        scale = head_dim**-0.5
        attention_norm, mlp_norm = self._norms(config)
        return DecoderSpec(
            decoder="transformer",
            tokens="transformer.word_embeddings",
            rotary=None if config.alibi else "transformer.rotary_emb",
            layers="transformer.h",
            final_norm="transformer.ln_f",
            head="lm_head",
            layer=LayerSpec(
                parallel=config.parallel_attn,
                attention="self_attention",
                attention_norm=attention_norm,
                qkv=("self_attention.query_key_value",),
                qkv_rows="grouped",
                out="self_attention.dense",
                mlp="mlp",
                mlp_norm=mlp_norm,
                up="mlp.dense_h_to_4h",
                down="mlp.dense_4h_to_h",
                act="mlp.act",
                dropout=config.hidden_dropout,
            ),
            heads=config.num_attention_heads,
            kv_heads=self._kv_heads(config),
            head_dim=head_dim,
            max_positions=config.max_position_embeddings,
            norm="layer_norm",
            norm_eps=config.layer_norm_epsilon,
            act=ACTIVATIONS[config.activation],
            scales=(scale,) * config.num_hidden_layers,
            # Rounded to bf16 as there, and multiplied like the scores they are added to.
            slopes=alibi_slopes(config.num_attention_heads, scale, rounded=True)
            if config.alibi
            else None,
            probability_dropout=config.attention_dropout,
        )

    def _norms(self, config: Any) -> tuple[str, str | None]:
        """Of the attention and of the MLP."""
        if not config.parallel_attn:
            return "input_layernorm", "post_attention_layernorm"
        if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
            return "ln_attn", "ln_mlp"
        return "input_layernorm", None

    def _kv_heads(self, config: Any) -> int:
        if config.new_decoder_architecture:
            return int(config.num_kv_heads)
        return 1 if config.multi_query else int(config.num_attention_heads)


POLICY = FalconPolicy
