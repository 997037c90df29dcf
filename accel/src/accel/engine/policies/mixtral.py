"""mixtral: mistral whose MLP is some of many experts, chosen for each token (Jiang et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from accel.engine.policies.mistral import MistralPolicy
from accel.engine.spec import DecoderSpec, ExpertsSpec


class MixtralPolicy(MistralPolicy):
    name = "mixtral"
    model = "MixtralForCausalLM"
    source = "transformers.models.mixtral.modeling_mixtral"
    small: ClassVar = {  # "eager": transformers' own run in any dtype and width then
        "num_local_experts": 5, "num_experts_per_tok": 2, "experts_implementation": "eager",
    }  # fmt: skip

    def experts(self, config: Any) -> ExpertsSpec:
        """In every layer; their weights are made to sum to one."""
        return ExpertsSpec(
            router="mlp.gate",
            experts="mlp.experts",
            act="mlp.experts.act_fn",
            count=config.num_local_experts,
            top_k=config.num_experts_per_tok,
            normalized=True,
            layers=tuple(range(config.num_hidden_layers)),
            jitter=config.router_jitter_noise,
        )

    def spec(self, config: Any) -> DecoderSpec:
        spec = super().spec(config)
        return replace(spec, layer=replace(spec.layer, experts=self.experts(config)))


POLICY = MixtralPolicy
