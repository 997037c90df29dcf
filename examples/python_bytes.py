"""What the examples train: a Llama whose tokens are bytes, on the functions of Python's library."""

import math
import re
import sysconfig
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, LENGTH = 16, 128  # what a step of reading sees


def byte_model(vocabulary=256):
    """A Llama of 0.8 M parameters whose tokens are bytes."""
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ends = {"bos_token_id": None, "eos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, **heads, **ends))


def functions(held_out=False):
    """The standard library's functions, without docstrings and comments; of every eighth module
    those that are held out, which nothing is trained on."""
    found, function = [], re.compile(rb"^( *)def \w+\(.*\):\n(?:(?:\1 .*)?\n)+", re.MULTILINE)
    silent = re.compile(rb'^ *[rR]?"""[\s\S]*?"""\n|^ *#.*\n|^\s*\n', re.MULTILINE)
    for index, file in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))):
        for match in function.finditer(file.read_bytes() if (index % 8 == 0) == held_out else b""):
            found.append(silent.sub(b"", re.sub(rb"(?m)^" + match[1], b"", match[0])))
    return found


def headers(texts):
    """First lines, short ones, each once: the prompts."""
    return sorted({head for text in texts if len(head := text[: text.index(b"\n") + 1]) <= 40})


def read(engine, texts, steps, seconds=60.0):
    """Learn the texts for so many steps or seconds; yields each step's loss, in nats per byte."""
    # Muon takes half the steps that AdamW alone would.
    muon = torch.optim.Muon([p for p in engine.model.model.layers.parameters() if p.dim() == 2])
    its = {id(p) for p in muon.param_groups[0]["params"]}
    others = [p for p in engine.model.parameters() if id(p) not in its]
    engine.optimizer = torch.optim.AdamW(others, betas=(0.9, 0.95))
    data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).long()
    start = time.perf_counter()
    for step in range(steps):
        done = max(step / steps, (time.perf_counter() - start) / seconds)
        if step and done >= 1:
            break
        share = min((step + 1) / 15, 1.0) * 0.5 * (1 + math.cos(math.pi * done))
        muon.param_groups[0]["lr"] = 0.02 * share
        engine.optimizer.param_groups[0]["lr"] = 0.006 * share
        starts = torch.randint(len(data) - LENGTH, (ROWS, 1))
        ids = data[starts + torch.arange(LENGTH)].to(engine.model.device)
        loss = engine.backward(engine(ids, labels=ids).loss)
        muon.step()
        muon.zero_grad()
        engine.step()
        yield loss.item()
