"""Engines in the middle of a training with LoRA, for the tests of what may not disturb it."""

import models
import torch

import accel

IDS = torch.randint(models.VOCAB, (3, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0
MASK[1, 7:] = 0


def trained(name, config=None):
    """An engine in the middle of its training: the optimizer has a state, gradients are there."""
    model = models.with_lora(models.MAKERS[name]())
    learned = [p for p in model.parameters() if p.requires_grad]
    engine = accel.HybridEngine(model, torch.optim.AdamW(learned, lr=1e-2), config)
    engine.train()
    torch.manual_seed(0)
    for _ in range(2):
        engine.backward(engine(IDS, MASK, labels=IDS).loss)
        engine.step()
    engine.backward(engine(IDS, MASK, labels=IDS).loss)
    return engine
