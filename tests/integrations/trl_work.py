"""What each of two processes does with GRPOTrainers: TRL's own path, and the engine's."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import trl_trainers as trainers
from joining import leave
from python_bytes import byte_model

import accel
from accel.integrations import trl as integration

PATHS = ["TRL's own", "hybridized", "attached"]
GREEDY = {"generation_kwargs": {"do_sample": False}}
LONG = {"max_completion_length": 64, "per_device_train_batch_size": 16, "num_generations": 4,
        "max_steps": 3}  # fmt: skip
# To which both ranks make the answers of one group.
ONE_PROMPT = {"num_generations": 4 * trainers.GROUP, "max_steps": 1}


def trained(folder, path, model, **settings):
    """The trainer behind its steps, the seconds it took to generate, and the first answers."""
    if path == "hybridized":
        accel.hybridize(model)
    trainer = trainers.trainer(folder, model, **settings)
    if path == "attached":
        trainer.attached = integration.attach(trainer)
    seconds, answers, generate = [], [], trainer._generate_single_turn

    def timed(*args, **kwargs):
        start = time.perf_counter()
        made = generate(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        answers.append(made[0])
        return made

    trainer._generate_single_turn = timed
    trainer.train()
    return trainer, seconds, answers[0]


def main(folder):
    folder, rank, found = Path(folder), None, {}
    for path in PATHS:
        trainer, *_ = trained(folder, path, trainers.model(), **GREEDY)
        rank = trainer.accelerator.process_index
        found["rewards", path] = trainers.logged(trainer, "reward")
        torch.manual_seed(0)
        _, seconds, _ = trained(folder, path, byte_model(258), **LONG)
        found["seconds", path] = min(seconds)
        *_, found["answers", path] = trained(folder, path, trainers.model(), **ONE_PROMPT)
        for updates in (1, 2):
            trainer, *_ = trained(folder, path, trainers.model(), num_iterations=updates)
            state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
            found["state", path, updates] = {key: value.clone() for key, value in state.items()}
        if path == "attached":
            found["old"] = trainer.attached.from_rollout, trainer.attached.computed
    torch.save(found, folder / str(rank))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    leave()
