"""Sampling: a token's random number is a function of (seed, sample, position) and nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from operator import index

import numpy as np
import torch
from torch import Tensor

# Of a 64-bit draw these many bits make the number in [0, 1): times a sum of probabilities it then
# rounds to less than the sum, so that no token of probability 0 is ever picked.
_BITS = 48
_WORD = 2**64 - 1

# What tells samples apart: (a number made of the prompt, how many such came before), or an id.
Sample = tuple[int, int]


def samples_of(prompts: Sequence[bytes], given: Sequence[int] | Tensor | None) -> list[Sample]:
    """The identity of each answer: what the caller gave, else its prompt.

    A prompt seen again in the batch is another sample of it; the padding does not count, nor what
    else is in the batch.
    """
    if given is not None:
        wanted = [int(sample) for sample in given]
        if len(wanted) != len(prompts):
            raise ValueError(
                f"{len(wanted)} sample_ids for {len(prompts)} sequences; give one each"
            )
        return [(sample, 0) for sample in wanted]
    seen: Counter[bytes] = Counter()
    samples = []
    for prompt in prompts:
        number = int.from_bytes(hashlib.blake2b(prompt, digest_size=8).digest(), "little")
        samples.append((number, seen[prompt]))
        seen[prompt] += 1
    return samples


def uniforms(
    seed: int, samples: Sequence[Sample], starts: Sequence[int], count: int
) -> torch.Tensor:
    """float64 ``[B, count]`` in [0, 1): of sample b at positions ``starts[b]`` and on.

    Philox with the seed and the sample as key, the position as counter (Salmon et al. 2011), by
    numpy; always made on the host, so that every device draws the same.
    """
    drawn = np.empty((len(samples), count))
    for row, ((number, nth), start) in enumerate(zip(samples, starts)):
        key = np.array([index(seed) & _WORD, number & _WORD], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=[start, nth, 0, 0])
        first_of_each = bits.random_raw(4 * count)[::4]  # a counter gives four numbers
        drawn[row] = (first_of_each >> (64 - _BITS)) * 2.0**-_BITS
    return torch.from_numpy(drawn)


def pick(scores: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes ``uniform`` ``[B]``; int64 ``[B]``.

    scores ``[B, V]`` are logits, -inf where a token is out of the question.
    """
    cumulative = torch.softmax(scores.double(), dim=-1).cumsum(-1)
    passed = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, passed, right=True).squeeze(1)
