"""A model that two processes share, or four, trains and generates as it does in one."""

import models
import pytest
import torch
from agreement import gamma
from joining import joined
from test_sharded_rollouts import GATHERED, same_rollout

import accel

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NAMES = [name + lora for name in ("llama", "qwen3", "gpt2", "opt") for lora in ("", " with LoRA")]
ROWS, LENGTH, STEPS, NEW = 4, 9, 3, 6
# Loss and gradients are means over as many tokens, whichever of them come first.
ROUNDINGS = 16
SUMS = torch.__version__ < "2.13"  # through gloo fully_shard of torch 2.8 adds, and averages not

# Of the model of PEFT's that has other names for its projections.
TARGETS = {"opt": {"target_modules": ["q_proj", "v_proj", "fc1"]}}


def engine_of(name, **config):
    name, _, lora = name.partition(" ")
    model = models.small(name, initializer_range=0.15) if name != "opt" else models.small(name)
    if lora:
        model = models.with_lora(model, lora_dropout=0.0, **TARGETS.get(name, {}))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    return accel.HybridEngine(model, optimizer, config)


def batch(step, rows):
    drawn = torch.Generator().manual_seed(step)
    return torch.randint(5, 90, (ROWS, LENGTH), generator=drawn)[rows]


def losses(engine, rows):
    found = []
    for step in range(STEPS):
        ids = batch(step, rows)
        found.append(engine.backward(engine(ids, labels=ids).loss).item())
        engine.step()
    return found


def asked(rows):
    """Prompts of several lengths; answers drawn, of which some end early."""
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[1, :4] = 0
    mask[3, :2] = 0
    settings = {"max_new_tokens": NEW, "do_sample": True, "seed": 3, "eos_token_id": [*range(30)]}
    return (batch(9, rows), mask[rows]), {**settings, "pad_token_id": 0, "return_logprobs": True}


def rolled(engine, rows):
    (ids, mask), settings = asked(rows)
    return engine.generate(ids, mask, **settings)


def work(rank, port, folder, world):
    with joined(rank, port, world):
        for name in NAMES:
            rows = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
            engine = engine_of(name, shard=True)
            before = rolled(engine, rows)
            lost = losses(engine.train(), rows)
            after = {}
            for how, settings in GATHERED.items():
                other = accel.HybridEngine(engine.model, config=settings)
                after[how] = rolled(other, rows)
                scored = other.logprobs(after[how].sequences, after[how].attention_mask)
                assert torch.equal(scored[:, -after[how].logprobs.shape[1] :], after[how].logprobs)
            whole = {key: value.full_tensor() for key, value in engine.model.state_dict().items()}
            torch.save((before, lost, after, whole), folder / f"{name}.{rank}")


@pytest.fixture(scope="module", params=[2, 4])
def found(in_processes, request):
    """(how many, a folder with what each made)"""
    return request.param, in_processes(work, request.param, request.param)


def made(found, name):
    world, folder = found
    return [torch.load(folder / f"{name}.{rank}", weights_only=False) for rank in range(world)]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_one_process(found, name):
    alone = losses(engine_of(name).train(), slice(None))
    together = [sum(of_all) / len(of_all) for of_all in zip(*(m[1] for m in made(found, name)))]
    if SUMS:  # steps on other gradients
        alone, together = alone[:1], together[:1]
    assert together == pytest.approx(alone, rel=gamma(torch.float32, ROUNDINGS))


@pytest.mark.parametrize("name", NAMES)
def test_rollouts_are_those_of_one_process_bit_for_bit(found, name):
    world, _ = found
    for rank, (before, _, after, whole) in enumerate(made(found, name)):
        rows = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
        engine = engine_of(name)
        assert same_rollout(before, rolled(engine, rows))
        engine.model.load_state_dict(whole)
        want = rolled(engine, rows)
        for how in GATHERED:
            assert same_rollout(after[how], want)
