"""Small models whose MLPs are mixtures of experts."""

import models
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

SMALL = {
    "vocab_size": models.VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.15,
}  # fmt: skip
FAMILIES = {
    "mixtral": (
        MixtralForCausalLM, MixtralConfig,
        {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM, Qwen3MoeConfig,
        {"intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8,
         "num_experts_per_tok": 3},
    ),
}  # fmt: skip
CASES = {
    "mixtral": ("mixtral", {"sliding_window": 7}),
    "mixtral of one": ("mixtral", {"num_experts_per_tok": 1, "hidden_act": "gelu"}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe normalized": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_moe every second": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "qwen3_moe dense at the end": ("qwen3_moe", {"mlp_only_layers": [1]}),
}
EXPERTS, ROUTER = "model.layers.0.mlp.experts", "model.layers.0.mlp.gate"


def made(case, **config):
    """A model of ours, whose norms leave the ones they begin with. Its experts run one by one,
    which transformers can do in any dtype."""
    family, own = CASES[case]
    kind, kind_of_config, usual = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(kind_of_config(**{**SMALL, **usual, **own, **config})).eval()
    model.set_experts_implementation("eager")
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model
