"""qwen3: qwen2 with a norm on each head of queries and keys (2025)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accel.engine.policies.qwen2 import Qwen2Policy
from accel.engine.spec import DecoderSpec


class Qwen3Policy(Qwen2Policy):
    name = "qwen3"
    model = "Qwen3ForCausalLM"
    source = "transformers.models.qwen3.modeling_qwen3"

    def spec(self, config: Any) -> DecoderSpec:
        spec = super().spec(config)
        layer = replace(spec.layer, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
        return replace(spec, layer=layer)


POLICY = Qwen3Policy
