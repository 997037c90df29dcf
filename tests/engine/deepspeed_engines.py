"""Engines under DeepSpeed's names, for their tests."""

import torch
from measures import seeded

from accel.deepspeed import DeepSpeedHybridEngine

ASKED = {"max_new_tokens": 5, "do_sample": True, "seed": 1, "return_logprobs": True}


def engine_of(model, **kwargs):
    learned = [p for p in model.parameters() if p.requires_grad]
    return DeepSpeedHybridEngine(None, model, torch.optim.AdamW(learned, lr=1e-2), **kwargs)


def trained(engine):
    """One step further."""
    ids = seeded((2, 8))
    engine.backward(engine(ids, labels=ids).loss)
    engine.step()
