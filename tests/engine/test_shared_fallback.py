"""What ranks that share a model or a rollout cannot be served is transformers' to answer, and what
begins beside a rollout, or is interrupted before one, leaves the others in no doubt."""

import signal
import threading
import time

import adapters
import models
import pytest
import torch
from joining import joined
from measures import seeded
from sharing_ways import said
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import accel
from accel.deepspeed import DeepSpeedHybridEngine

PATIENCE = 40  # seconds a process group waits; a test that needs as many has found a hang
BEAMS = {"num_beams": 2, "max_new_tokens": 5, "do_sample": False, "fallback": "transformers"}
GREEDY = {"max_new_tokens": 9, "do_sample": False}
SHARED = {"inference_tp_size": 2}
BY_LAYER = {"pin_parameters": False, "tp_gather_partition_size": 1}
ALL = {"max_new_tokens": 5, "do_sample": False}


def adapted():
    return adapters.with_peft(models.llama(initializer_range=0.15), lora_dropout=0.0)


def sharded():
    """The wrapper is the root."""
    model = adapted()
    for part in (*next(m for m in model.modules() if isinstance(m, nn.ModuleList)), model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    return model


def prompts(rank):
    return seeded((2, 5 + rank), seed=rank)


# -- falling back ------------------------------------------------------------------------------


def one_of_two(rank, config):
    """One rank asks for beams, the other makes rather more tokens, or fewer."""
    engine, found = accel.HybridEngine(sharded(), config=config), []
    planned = engine.plan.gathering
    for beams in range(2):
        found.append(engine.generate(prompts(rank), **(BEAMS if rank == beams else GREEDY)))
        assert engine.plan.gathering.policy == planned.policy
    return found


def both(rank, config):
    engine = accel.HybridEngine(sharded(), config=config)
    given = prompts(rank)[: 0 if rank else 2]  # one has no prompts
    synced = {**BEAMS, "synced_gpus": True}  # for which transformers has messages of its own
    return engine.generate(prompts(rank), **BEAMS), engine.generate(given, **synced)


def under_deepspeeds_names(rank):
    """Whose engine draws a seed for the stream before it knows."""
    engine, asked = DeepSpeedHybridEngine(None, sharded()), (GREEDY, BEAMS)
    found = [engine.generate(prompts(rank), **asked[rank])]
    config = {"hybrid_engine": {"enabled": True, "inference_tp_size": 2}}
    engine = DeepSpeedHybridEngine(None, adapted(), config=config)
    found.append(engine.generate(prompts(rank), **BEAMS))
    return found


def of_shared_rollouts(rank):
    """All are refused, then one alone, who gives embeddings."""
    engine = accel.HybridEngine(adapted(), config=SHARED)
    found, ids = [engine.generate(prompts(rank), **BEAMS)], prompts(rank)
    alike = {**ALL, "fallback": "transformers"}
    embeds = engine.plan.model.get_input_embeddings()(ids).detach()
    given = {"inputs_embeds": embeds} if rank else {"input_ids": ids}
    found.append(engine.generate(**given, **alike))
    found.append(engine.generate(ids, **alike))
    for none in (ids[:0], None):
        found.append(engine.generate(none if rank else ids, **BEAMS))
    return found


def on_one_only(rank):
    """Where ranks make one rollout, they are asked for one thing."""
    engine, ids = accel.HybridEngine(adapted(), config=SHARED), prompts(rank)
    beams = {**BEAMS, "fallback": "transformers" if rank else None}
    errors = [said(lambda: engine.generate(ids, **beams))]
    ours = {**BEAMS, "seed": 1} if rank else BEAMS
    errors.append(said(lambda: engine.generate(ids, **ours)))
    return errors, engine.generate(ids, **GREEDY)


# -- beside a rollout, and before it -----------------------------------------------------------


def a_second_thread(rank, make, config):
    """In the midst of a forward, on one rank: nothing is said to the other."""
    engine, ids, heard = accel.HybridEngine(make(), config=config), prompts(rank), []

    def beside(*_):
        if not heard and rank == 0:
            heard.append(None)
            thread = threading.Thread(
                target=lambda: heard.append(said(lambda: engine.generate(ids, **GREEDY)))
            )
            thread.start()
            thread.join(PATIENCE / 2)

    layers = next(m for m in engine.model.modules() if isinstance(m, nn.ModuleList))
    layers[1].register_forward_pre_hook(beside)
    first = engine.generate(ids, **GREEDY)
    return first, heard[1:], engine.generate(ids, **GREEDY)


class Interrupted(list):
    """Somebody presses Ctrl-C when it is read."""

    def __iter__(self):
        # Of what a shell runs in the background it is ignored, and Python then leaves it so.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)
        return super().__iter__()


def ctrl_c(rank, make, config):
    engine, ids = accel.HybridEngine(make(), config=config), prompts(rank)
    samples = Interrupted([0, 1]) if rank else [0, 1]
    began = time.monotonic()
    try:
        error = said(lambda: engine.generate(ids, sample_ids=samples, do_sample=True))
    except KeyboardInterrupt:
        error = ("KeyboardInterrupt", "")
    return error, time.monotonic() - began, engine.generate(ids, **GREEDY)


SHARDED = {"all": {}, "layer": BY_LAYER}
WAYS = {"sharded": (sharded, {}), "by layer": (sharded, BY_LAYER), "products": (adapted, SHARED)}


def work(rank, port, folder):
    with joined(rank, port, seconds=PATIENCE):
        found = {case.__name__: case(rank)
                 for case in (under_deepspeeds_names, of_shared_rollouts, on_one_only)}  # fmt: skip
        found |= {(case.__name__, how): case(rank, config)
                  for case in (one_of_two, both) for how, config in SHARDED.items()}  # fmt: skip
        found |= {(case.__name__, how): case(rank, *given)
                  for case in (a_second_thread, ctrl_c) for how, given in WAYS.items()}  # fmt: skip
        torch.save(found, folder / str(rank))


@pytest.fixture(scope="module")
def found(in_two_processes):
    folder = in_two_processes(work)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


def theirs(rank, **asked):
    """What transformers answers, with the whole model."""
    settings = {name: value for name, value in asked.items() if name != "fallback"}
    return adapted().generate(input_ids=prompts(rank), **settings)


def alone(rank):
    return accel.HybridEngine(adapted()).generate(prompts(rank), **GREEDY)


@pytest.mark.parametrize("how", SHARDED)
@pytest.mark.parametrize("rank", range(2))
def test_one_of_those_that_share_parameters_may_fall_back(found, rank, how):
    for beams, made in enumerate(found[rank]["one_of_two", how]):
        assert torch.equal(made, theirs(rank, **BEAMS) if rank == beams else alone(rank))


@pytest.mark.parametrize("how", SHARDED)
@pytest.mark.parametrize("rank", range(2))
def test_all_may_and_one_of_them_without_prompts(found, rank, how):
    made, some = found[rank]["both", how]
    assert torch.equal(made, theirs(rank, **BEAMS))
    assert torch.equal(some, theirs(rank, **BEAMS)) if rank == 0 else some.shape == (0, 6)


@pytest.mark.parametrize("rank", range(2))
def test_so_do_they_under_deepspeeds_names(found, rank):
    sharded, shared = found[rank]["under_deepspeeds_names"]
    assert torch.equal(sharded, theirs(rank, **BEAMS) if rank else alone(rank))
    assert torch.equal(shared, theirs(rank, **BEAMS))


@pytest.mark.parametrize("rank", range(2))
def test_those_that_make_one_rollout_fall_back_together(found, rank):
    beams, refused_one, served, *some = found[rank]["of_shared_rollouts"]
    assert torch.equal(beams, theirs(rank, **BEAMS))
    want = theirs(rank, **ALL)
    assert torch.equal(refused_one, want[:, -5:] if rank else want)
    assert torch.equal(served, accel.HybridEngine(adapted()).generate(prompts(rank), **ALL))
    if rank:
        assert [tuple(made.shape) for made in some] == [(0, 6), (0, 0)]
    else:
        assert all(torch.equal(made, beams) for made in some)


def test_one_that_falls_back_by_itself_is_told_apart(found):
    for rank in range(2):
        (unasked, ours), tokens = found[rank]["on_one_only"]
        assert unasked[0] == ("RankError" if rank else "UnsupportedCapability")
        assert "num_beams" in unasked[1]
        assert ours[0] == ("UnsupportedCapability" if rank else "RankError")
        assert "which does not take seed" in ours[1]
        assert torch.equal(tokens, alone(rank))


@pytest.mark.parametrize("how", WAYS)
def test_a_second_call_is_refused_where_it_is_and_the_first_goes_on(found, how):
    for rank in range(2):
        first, heard, again = found[rank]["a_second_thread", how]
        assert torch.equal(first, alone(rank))
        assert torch.equal(again, alone(rank))
        if rank == 0:
            ((kind, text),) = heard
            assert kind == "UnsupportedCapability"
            assert "used by another call of generate, in another thread" in text


@pytest.mark.parametrize("how", WAYS)
def test_ctrl_c_before_a_rollout_ends_all_at_once(found, how):
    for rank, kind in enumerate(("RankError", "KeyboardInterrupt")):
        error, seconds, again = found[rank]["ctrl_c", how]
        assert error[0] == kind
        assert seconds < PATIENCE / 2
        assert torch.equal(again, alone(rank))
