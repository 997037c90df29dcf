"""A small GRPOTrainer over tokens that are bytes, and a reward that anybody can count."""

import sys
from pathlib import Path

import models
import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from grpo_trl import byte_tokenizer

PROMPTS = ["def f(x):", "a", "while True:\n", "# what"] * 4
GROUP, NEW = 2, 8


def reward(completion_ids, **_):
    """The share of even tokens."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def model(**config):
    tokenizer = byte_tokenizer()
    return models.llama(vocab_size=len(tokenizer), initializer_range=0.15, **config)


def trainer(folder, model, **settings):
    """Two prompts to a batch and process, two answers to each."""
    usual = {
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "logging_steps": 1,
        "max_steps": 2, "learning_rate": 1e-3, "gradient_checkpointing": False, "temperature": 1.0,
        "top_k": 0, "per_device_train_batch_size": 2 * GROUP, "num_generations": GROUP,
        "max_completion_length": NEW, "disable_tqdm": True, "shuffle_dataset": False,
    }  # fmt: skip
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(folder), **{**usual, **settings}),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=byte_tokenizer(),
    )


def scripted(trainer):
    """Answers are drawn ahead, of different lengths, whatever the model says."""
    drawn = torch.Generator().manual_seed(trainer.accelerator.process_index)

    def answers(prompt_ids, *_):
        lengths = torch.randint(1, NEW + 1, (len(prompt_ids),), generator=drawn).tolist()
        return [torch.randint(250, (n,), generator=drawn).tolist() for n in lengths], None

    trainer._generate_single_turn = answers


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
