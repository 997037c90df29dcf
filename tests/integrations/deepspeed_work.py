"""What each of two processes does through ``deepspeed.initialize``; it saves what came of it."""

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import deepspeed
import models
import torch
import torch.distributed as dist
from joining import leave
from torch import nn

import accel
from accel import testing
from accel.deepspeed import DeepSpeedHybridEngine, set_deepspeed_accelerator
from accel.errors import AccelError
from accel.layers import LinearModuleForZeroStage3, TiledLinear

SIZE, ROWS, STEPS, NEW, LR = 24, 4, 3, 6, 1e-2
KINDS = {
    "plain": nn.Linear,
    "zero3": LinearModuleForZeroStage3,
    "tiled": partial(TiledLinear, in_splits=2, out_splits=3),
}
BEAMS = {"do_sample": False, "num_beams": 2, "fallback": "transformers"}
SAMPLED = {"do_sample": True, "seed": 1, "return_logprobs": True}


def config(stage):
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def initialized(model, stage):
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage))[0]


# -- linear layers -----------------------------------------------------------------------------


def stack(kind):
    """As many parameters whatever the kind, of the same values."""
    torch.manual_seed(0)
    plain = [nn.Linear(SIZE, SIZE) for _ in range(3)]
    made = [KINDS[kind](SIZE, SIZE) for _ in plain]
    for one, other in zip(made, plain):
        one.load_state_dict(other.state_dict())
    return nn.Sequential(made[0], nn.Tanh(), made[1], nn.Tanh(), made[2])


def batch(rank, step):
    drawn = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(ROWS, SIZE, generator=drawn)


def loss_of(model, x):
    return (model(x) - x.flip(1)).square().mean()


def losses(kind, stage, rank):
    """This rank's, of its own rows, before each step."""
    engine, found = initialized(stack(kind), stage), []
    for step in range(STEPS):
        loss = loss_of(engine, batch(rank, step))
        engine.backward(loss)
        engine.step()
        found.append(loss.detach())
    return torch.stack(found)


# -- the engine --------------------------------------------------------------------------------


def prompts(rank):
    return torch.randint(5, 90, (2, 5 + rank), generator=torch.Generator().manual_seed(rank))


def lengths(rank):
    """Ranks end at different times."""
    return {"max_new_tokens": NEW + 3 * rank}


def rollouts(make, when, rank):
    """Two steps of training, then answers: of the rank, and what all parameters were then."""
    model = make()
    if when == "before":
        accel.hybridize(model)
    theirs = initialized(model, 3)
    if when == "after":
        accel.hybridize(theirs.module)
    found = {"losses": [trained(theirs, rank) for _ in range(2)]}
    ours = accel.HybridEngine(theirs.module)
    found["roll"] = ours.generate(prompts(rank), **lengths(rank), **SAMPLED)
    scored = ours.logprobs(found["roll"].sequences, found["roll"].attention_mask)
    found["scored"] = scored.detach()
    with deepspeed.zero.GatheredParameters(list(theirs.module.parameters())):
        found["state"] = {k: v.clone() for k, v in theirs.module.state_dict().items()}
        found["at once"] = ours.generate(prompts(rank), **lengths(rank), **SAMPLED)
    hybrid = DeepSpeedHybridEngine(None, theirs.module)
    for layer_id in range(2):  # the gather that has DeepSpeed's name
        hybrid._zero3_forward(layer_id).install()
    found["by layer"] = hybrid.generate(prompts(rank), **lengths(rank), **SAMPLED)
    found["beams"] = ours.generate(prompts(rank), **lengths(rank), **BEAMS)
    try:
        ours.generate(prompts(rank), **lengths(rank), **(SAMPLED if rank else BEAMS))
    except AccelError as error:
        found["beams on one"] = error
    return found


def trained(engine, rank):
    ids = prompts(rank)
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    return loss.detach()


MODELS = {
    "llama": models.llama,
    "gpt2": models.gpt2,
    "llama with LoRA": lambda: models.with_lora(models.llama(), lora_dropout=0.0),
}


# -- a stranger's backend ----------------------------------------------------------------------


def strangers_plugin(calls):
    """Its device is the host's, its kernel the reference, written down call by call."""
    kernels = {"linear": testing.fake_kernel("linear", calls)}
    return testing.fake_backend("stranger", builders=[testing.fake_builder(kernels)])


def by_a_stranger(rank):
    calls = testing.Calls()
    with testing.installed(strangers_plugin(calls)), accel.ops.use(exact=False):
        made = set_deepspeed_accelerator("stranger")
        assert deepspeed.accelerator.get_accelerator() is made
        assert made.accelerator.name == "stranger"
        found = losses("zero3", 3, rank)
    return found, len(calls)


def main(folder):
    set_deepspeed_accelerator("cpu")
    deepspeed.init_distributed(
        "gloo", timeout=timedelta(seconds=180), verbose=False, dist_init_required=True
    )
    rank = dist.get_rank()
    found = {(kind, stage): losses(kind, stage, rank) for kind in KINDS for stage in (0, 3)}
    for name, make in MODELS.items():
        for when in ("before", "after"):
            found[name, when] = rollouts(make, when, rank)
    found["stranger"] = by_a_stranger(rank)
    torch.save(found, Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    leave()
