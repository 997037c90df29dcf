"""The same by TRL's GRPOTrainer, on a hybridized model: pip install trl, then
``python examples/grpo_trl.py``, or ``torchrun --nproc-per-node 2 examples/grpo_trl.py``.

A trainer takes a hybridized model's ``generate`` and forward as they are, but for the projection to
the vocabulary, where TRL has a head of its own. Attached, it has the engine's: what trains is then
bitwise what was sampled.
"""

import argparse
import tempfile
import warnings

import torch
from datasets import Dataset
from grpo import GROUP, NEW, PROMPTS, reward
from python_bytes import byte_model, functions, headers, read
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from trl import GRPOConfig, GRPOTrainer

import accel
from accel.integrations.trl import attach


def byte_tokenizer():
    """Tokens are bytes, by their own numbers; two more end an answer and pad a prompt."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    bare = Tokenizer(models.BPE(letters, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


def rewards(prompts, completion_ids, **_):
    """TRL's way to ask for rewards: one for each answer."""
    answers = [bytes(token for token in ids if token < 256) for ids in completion_ids]
    return [reward(prompt.encode(), answer) for prompt, answer in zip(prompts, answers)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reading", type=int, default=280, help="steps of reading")
    parser.add_argument("--steps", type=int, default=40, help="steps of GRPO")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore", SyntaxWarning)  # of what the model writes
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = byte_model(len(tokenizer))
    engine = accel.HybridEngine(model, config={"gradient_clipping": 1.0})  # hybridizes the model,
    for step, loss in enumerate(read(engine, functions(), args.reading, 120)):
        if step % 20 == 0:
            print(f"reading, step {step}: {loss:.2f} nats/byte", flush=True)
    # ... as attach does for those who need no engine.
    texts = [header.decode() for header in headers(functions())]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=GRPOConfig(
                output_dir=folder, report_to=[], save_strategy="no", logging_steps=1, bf16=False,
                use_cpu=model.device.type == "cpu", max_steps=args.steps, learning_rate=5e-4,
                warmup_steps=5, adam_beta2=0.95, gradient_checkpointing=False, temperature=1.0,
                top_k=0, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
                max_completion_length=NEW,
            ),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
        )  # fmt: skip
        attach(trainer)
        trainer.train()
    found = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    trainer.accelerator.print(f"reward of a step's answers: {found[0]:.3f} -> {found[-1]:.3f}")
    return trainer


if __name__ == "__main__":
    main()
