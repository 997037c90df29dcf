"""A conversation's first turn and its next, for tests of ``reuse_prefix``."""

import models
import torch
from measures import seeded
from test_exactness import same_bits

import accel

ASKED = {"max_new_tokens": 6, "return_logprobs": True}


def assert_same(found, want):
    assert torch.equal(found.sequences, want.sequences)
    assert torch.equal(found.attention_mask, want.attention_mask)
    for values in ("logprobs", "processed_logprobs"):
        assert same_bits(found[values], want[values])


def engine_of(model=None, optimizer=None, **config):
    return accel.HybridEngine(model or models.llama(), optimizer, config)


def first(engine, **asked):
    return engine.generate(seeded((3, 9)), reuse_prefix=True, **{**ASKED, **asked})


def again(engine, roll, **asked):
    """The next turn: two tokens more."""
    ids = torch.cat((roll.sequences, seeded((3, 2), seed=1)), 1)
    return engine.generate(ids, reuse_prefix=True, **{**ASKED, **asked})
