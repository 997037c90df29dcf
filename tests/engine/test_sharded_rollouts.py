"""Two processes that share a model generate until the last of their answers has ended, whoever ends
first and however parameters are gathered, and each gets what it would get alone."""

import adapters
import models
import pytest
import torch
from joining import joined
from measures import seeded
from test_exactness import same_bits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import accel
from accel.engine.cache import BUCKET
from accel.errors import CapacityError, UnsupportedCapability

EVERY_TOKEN = list(range(models.VOCAB))
ROOM = 2 * 2 * 2 * 16 * 4 * BUCKET  # of a sequence: keys, values; layers, heads, fp32
SAMPLED = {"do_sample": True, "seed": 1, "max_new_tokens": 9}


def plain():
    return models.llama(initializer_range=0.15)


def adapted():
    return adapters.with_peft(plain(), lora_dropout=0.0)


# Who makes the model, how the engine is configured, and what each rank asks for: its rows first.
CASES = {
    "one ends at once": (
        plain, {}, [(2, {"eos_token_id": EVERY_TOKEN, **SAMPLED}), (2, SAMPLED)]
    ),
    "the other does": (plain, {}, [(1, SAMPLED), (3, {"eos_token_id": EVERY_TOKEN, **SAMPLED})]),
    "rows leave": (plain, {}, [(4, {"eos_token_id": EVERY_TOKEN[::7], **SAMPLED}),
                               (4, {"eos_token_id": EVERY_TOKEN[::9], **SAMPLED})]),
    "other lengths": (plain, {}, [(2, {**SAMPLED, "max_new_tokens": 2}), (2, SAMPLED)]),
    "more waves": (plain, {"kv_cache_bytes": 2 * ROOM}, [(1, SAMPLED), (5, SAMPLED)]),
    "checked": (plain, {"check_exact": True, "micro_batch_size": 1}, [(1, SAMPLED), (3, SAMPLED)]),
    "aborted": (plain, {"check_exact": True}, [(2, {"abort": lambda: True, **SAMPLED}),
                                               (2, SAMPLED)]),
    "adapters": (adapted, {}, [(2, {**SAMPLED, "adapter": None}), (2, SAMPLED)]),
    "fused": (adapted, {"exact": False, "fuse_lora": True},
              [(2, {**SAMPLED, "max_new_tokens": 3}), (2, SAMPLED)]),
    "int8": (plain, {"exact": False, "rollout_weights": "int8"},
             [(2, {**SAMPLED, "max_new_tokens": 3}), (2, SAMPLED)]),
}  # fmt: skip
# How parameters are gathered, and what the plan calls it.
GATHERED = {
    "all": {},
    "groups": {"pin_parameters": False, "tp_gather_partition_size": 3},
    "prefetch": {"pin_parameters": False, "tp_gather_partition_size": 2},
    "layer": {"pin_parameters": False, "tp_gather_partition_size": 1},
}

OFTEN = ("all", "layer")  # every case; the others: test_sharded_equal


def rolled(model, case, rank, how=None):
    _, config, asked = CASES[case]
    rows, asked = asked[rank]
    engine = accel.HybridEngine(model, config={**config, **GATHERED.get(how, {})})
    roll = engine.generate(seeded((rows, 7), seed=rank), return_logprobs=True, **asked)
    if how is not None:
        assert engine.plan.gathering.policy == how
        assert all(hasattr(p, "device_mesh") for p in model.parameters()), "apart again"
    return roll


def sharded(make, mesh):
    model = make()
    inner = model if make is plain else model.base_model.model
    for layer in inner.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(inner, mesh=mesh)
    return model


def short_of_memory(*given):
    raise torch.OutOfMemoryError("out of memory")


def work(rank, port, found):
    with joined(rank, port):
        mesh = init_device_mesh("cpu", (2,))
        made = {
            (case, how): rolled(sharded(CASES[case][0], mesh), case, rank, how)
            for case in CASES
            for how in OFTEN
        }
        for how in OFTEN:
            engine = accel.HybridEngine(sharded(plain, mesh), config=GATHERED[how])
            asked = seeded((0 if rank else 2, 7), seed=5)  # one has no prompts
            made["none", how] = engine.generate(asked, return_logprobs=True, **SAMPLED)
            other = accel.HybridEngine(fully_shard(plain(), mesh=mesh), config=GATHERED[how])
            made["one unit", how] = other.generate(
                seeded((2, 7), seed=5), return_logprobs=True, **SAMPLED
            )
        with pytest.raises(UnsupportedCapability, match=r"is sharded over processes.*whether"):
            engine.generate(seeded((1, 4)), max_new_tokens=2, reuse_prefix=True)
        engine.plan.model.model.layers[1].register_forward_pre_hook(short_of_memory)
        with pytest.raises(CapacityError, match="once"):  # others would wait for another gathering
            engine.generate(seeded((1, 4)), max_new_tokens=2)
        torch.save(made, found / str(rank))


@pytest.fixture(scope="module")
def found(in_two_processes):
    return in_two_processes(work)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_gets_what_it_would_get_alone(found, case, rank):
    made = torch.load(found / str(rank), weights_only=False)
    want = rolled(CASES[case][0](), case, rank)
    for how in OFTEN:
        assert same_rollout(made[case, how], want)


def same_rollout(one, other):
    return (
        torch.equal(one.sequences, other.sequences)
        and torch.equal(one.attention_mask, other.attention_mask)
        and same_bits(one.logprobs, other.logprobs)
    )


@pytest.mark.parametrize("how", OFTEN)
def test_a_process_without_prompts_gets_none_and_a_model_may_be_one_unit(found, how):
    some, none = (torch.load(found / str(r), weights_only=False)["none", how] for r in (0, 1))
    assert none.sequences.shape == (0, 7)
    want = accel.HybridEngine(plain()).generate(
        seeded((2, 7), seed=5), return_logprobs=True, **SAMPLED
    )
    assert same_rollout(some, want)
    assert same_rollout(torch.load(found / "1", weights_only=False)["one unit", how], want)
