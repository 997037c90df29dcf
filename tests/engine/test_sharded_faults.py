"""What goes wrong on one of the processes that share a model ends on all of them, by a clear error,
and in time."""

import os
import signal
import time

import adapters
import models
import pytest
import torch
from joining import join, joined
from measures import seeded
from torch.distributed.device_mesh import init_device_mesh

import accel
from accel.errors import CapacityError, OpArgumentError, RankError, UnsupportedModelError

PATIENCE = 20  # seconds a process group waits; a test that needs as many has found a hang
NEW = {"max_new_tokens": 12, "return_logprobs": True}
BY_LAYER = {"pin_parameters": False, "tp_gather_partition_size": 1}


def plain():
    return models.llama(initializer_range=0.15)


def engine_of(make=plain, **config):
    return accel.HybridEngine(make(), config={"shard": True, **config})


def outcome(action):
    """The kind of error and what it says; None if there is none."""
    began = time.monotonic()
    try:
        action()
    except Exception as error:
        return type(error), str(error), time.monotonic() - began
    return None


def raising(at, error):
    """A logits processor that fails at one token."""

    def process(ids, scores):
        if ids.shape[1] == at:
            raise error
        return scores

    return [process]


# -- errors of one rank ------------------------------------------------------------------------


def bad_prompts(rank, engine):
    return outcome(lambda: engine.generate(seeded((2, 7)).float() if rank else seeded((2, 7))))


def too_long(rank, engine):
    return outcome(lambda: engine.generate(seeded((2, 250 if rank else 7)), **NEW))


def no_such_adapter(rank, engine):
    return outcome(lambda: engine.generate(seeded((2, 7)), adapter="mine" if rank else None, **NEW))


def midway(rank, engine):
    failing = raising(10, ValueError("a processor's own")) if rank else None
    return outcome(lambda: engine.generate(seeded((2, 7)), logits_processor=failing, **NEW))


def behind_the_others(rank, engine):
    failing = raising(15, ValueError("a processor's own")) if rank else None
    asked = {**NEW, "max_new_tokens": 12 if rank else 2}
    return outcome(lambda: engine.generate(seeded((2, 7)), logits_processor=failing, **asked))


OF_ONE = {
    bad_prompts: OpArgumentError, too_long: CapacityError, no_such_adapter: ValueError,
    midway: ValueError, behind_the_others: ValueError,
}  # fmt: skip
GATHERED = {"all": {}, "layer": BY_LAYER}


def errors_of_one(rank):
    """Of each fault what it was, and whether all generate as before behind it."""
    found = {}
    for how, config in GATHERED.items():
        engine = engine_of(**config)
        want = engine.generate(seeded((2, 7)), **NEW).sequences
        for fault in OF_ONE:
            said = fault(rank, engine)
            again = engine.generate(seeded((2, 7)), **NEW).sequences
            found[fault.__name__, how] = said, torch.equal(again, want)
    return found


def models_that_differ(rank):
    """An adapter on one rank only: where the engine shards, and where somebody else has."""

    def make():
        return adapters.with_peft(plain()) if rank else plain()

    found = [outcome(lambda: accel.HybridEngine(make(), config={"shard": True}))]
    model = make()
    from torch.distributed.fsdp import fully_shard

    inner = model.base_model.model if rank else model
    for part in (*inner.model.layers, inner):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    engine = accel.HybridEngine(model)
    found.append(outcome(lambda: engine.generate(seeded((2, 7)), **NEW)))
    return found


def work(rank, port, folder):
    with joined(rank, port, seconds=PATIENCE):
        found = errors_of_one(rank), models_that_differ(rank)
        torch.save(found, folder / str(rank))


@pytest.fixture(scope="module")
def found(in_two_processes):
    folder = in_two_processes(work)
    return [torch.load(folder / str(rank), weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("how", GATHERED)
@pytest.mark.parametrize("fault", OF_ONE, ids=lambda fault: fault.__name__)
def test_an_error_of_one_rank_ends_all_by_name_at_once_and_harms_nothing(found, fault, how):
    (innocent, text, seconds), well = found[0][0][fault.__name__, how]
    assert innocent is RankError
    assert "rank 1 failed in generate" in text
    assert seconds < PATIENCE / 2
    (guilty, text, _), also_well = found[1][0][fault.__name__, how]
    assert issubclass(guilty, OF_ONE[fault])
    assert not issubclass(guilty, RankError)
    assert well
    assert also_well


@pytest.mark.parametrize("rank", [0, 1])
def test_an_adapter_on_one_rank_only_is_refused_on_all(found, rank):
    for kind, text, seconds in found[rank][1]:
        assert kind is UnsupportedModelError
        assert "do not have the same parameters" in text
        assert seconds < PATIENCE / 2


# -- processes that die ------------------------------------------------------------------------


def dying_at(at):
    def process(ids, scores):
        if ids.shape[1] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return scores

    return [process]


def dies_between_tokens(rank, engine):
    dying = dying_at(10) if rank else None
    return lambda: engine.generate(seeded((2, 7)), logits_processor=dying, **NEW)


def dies_in_a_gather(rank, engine):
    if rank:  # when the other is in the layer's gather, or about to be
        layer = engine.plan.model.model.layers[1]
        layer.register_forward_pre_hook(lambda *_: os._exit(1), prepend=True)
    return lambda: engine.generate(seeded((2, 7)), **NEW)


def dies_before(rank, engine):
    if rank:
        os._exit(1)
    return lambda: engine.generate(seeded((2, 7)), **NEW)


def never_comes(rank, engine):
    if rank:
        time.sleep(2 * SHORT)
        os._exit(1)
    return lambda: engine.generate(seeded((2, 7)), **NEW)


def dies_in_training(rank, engine):
    if rank:
        layer = engine.plan.model.model.layers[1]
        layer.register_forward_pre_hook(lambda *_: os._exit(1), prepend=True)
    return lambda: engine(seeded((2, 7)), labels=seeded((2, 7)))


SHORT = 3  # seconds of patience where the group's timeout is what ends it
DEATHS = [dies_between_tokens, dies_in_a_gather, dies_before, never_comes, dies_in_training]


def live_and_die(rank, port, folder, death, config):
    join(rank, port, seconds=SHORT if death is never_comes else PATIENCE)
    engine = engine_of(**config)
    engine.generate(seeded((1, 4)), max_new_tokens=2)
    found = outcome(death(rank, engine))
    apart = all(hasattr(p, "device_mesh") for p in engine.model.parameters())
    torch.save((found, apart), folder / str(rank))
    os._exit(0)  # the group cannot be left in order any more


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", GATHERED)
@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.__name__)
def test_a_rank_that_dies_ends_the_others(in_processes, death, how):
    folder = in_processes(live_and_die, 2, death, GATHERED[how], mortal=True)
    (kind, text, seconds), apart = torch.load(folder / "0", weights_only=False)
    assert kind is RankError
    assert "rank 0 waited" in text
    assert seconds < PATIENCE
    assert apart or death is dies_in_training  # where FSDP2 leaves what it has gathered
