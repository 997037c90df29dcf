"""Everything of a training run that generating may not change, to be compared bit for bit."""

import random

import numpy as np
import torch

from accel.engine import call
from accel.ops import policy


def bits(value):
    """A value in which equal means bitwise equal: tensors as their bytes, the rest as it is."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return (value.dtype, tuple(value.shape), data)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


class Same:
    """Equal only if both hold the very same object."""

    def __init__(self, held):
        self.held = held

    def __eq__(self, other):
        return isinstance(other, Same) and self.held is other.held

    __hash__ = None

    def __repr__(self):
        return f"Same({self.held!r:.80})"


def modules(model):
    """Of every module every attribute as the object it is: its forward, its mode; and what the
    dicts and lists among them hold: hooks, parameters, merged adapters."""
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found[path, name] = Same(value)
            if isinstance(value, dict):
                found[path, name, "items"] = {key: Same(item) for key, item in value.items()}
            if isinstance(value, (list, set)):
                found[path, name, "items"] = [Same(item) for item in value]
    return found


def parameters(model):
    """Values, gradients and whether there are to be any."""
    return {
        name: (parameter.requires_grad, bits(parameter), bits(parameter.grad))
        for name, parameter in model.named_parameters()
    }


def random_states():
    return bits([torch.get_rng_state(), random.getstate(), np.random.get_state()])


def surroundings():
    """What holds for the code that called: the engine's call, the ops' policy, torch's modes."""
    return {
        "call": Same(call.current()),
        "policy": Same(policy.current()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
    }


def training_state(engine):
    """All of it."""
    return {
        "modules": modules(engine.model),
        "parameters": parameters(engine.model),
        "buffers": bits(dict(engine.model.named_buffers())),
        "optimizer": bits(engine.optimizer.state_dict()),
        "random": random_states(),
        "surroundings": surroundings(),
        "config": Same(engine.plan.model.generate.config),
    }


def changed(before, after):
    """Where two such states differ, to be read; empty if they are the same."""
    found = []
    for part, old in before.items():
        new = after[part]
        if isinstance(old, dict):
            found += [(part, key) for key in {*old, *new} if old.get(key, ...) != new.get(key, ...)]
        elif old != new:
            found.append(part)
    return found
