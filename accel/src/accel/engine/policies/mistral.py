"""mistral: llama whose queries look back a window (Jiang et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from accel.engine.policies.llama import LlamaPolicy
from accel.engine.spec import DecoderSpec


class MistralPolicy(LlamaPolicy):
    name = "mistral"
    model = "MistralForCausalLM"
    source = "transformers.models.mistral.modeling_mistral"
    small: ClassVar = {"sliding_window": 21}

    def spec(self, config: Any) -> DecoderSpec:
        windows = (config.sliding_window,) * config.num_hidden_layers
        return replace(super().spec(config), windows=windows)


POLICY = MistralPolicy
