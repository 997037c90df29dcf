"""What each of two processes does with models that Accelerate has prepared."""

import sys
from datetime import timedelta
from pathlib import Path

import adapters
import models
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from joining import leave

import accel

NEW, LR = 6, 0.5
LORA = " with LoRA"
SHARED_BY = ["DDP", "FSDP2", f"FSDP2{LORA}"]
WHEN = ["before", "after"]  # it is hybridized before it is prepared, or after
SAMPLED = {"do_sample": True, "seed": 1, "return_logprobs": True}


def accelerator(how):
    plugin = None
    if how.startswith("FSDP2"):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"], reshard_after_forward=True,
        )  # fmt: skip
    limit = InitProcessGroupKwargs(timeout=timedelta(seconds=180))
    return Accelerator(cpu=True, fsdp_plugin=plugin, kwargs_handlers=[limit])


def make(how=""):
    model = models.llama(initializer_range=0.15)
    return adapters.with_peft(model, lora_dropout=0.0) if how.endswith(LORA) else model


def prompts(rank):
    return torch.randint(5, 90, (2, 5 + rank), generator=torch.Generator().manual_seed(rank))


def asked(rank):
    """Ranks end at different times."""
    return {"max_new_tokens": NEW + 3 * rank, **SAMPLED}


def prepared(how, when, rank):
    """A forward, a step of training, a rollout; and the parameters behind the step."""
    outer, model = accelerator(how), make(how)
    if when == "before":
        accel.hybridize(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    model, optimizer = outer.prepare(model, torch.optim.SGD(learning, lr=LR))
    if when == "after":
        accel.hybridize(model)
    ids = prompts(rank)
    with torch.no_grad():
        found = {"logits": model(input_ids=ids).logits}
    loss = model(input_ids=ids, labels=ids).loss
    outer.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    roll = outer.unwrap_model(model).generate(ids, **asked(rank))
    state = {k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in model.state_dict().items()}
    found["state"] = {key.removeprefix("module."): value for key, value in state.items()}
    return {**found, "loss": loss.detach(), "roll": roll, "kind": type(model).__name__}


def main(folder):
    found = {}
    for how in SHARED_BY:
        for when in WHEN:
            found[how, when] = prepared(how, when, int(accelerator(how).process_index))
        AcceleratorState._reset_state()  # of which a process has one
    torch.save(found, Path(folder) / str(dist.get_rank()))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    leave()
