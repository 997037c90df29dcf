"""An iteration of GRPO beside the same loop on transformers' generate and forward, in one run.

Eight prompts, four answers to each of 128 tokens, then one training step on all of them, AdamW's
included. Both have the same weights. Theirs takes as the policy before the step its own values,
detached, as TRL does; ours those of the rollout, which are the same bits, and generate gives them.
Models: the demo's byte-level one, and with ``--large`` a Llama of 0.25 B parameters in fp32 and
bf16, which takes minutes. Run by ``make bench``, or alone.
"""

from __future__ import annotations

import argparse
import copy
import runpy
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import accel
from accel.bench.timing import Clock, in_rounds, ratio

PROMPTS, GROUP, PROMPT, NEW = 8, 4, 32, 128
ASKED = {
    "max_new_tokens": NEW, "do_sample": True, "top_k": 0, "num_return_sequences": GROUP,
}  # fmt: skip
ROUNDS, PATIENCE = 7, 60.0
PHASES = ("generate", "forward", "backward and step")
EXAMPLE = Path(__file__).parents[1] / "examples" / "python_bytes.py"


def byte_model() -> LlamaForCausalLM:
    return runpy.run_path(str(EXAMPLE))["byte_model"]()


def large_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=16,
        num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Loop:
    """A model, its optimizer, and the seconds of each phase of every iteration so far."""

    def __init__(self, model: LlamaForCausalLM, ids: Tensor) -> None:
        self.model, self.ids, self.mask = model, ids, torch.ones_like(ids)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        self.gain = torch.linspace(-1, 1, PROMPTS * GROUP)[:, None]
        self.phases: list[list[float]] = []

    def rollout(self) -> tuple[Tensor, Tensor | None]:
        """Sequences ``[B, S]`` and the log-probabilities ``[B, new]`` if there are any."""
        made = self.model.generate(self.ids, attention_mask=self.mask, pad_token_id=0, **ASKED)
        return made, None

    def logprobs(self, sequences: Tensor) -> Tensor:
        """``[B, new]``, with gradient."""
        mask = torch.ones_like(sequences)
        logits = self.model(sequences, attention_mask=mask, logits_to_keep=NEW + 1).logits[:, :-1]
        chosen = sequences[:, -NEW:, None]
        return logits.float().log_softmax(-1).gather(2, chosen).squeeze(2)

    def __call__(self, repeats: int) -> None:
        for _ in range(repeats):
            times = [time.perf_counter()]
            sequences, before = self.rollout()
            times.append(time.perf_counter())
            found = self.logprobs(sequences)
            ratio = (found - (found.detach() if before is None else before)).exp()
            times.append(time.perf_counter())
            clipped = ratio.clamp(0.8, 1.2)
            (-torch.minimum(ratio * self.gain, clipped * self.gain).mean()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            times.append(time.perf_counter())
            self.phases.append([end - start for start, end in pairwise(times)])


class Ours(Loop):
    def __init__(self, model: LlamaForCausalLM, ids: Tensor) -> None:
        super().__init__(model, ids)
        self.engine = accel.HybridEngine(model, self.optimizer)

    def rollout(self) -> tuple[Tensor, Tensor | None]:
        roll = self.engine.generate(self.ids, self.mask, return_logprobs=True, **ASKED)
        return roll.sequences, roll.logprobs

    def logprobs(self, sequences: Tensor) -> Tensor:
        return self.engine.logprobs(sequences)[:, -NEW:]


def rows(large: bool) -> Iterator[dict[str, Any]]:
    """One row per model: seconds of both and of their phases, and how many times faster ours is."""
    made: list[tuple[str, Callable[[], LlamaForCausalLM], torch.dtype]] = [
        ("bytes, 0.8 M", byte_model, torch.float32)
    ]
    if large:
        made += [("0.25 B", large_model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for name, make, dtype in made:
        torch.manual_seed(0)
        theirs = make().to(dtype)
        ids = torch.randint(1, theirs.config.vocab_size, (PROMPTS, PROMPT))
        loops = {"accel": Ours(copy.deepcopy(theirs), ids), "transformers": Loop(theirs, ids)}
        for loop in loops.values():
            loop(1)  # compiles, and makes the optimizer's state
            loop.phases.clear()
        times = in_rounds(loops, Clock(accel.get_accelerator()), ROUNDS, PATIENCE)
        yield {
            "model": f"{name}, {str(dtype).removeprefix('torch.')}",
            **{peer: statistics.median(taken) for peer, taken in times.items()},
            "ratio": ratio(times["transformers"], times["accel"]),
            "phases": [
                [statistics.median(column) for column in zip(*loops[peer].phases)] for peer in loops
            ],
        }


def table(results: list[dict[str, Any]]) -> Table:
    found = Table(
        "model", "transformers, s", "accel, s", "transformers / accel",
        *(f"{phase}, s" for phase in PHASES),
        title=f"GRPO: {PROMPTS} prompts x {GROUP} answers x {NEW} tokens, one training step",
    )  # fmt: skip
    for row in results:
        spread = row["ratio"]
        phases = [f"{theirs:.2f} / {ours:.2f}" for ours, theirs in zip(*row["phases"])]
        found.add_row(
            row["model"], f"{row['transformers']:.2f}", f"{row['accel']:.2f}",
            f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})", *phases,
        )  # fmt: skip
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="the Llama of 0.25 B too")
    large = parser.parse_args().large
    console, made = Console(width=120), []
    for row in rows(large):
        made.append(row)
        console.print(f"{row['model']}: {row['ratio'].median:.2f} times transformers' speed")
    console.print(table(made))
