"""qwen2: llama with biases on queries, keys and values, and windows in some layers (2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accel.engine.policies.llama import LlamaPolicy
from accel.engine.reading import windows_by_type
from accel.engine.spec import DecoderSpec


class Qwen2Policy(LlamaPolicy):
    name = "qwen2"
    model = "Qwen2ForCausalLM"
    source = "transformers.models.qwen2.modeling_qwen2"

    def spec(self, config: Any) -> DecoderSpec:
        return replace(super().spec(config), windows=windows_by_type(config))


POLICY = Qwen2Policy
