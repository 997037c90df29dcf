"""GRPO as one plain loop: a byte-level Llama reads Python, then is rewarded for writing it.

    python examples/grpo.py

It continues headers of functions, is told how many statements of each answer parse, and learns from
that. One engine trains and generates with one set of weights, so the log-probabilities that
``generate`` returns are those of the training forward, bit for bit. Nothing here names a device.
"""

import argparse
import ast
import copy
import random
import time
import warnings

import torch
from python_bytes import byte_model, functions, headers, read

import accel

PROMPTS, GROUP, NEW = 8, 8, 96  # prompts of a step, answers to each, bytes of an answer
SAMPLING = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0}
CLIP, KL = 0.2, 0.02  # how far a step may go; what distance from the reference costs
RATE = 1e-3


def padded(prompts, device):
    """Token ids and mask ``[B, P]``, padded left."""
    wide = max(map(len, prompts))
    ids = [[0] * (wide - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (wide - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def reward(prompt, answer):
    """How many different statements an answer has, out of four: of its lines up to the last with
    which the function parses. An expression that is no call does nothing, and does not count."""
    lines = answer.split(b"\n")[:-1]  # the last one was cut off
    for count in range(len(lines), 0, -1):
        try:
            tree = ast.parse(prompt + b"\n".join(lines[:count]))
        except (SyntaxError, ValueError):
            continue
        simple = (n for n in ast.walk(tree) if isinstance(n, ast.stmt) and not hasattr(n, "body"))
        acts = (n for n in simple if not isinstance(n, ast.Expr) or isinstance(n.value, ast.Call))
        return min(len(set(map(ast.dump, acts))) / 4, 1.0)
    return 0.0


def rollout(engine, prompts, group, seed=None):
    """``group`` answers to each prompt, and their rewards ``[prompts, group]``."""
    ids, mask = padded(prompts, engine.model.device)
    asked = {**SAMPLING, "num_return_sequences": group, "seed": seed}
    roll = engine.generate(ids, mask, return_logprobs=True, **asked)
    answers = map(bytes, roll.sequences[:, -NEW:].tolist())
    found = [reward(prompts[row // group], answer) for row, answer in enumerate(answers)]
    return roll, torch.tensor(found, device=ids.device).view(-1, group)


def improve(engine, reference, prompts, steps, seconds=60.0, seed=0):
    """GRPO; yields each step's mean reward, and the largest difference between log-probabilities of
    the rollout and of the training forward, which is 0."""
    engine.optimizer = torch.optim.AdamW(engine.model.parameters(), weight_decay=0.0)
    start, drawn = time.perf_counter(), random.Random(seed)
    for step in range(steps):
        done = max(step / steps, (time.perf_counter() - start) / seconds)
        if step and done >= 1:
            break
        engine.optimizer.param_groups[0]["lr"] = RATE * (1 - 0.8 * done)
        roll, rewards = rollout(engine, drawn.sample(prompts, PROMPTS), GROUP)
        gain = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 0.01)
        gain, given = gain.view(-1, 1), (roll.sequences, roll.attention_mask)
        with torch.no_grad():
            wanted = reference.logprobs(*given)[:, -NEW:]
        found = engine.logprobs(*given)[:, -NEW:]
        ratio, apart = (found - roll.logprobs).exp(), wanted - found
        terms = KL * (apart.exp() - apart - 1)
        terms = terms - torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
        engine.backward((terms * roll.response_mask).sum() / roll.response_mask.sum())
        engine.step()
        yield rewards.mean().item(), (found.detach() - roll.logprobs).abs().max().item()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reading", type=int, default=280, help="steps of reading")
    parser.add_argument("--steps", type=int, default=60, help="steps of GRPO")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore", SyntaxWarning)  # of what the model writes
    torch.manual_seed(0)
    model = byte_model().to(accel.get_accelerator().device())
    engine = accel.HybridEngine(model, config={"gradient_clipping": 1.0})
    texts = functions()
    prompts = headers(texts)
    unseen = sorted({*headers(functions(held_out=True))} - {*prompts})[::10]
    for step, loss in enumerate(read(engine, texts, args.reading)):
        if step % 20 == 0:
            print(f"reading, step {step}: {loss:.2f} nats/byte", flush=True)
    before = rollout(engine, unseen, 4, seed=0)[1].mean().item()
    reference = accel.HybridEngine(copy.deepcopy(model))
    for step, (mean, apart) in enumerate(improve(engine, reference, prompts, args.steps)):
        if step % 5 == 0:
            print(f"step {step}: reward {mean:.3f}, max |delta logprob| {apart:g}", flush=True)
    after = rollout(engine, unseen, 4, seed=0)[1].mean().item()
    print(f"reward on {len(unseen)} prompts it was never trained on: {before:.3f} -> {after:.3f}")


if __name__ == "__main__":
    main()
