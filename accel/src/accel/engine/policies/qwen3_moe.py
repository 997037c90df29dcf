"""qwen3_moe: mixtral with qwen3's norms on each head, and dense layers among the others (2025)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from accel.engine.policies.mixtral import MixtralPolicy
from accel.engine.spec import DecoderSpec, ExpertsSpec


class Qwen3MoePolicy(MixtralPolicy):
    name = "qwen3_moe"
    model = "Qwen3MoeForCausalLM"
    source = "transformers.models.qwen3_moe.modeling_qwen3_moe"
    small: ClassVar = {  # "eager": transformers' own run in any dtype and width then
        "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 50,
        "experts_implementation": "eager",
    }  # fmt: skip

    def experts(self, config: Any) -> ExpertsSpec:
        """In every so many layers, but for those that the configuration names."""
        every, dense = config.decoder_sparse_step, config.mlp_only_layers
        layers = range(every - 1, config.num_hidden_layers, every)
        return ExpertsSpec(
            router="mlp.gate",
            experts="mlp.experts",
            act="mlp.experts.act_fn",
            count=config.num_experts,
            top_k=config.num_experts_per_tok,
            normalized=config.norm_topk_prob,
            layers=tuple(layer for layer in layers if layer not in dense),
        )

    def spec(self, config: Any) -> DecoderSpec:
        spec = super().spec(config)
        layer = replace(spec.layer, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
        return replace(spec, layer=layer)


POLICY = Qwen3MoePolicy
