"""A wrapper around the model may be what ``fully_shard`` was called on last, the root, which holds
the parameters around the layers: PEFT's, as Accelerate prepares it, or one with a value head."""

import copy
import pickle

import adapters
import models
import pytest
import sharing
import torch
from agreement import gamma
from joining import joined
from measures import seeded
from sharing_ways import said
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import accel

SAMPLED = {"do_sample": True, "seed": 1, "return_logprobs": True}
GATHERED = {
    "all": {},
    "prefetch": {"pin_parameters": False, "tp_gather_partition_size": 2},
    "layer": {"pin_parameters": False, "tp_gather_partition_size": 1},
}  # fmt: skip
WHEN = ["before", "after"]  # it is hybridized before it is sharded, or after


class WithValues(nn.Module):
    """As trainers of PPO have it, with a head of its own, which is a unit beside the model."""

    def __init__(self, model):
        super().__init__()
        self.v_head = nn.Linear(64, 1)
        self.pretrained_model = model

    def forward(self, *args, **kwargs):
        return self.pretrained_model(*args, **kwargs)


def adapted(name):
    return adapters.with_peft(models.small(name), lora_dropout=0.0)


def valued():
    torch.manual_seed(3)
    return WithValues(models.llama(initializer_range=0.15))


MAKERS = {
    "llama": lambda: adapted("llama"), "gpt2": lambda: adapted("gpt2"), "value head": valued,
}  # fmt: skip


def sharded(wrapper, policy=None):
    """By layers, and the rest with the wrapper."""
    given = {"mesh": init_device_mesh("cpu", (2,)), "mp_policy": policy or MixedPrecisionPolicy()}
    for layer in next(m for m in wrapper.modules() if isinstance(m, nn.ModuleList)):
        fully_shard(layer, **given)
    if hasattr(wrapper, "v_head"):
        fully_shard(wrapper.v_head, **given)
    return fully_shard(wrapper, **given)


def asked(rank):
    """Ranks end at different times."""
    return seeded((2, 5 + rank), seed=rank), {"max_new_tokens": 4 + 3 * rank, **SAMPLED}


def trained(engine, rank):
    """What a rollout gave, the loss of a step, and a rollout behind it with what scores it."""
    ids, settings = asked(rank)
    before = engine.generate(ids, **settings)
    loss = engine(ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    with torch.no_grad():
        engine(ids)  # leaves gathered what the root has
    after = engine.generate(ids, **settings)
    whole = {hasattr(p, "device_mesh") for p in engine.model.parameters()}
    assert len(whole) == 1, "all is apart again"
    return before, loss.detach(), after, engine.logprobs(after.sequences).detach()


def engine_of(model, config=None):
    learning = [p for p in model.parameters() if p.requires_grad]
    return accel.HybridEngine(model, torch.optim.SGD(learning, lr=0.5), config)


def in_whole(model):
    state = model.state_dict()
    return {key: getattr(v, "full_tensor", lambda v=v: v)() for key, v in state.items()}


def hybridized(rank, name, how, when):
    model = MAKERS[name]()
    if when == "before":
        accel.hybridize(model, GATHERED[how])
    engine = engine_of(sharded(model), GATHERED[how])
    made = trained(engine, rank)
    assert engine.plan.gathering.policy == how
    return made, in_whole(model)


def without_an_engine(rank):
    """Hybridized once, before there are shards; the model inside generates first of all."""
    model, (ids, settings) = adapted("llama"), asked(rank)
    accel.hybridize(model)
    inner = sharded(model).base_model.model
    return inner.generate(ids, **settings)


def in_half(rank):
    """Which the policy of sharding says: gathered layer by layer."""
    model, (ids, settings) = MAKERS["llama"](), asked(rank)
    engine = accel.HybridEngine(sharded(model, MixedPrecisionPolicy(torch.bfloat16)))
    roll = engine.generate(ids, **settings)
    assert engine.plan.gathering.policy != "all"
    rounding = MixedPrecisionPolicy(torch.bfloat16, output_dtype=torch.bfloat16)
    refused = said(lambda: accel.hybridize(sharded(MAKERS["llama"](), rounding)))
    return roll, engine.logprobs(roll.sequences).detach(), refused


def the_model_inside(rank):
    """Its parameters are away, or were gathered at some time: it is refused, then the wrapper is
    not, which has not changed."""
    found, (ids, settings) = [], asked(rank)
    early = adapted("llama")
    accel.hybridize(early.base_model.model)
    inner = sharded(early).base_model.model
    for gathered in (False, True):
        if gathered:
            with torch.no_grad():
                early(ids)  # leaves gathered what the root has
        for take in (lambda: accel.hybridize(inner), lambda: inner.generate(ids, **settings)):
            found.append(said(take))
    accel.hybridize(early)
    return found, inner.generate(ids, **settings)


def work(rank, port, folder):
    with joined(rank, port):
        found = {case: hybridized(rank, *case) for case in CASES} | {
            case.__name__: case(rank) for case in (without_an_engine, in_half, the_model_inside)
        }
        torch.save(found, folder / str(rank))


OFTEN = ("all", "layer")
CASES = [(name, how, "after") for name in MAKERS for how in OFTEN]
CASES += [("llama", "prefetch", "after"), *(("llama", how, "before") for how in OFTEN)]


@pytest.fixture(scope="module")
def found(in_two_processes):
    folder = in_two_processes(work)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_wrapper_that_is_the_root_trains_and_generates_as_one_process(found, case, rank):
    (before, loss, after, scored), state = found[rank][case]
    ids, settings = asked(rank)
    alone = engine_of(MAKERS[case[0]]())
    sharing.same_rollout(before, alone.generate(ids, **settings))
    # Logits are bitwise alike; torch's mean over them is not (2.8: a bit, by where they lie).
    whole = alone(ids, labels=ids)
    summed = gamma(torch.float32, whole.logits.numel())
    assert loss.item() == pytest.approx(whole.loss.item(), rel=summed)
    alone.model.load_state_dict(state)
    sharing.same_rollout(after, alone.generate(ids, **settings))
    assert not torch.equal(after.logprobs, before.logprobs), "it has learned something"
    assert torch.equal(scored[:, -after.logprobs.shape[1] :], after.logprobs)


@pytest.mark.parametrize("rank", range(2))
def test_a_rollout_may_be_the_first_that_runs(found, rank):
    ids, settings = asked(rank)
    want = accel.HybridEngine(adapted("llama")).generate(ids, **settings)
    sharing.same_rollout(found[rank]["without_an_engine"], want)


@pytest.mark.parametrize("rank", range(2))
def test_the_dtype_is_that_of_the_sharding(found, rank):
    roll, scored, refused = found[rank]["in_half"]
    assert torch.equal(scored[:, -roll.logprobs.shape[1] :], roll.logprobs)
    ids, settings = asked(rank)
    half = adapted("llama")
    for parameter in half.parameters():  # of buffers no policy says anything
        parameter.data = parameter.data.bfloat16()
    sharing.same_rollout(roll, accel.HybridEngine(half).generate(ids, **settings))
    assert refused[0] == "UnsupportedModelError"
    assert "output_dtype=bfloat16 (leave output_dtype None, or set exact=False)" in refused[1]


@pytest.mark.parametrize("rank", range(2))
def test_the_model_inside_is_refused_by_itself(found, rank):
    refusals, roll = found[rank]["the_model_inside"]
    for kind, text in refusals:
        assert kind == "UnsupportedModelError"
        assert "embed_tokens.weight and 2 more" in text
        assert "accel.hybridize(wrapper)" in text
    ids, settings = asked(rank)
    sharing.same_rollout(roll, accel.HybridEngine(adapted("llama")).generate(ids, **settings))


def test_a_copy_knows_its_own_wrapper_and_a_model_alone_none():
    model = adapted("llama")
    accel.hybridize(model)
    other = copy.deepcopy(model)
    inner = other.base_model.model
    assert inner.generate.outer.of(inner) is other
    for alone in (copy.deepcopy(inner), pickle.loads(pickle.dumps(inner))):
        assert alone.generate.outer.of(alone) is alone
        assert isinstance(alone, type(inner))
