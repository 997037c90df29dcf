"""The small models the engine's tests are about, and text for one that has learned something."""

import sysconfig
import time
from pathlib import Path

import torch
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
