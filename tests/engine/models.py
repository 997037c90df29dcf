"""The small models the engine's tests are about, and text for one that has learned something."""

import sysconfig
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import accel

VOCAB = 97
BYTES = 258  # the bytes and two more
LENGTH = 128


def llama(tied=False, **config):
    """Two layers, four heads over two of keys; tokens nobody trained, and none ends an answer."""
    small = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **{**small, **config})).eval()


def gpt2(**config):
    """Two layers, four heads, tied; no dropout unless asked for."""
    small = {
        "vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{**small, **config})).eval()


def with_lora(model, **config):
    """The model in PEFT's hands, its attention and MLP with adapters that do something."""
    gpt = isinstance(model, GPT2LMHeadModel)
    usual = {
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "task_type": "CAUSAL_LM",
        "target_modules": ["c_attn", "c_fc"] if gpt else ["q_proj", "v_proj", "gate_proj"],
        "fan_in_fan_out": gpt,
    }  # fmt: skip
    wrapped = get_peft_model(model, LoraConfig(**{**usual, **config}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return wrapped.eval()


MAKERS = {"llama": llama, "gpt2": gpt2}
# Of the other architectures: the name of transformers' class, and what makes a small one.
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
_BY_N = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
ARCHITECTURES = {
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 5}),
    "qwen2": ("Qwen2", {**_GROUPED, "use_sliding_window": True, "sliding_window": 5,
                        "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 32}),
    "gemma2": ("Gemma2", {**_GROUPED, "head_dim": 32, "query_pre_attn_scalar": 20,
                          "sliding_window": 5, "attn_logit_softcapping": 5.0,
                          "final_logit_softcapping": 3.0}),
    "phi3": ("Phi3", {**_GROUPED, "sliding_window": 7}),
    "olmo2": ("Olmo2", _GROUPED),
    "granite": ("Granite", {**_GROUPED, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                            "residual_multiplier": 0.22, "attention_multiplier": 0.0156}),
    "gpt_neo": ("GPTNeo", {"hidden_size": 64, "intermediate_size": 96, "num_layers": 2,
                           "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                           "window_size": 5, "max_position_embeddings": 256}),
    "gptj": ("GPTJ", {**_BY_N, "rotary_dim": 8, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                      "attn_pdrop": 0.0}),
    "gpt_neox": ("GPTNeoX", {**_SIZES, **_STILL}),
    "opt": ("OPT", {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "dropout": 0.0,
                    "num_attention_heads": 4, "word_embed_proj_dim": 64,
                    "max_position_embeddings": 256}),
    "bloom": ("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, **_STILL}),
    "falcon": ("Falcon", {**_SIZES, **_STILL, "new_decoder_architecture": True,
                          "num_kv_heads": 2}),
}  # fmt: skip
MIXTURES = {
    "mixtral": ("Mixtral", {**_GROUPED, "head_dim": 16, "intermediate_size": 48,
                            "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {**_GROUPED, "head_dim": 16, "moe_intermediate_size": 32,
                               "num_experts": 8, "num_experts_per_tok": 3}),
}  # fmt: skip
WITH_BIASES = "llama biases"  # as internlm is
# One for each policy of a decoder, and that.
EVERY = (*MAKERS, WITH_BIASES, *ARCHITECTURES, *MIXTURES)


def small(name, **config):
    """A new model of any architecture with random weights; no token ends an answer."""
    if name == WITH_BIASES:
        return llama(**{"attention_bias": True, "mlp_bias": True, **config})
    if name in MAKERS:
        return MAKERS[name](**config)
    cls, usual = {**ARCHITECTURES, **MIXTURES}[name]
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    settings = {"vocab_size": VOCAB, **ends, **usual, **config}
    torch.manual_seed(0)
    made = getattr(transformers, f"{cls}Config")(**settings)
    model = getattr(transformers, f"{cls}ForCausalLM")(made).eval()
    if name in MIXTURES:  # one after the other, which transformers can do in any dtype
        model.set_experts_implementation("eager")
    return model


def text():
    """Bytes of Python's own library, as tokens; about two megabytes."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    read = b"".join(source.read_bytes() for source in sources)[: 1 << 21]
    return torch.frombuffer(bytearray(read), dtype=torch.uint8).to(torch.int64)


def train(model, steps, seconds):
    """Teach a model of bytes the text, through the engine, until steps or seconds are over."""
    tokens, drawn = text(), torch.Generator().manual_seed(0)
    engine = accel.HybridEngine(model, torch.optim.AdamW(model.parameters(), lr=3e-3)).train()
    until, losses = time.monotonic() + seconds, []
    while len(losses) < steps and time.monotonic() < until:
        starts = torch.randint(len(tokens) - LENGTH, (12, 1), generator=drawn)
        ids = tokens[starts + torch.arange(LENGTH)]
        losses.append(engine.backward(engine(ids, labels=ids).loss).item())
        engine.step()
    accel.restore(model)
    assert losses[-1] < losses[0]
    return model.eval()
