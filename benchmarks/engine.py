"""The hybrid engine beside transformers, on one model with the same weights, in the same run.

A Llama of 30 M parameters (8 layers of 512, grouped heads 8/2, vocabulary 8000), random weights:
decoding, prefill and a training step. Small, since bf16 without instructions for it takes long.
Run by ``make bench``, or alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import accel
from accel.bench.timing import Clock, in_rounds, ratio

PROMPT, NEW = 16, 17
BATCHES = (1, 8)
PREFILL = 128
TRAINING = (1, 128)
ROUNDS, PATIENCE = 3, 60.0


def model_of(dtype: torch.dtype, layers: int = 8) -> LlamaForCausalLM:
    """On the accelerator's device."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=512, intermediate_size=1376, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=2048,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(accel.get_accelerator().device(), dtype)


def rows(rehearse: bool = False) -> Iterator[dict[str, Any]]:
    """One row per dtype and task: tokens per second of both, and how many times faster ours is.
    A rehearsal has one layer and one dtype."""
    for dtype in (torch.float32, torch.bfloat16)[: 1 if rehearse else 2]:
        theirs, ours = (model_of(dtype, 1 if rehearse else 8) for _ in range(2))
        accel.hybridize(ours)
        for name, tokens, task in tasks():
            models = {"transformers": theirs, "accel": ours}
            for model in models.values():
                task(model)
            loops = {peer: partial(repeated, task, model) for peer, model in models.items()}
            times = in_rounds(loops, Clock(accel.get_accelerator()), ROUNDS, PATIENCE)
            yield {
                "dtype": str(dtype).removeprefix("torch."),
                "task": name,
                **{peer: tokens / statistics.median(taken) for peer, taken in times.items()},
                "ratio": ratio(times["transformers"], times["accel"]).median,
            }


def repeated(task: Callable[[Any], object], model: Any, repeats: int) -> None:
    for _ in range(repeats):
        task(model)


def tasks() -> Iterator[tuple[str, int, Callable[[Any], object]]]:
    """(name, tokens it handles, what to do with a model)"""
    device = accel.get_accelerator().device()
    for batch in BATCHES:
        ids = torch.randint(1, 8000, (batch, PROMPT)).to(device)
        # The prompts' forward is in both; of PROMPT + NEW tokens NEW are decoded.
        yield f"generate {NEW}, batch {batch}", batch * NEW, lambda m, ids=ids: generate(m, ids)
    ids = torch.randint(1, 8000, (1, PREFILL)).to(device)
    yield f"forward 1x{PREFILL}", PREFILL, lambda m: forward(m, ids)
    batch, length = TRAINING
    rows = torch.randint(1, 8000, TRAINING).to(device)
    yield f"training step {batch}x{length}", batch * length, lambda m: train(m, rows)


def generate(model: Any, ids: torch.Tensor) -> None:
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW)
    assert made.shape[1] == PROMPT + NEW


@torch.no_grad()
def forward(model: Any, ids: torch.Tensor) -> None:
    model(ids)


def train(model: Any, ids: torch.Tensor) -> None:
    model.train()
    model(ids, labels=ids).loss.backward()
    model.zero_grad()


def table(results: list[dict[str, Any]]) -> Table:
    found = Table(
        "dtype", "task", "transformers tok/s", "accel tok/s", "accel / transformers",
        title="Llama of 30 M parameters, both with the same weights",
    )  # fmt: skip
    for row in results:
        found.add_row(
            row["dtype"], row["task"], f"{row['transformers']:.1f}", f"{row['accel']:.1f}",
            f"{row['ratio']:.2f}",
        )  # fmt: skip
    return found


if __name__ == "__main__":
    from rich.console import Console

    console, made = Console(), []
    for row in rows():
        made.append(row)
        console.print(f"{row['dtype']} {row['task']}: {row['ratio']:.2f} of transformers' speed")
    console.print(table(made))
