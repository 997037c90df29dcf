"""Four ranks: more than heads of keys, as tensor and data ranks, and one of them dies."""

import os

import models
import pytest
import sharing
import torch
from joining import join, joined
from sharing_ways import said
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import accel

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NAMES = [
    f"{name} {dtype}"
    for name in (*models.EVERY, *sharing.ODD_ONES, "llama with PEFT", "gpt2 with PEFT",
                 "opt with Chat")
    if name not in ("odd gpt2", "odd gpt_neox")  # which have three heads
    for dtype in sharing.DTYPES
]  # fmt: skip
# Of two data ranks one has much longer answers.
LONGER = [{"max_new_tokens": 3}, {"max_new_tokens": 9}]


def work(rank, port, found):
    with joined(rank, port, 4, 300):
        made = {name: sharing.rolled(name, rank, 4) for name in NAMES}
        made["shards"] = of_two_and_two(rank)
        made["one cannot"] = one_cannot(rank)
        made["seeds"] = seeds(rank)
        torch.save(made, found / str(rank))


def of_two_and_two(rank):
    """Parameters are shared by all; tensor ranks are pairs of them, and pairs do not wait."""
    model = sharing.made("odd llama bf16")
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (4,)))
    engine = accel.HybridEngine(model, config={"inference_tp_size": 2, "check_exact": True})
    asked = {**sharing.SAMPLED, "eos_token_id": None, **LONGER[rank // 2]}
    roll = engine.generate(*sharing.prompts(rank), return_logprobs=True, **asked)
    return roll, asked


def one_cannot(rank):
    """Of all that share parameters, one's prompts are refused: the other pair hears of it too, and
    the next rollout is the same one for all."""
    model = sharing.made("odd llama fp32")
    config = {"inference_tp_size": 2, "shard": True}
    engine, ids = accel.HybridEngine(model, config=config), sharing.prompts(0)[0]
    error = said(lambda: engine.generate(ids if rank else ids.float(), max_new_tokens=2))
    roll = engine.generate(*sharing.prompts(rank), return_logprobs=True, **sharing.SAMPLED)
    return error, roll


def seeds(rank):
    """Of a group's ranks one, of groups others, though torch's are all alike."""
    engine = accel.HybridEngine(sharing.made("llama fp32"), config={"inference_tp_size": 2})
    torch.manual_seed(5)
    asked = {**sharing.SAMPLED, "seed": None}
    return engine.generate(*sharing.prompts(0), return_logprobs=True, **asked).seed


@pytest.fixture(scope="module")
def found(in_processes):
    folder = in_processes(work, 4)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(4)]


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("name", NAMES)
def test_each_of_four_gets_what_it_would_get_alone_to_the_bit(found, name, rank):
    roll, scored = found[rank][name]
    assert torch.equal(scored, roll.logprobs)
    sharing.same_rollout(roll, sharing.rolled(name, rank, 1)[0])


@pytest.mark.parametrize("rank", range(4))
def test_pairs_share_products_while_all_share_parameters(found, rank):
    roll, asked = found[rank]["shards"]
    alone = accel.HybridEngine(sharing.made("odd llama bf16"))
    want = alone.generate(*sharing.prompts(rank), return_logprobs=True, **asked)
    sharing.same_rollout(roll, want)


def test_all_that_share_parameters_hear_of_a_rank_that_cannot_take_part(found):
    kinds = [found[rank]["one cannot"][0][0] for rank in range(4)]
    assert kinds == ["OpArgumentError", "RankError", "RankError", "RankError"]
    alone = accel.HybridEngine(sharing.made("odd llama fp32"))
    for rank in range(4):
        want = alone.generate(*sharing.prompts(rank), return_logprobs=True, **sharing.SAMPLED)
        sharing.same_rollout(found[rank]["one cannot"][1], want)


def test_groups_draw_other_seeds(found):
    one, two, three, four = (found[rank]["seeds"] for rank in range(4))
    assert one == two != three == four


# -- a rank that dies --------------------------------------------------------------------------


def dying(rank, port, found):
    join(rank, port, 4, 60)
    engine = accel.HybridEngine(sharing.made("odd llama fp32"), config={"inference_tp_size": 4})
    forwards = []

    def hook(module, given):
        forwards.append(module)
        if rank == 2 and len(forwards) == 4:
            os._exit(9)

    engine.model.model.layers[0].register_forward_pre_hook(hook)
    try:
        engine.generate(*sharing.prompts(rank), **sharing.GREEDY)
    except accel.errors.RankError as error:
        (found / str(rank)).write_text(str(error))
    os._exit(0)  # what is left of the group would wait


def test_where_one_dies_the_others_are_told(in_processes):
    folder = in_processes(dying, 4, mortal=True)
    told = {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(told) == ["0", "1", "3"]
    for rank, message in told.items():
        assert f"rank {rank} waited for" in message
