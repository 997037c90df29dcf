"""What the engine's tests measure with: transformers in float64, and how near to it a result is."""

import copy

import torch
from torch.overrides import TorchFunctionMode

import accel


class Widened(TorchFunctionMode):
    """Runs transformers' code in float64 throughout: where it asks for fp32, it gets fp64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {
            name: torch.float64 if value is torch.float32 else value
            for name, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


def widened(model):
    """A copy in float64 that computes attention in the open."""
    wide = copy.deepcopy(model).double()
    wide.set_attn_implementation("eager")
    return wide


def positions(mask):
    """Counted from the first real token, as transformers' generate does for padded prompts."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def rms(x):
    return x.double().square().mean().sqrt().item()


def excess(ours, theirs, exact, factor=2.0):
    """By how much our error exceeds ``factor`` times theirs plus one roundoff of the RMS; right
    answers are negative. All are compared in float64."""
    dtype = torch.promote_types(ours.dtype, theirs.dtype)
    roundoff = torch.finfo(dtype).eps / 2 * rms(exact)
    allowed = factor * rms(theirs - exact) + roundoff
    return rms(ours - exact) - allowed


def seeded(shape, high=97, seed=0):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def batch():
    """Prompts ``[3, 12]``: one padded left, one padded right, one whole; and their mask."""
    ids, mask = seeded((3, 12)), torch.ones(3, 12, dtype=torch.int64)
    mask[0, :5], mask[1, 9:] = 0, 0
    return ids, mask


# -- models in the engine's hands --------------------------------------------------------------


def hybrid(model):
    """A copy of it there."""
    copied = copy.deepcopy(model)
    accel.hybridize(copied)
    return copied


def scores(model):
    """What such a model says of the batch, by a fresh engine around it."""
    return accel.HybridEngine(model).logprobs(*batch()).detach()


def rollout(model, **asked):
    """Answers to the batch, with their log-probabilities."""
    ids, mask = batch()
    asked = {"max_new_tokens": 5, "do_sample": True, "seed": 1, "return_logprobs": True, **asked}
    return model.generate(input_ids=ids, attention_mask=mask, **asked)


def is_exact(model):
    """What is generated has the log-probabilities that scoring gives."""
    made = rollout(model)
    again = accel.HybridEngine(model).logprobs(made.sequences, made.attention_mask)
    return torch.equal(again[:, -made.logprobs.shape[1] :], made.logprobs)
