"""Where sharding, shared products and what was hybridized before meet, on two ranks."""

import pickle
from datetime import timedelta

import pytest
import sharing
import torch
import torch.distributed as dist
from joining import joined
from sharing_ways import counting, said
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import accel

SHARED = {"inference_tp_size": 2}


def engine_of(name="odd llama fp32", **config):
    return accel.HybridEngine(sharing.made(name), config=config)


def one_raises(rank):
    """In the middle of a forward whose products are shared, and parameters by the same group: the
    other does not take what this one tells for its part of a product."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=4))
    mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("ranks",))
    engine, forwards = engine_of(**SHARED, inference_tp_group=group, shard=mesh), []

    def hook(module, given):
        forwards.append(module)
        if rank and len(forwards) == 3:
            raise ValueError("of one rank alone")

    engine.model.model.layers[1].register_forward_pre_hook(hook)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counting(dist.all_reduce, calls))
        error = said(lambda: engine.generate(*sharing.prompts(rank), **sharing.GREEDY))
    return error, len(calls)


def again(rank):
    """Hybridized as it was: the shards stay what they are."""
    engine = engine_of(shard=True)
    before = engine.generate(*sharing.prompts(rank), **sharing.SAMPLED)
    parameters = list(engine.model.parameters())
    accel.hybridize(engine.model, engine.config)
    same = all(one is two for one, two in zip(parameters, engine.model.parameters()))
    after = engine.generate(*sharing.prompts(rank), **sharing.SAMPLED)
    accel.restore(engine.model)
    return (
        same,
        torch.equal(before, after),
        said(lambda: accel.hybridize(engine.model, engine.config)),
    )


def refused(rank):
    """Nothing of the model's was changed."""
    found = []
    for shape, names in (((1, 1, 2), ("a", "b", "c")), ((1, 2), None), ((2,), ("a",))):
        differs = rank and names == ("a",)
        model = sharing.made("llama with PEFT fp32" if differs else "llama fp32")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        error = said(lambda m=model, to=mesh: accel.hybridize(m, {"shard": to}))
        found.append((error, any("forward" in vars(m) for m in model.modules())))
    replicas = DistributedDataParallel(sharing.made("llama fp32"))
    error = said(lambda: accel.HybridEngine(replicas, config={"shard": True}))
    found.append((error, any("forward" in vars(m) for m in replicas.modules())))
    return found


def from_a_file(rank):
    """A group is not, what is loaded finds consecutive ranks."""
    engine = engine_of(**SHARED, inference_tp_group=dist.new_group([0, 1]))
    other = pickle.loads(pickle.dumps(engine.model))
    given = sharing.prompts(rank)
    found = [m.generate(*given, **sharing.SAMPLED) for m in (engine.model, other)]
    return torch.equal(*found)


CASES = [again, refused, from_a_file, one_raises]


def work(rank, port, found):
    with joined(rank, port):
        torch.save({case.__name__: case(rank) for case in CASES}, found / str(rank))


@pytest.fixture(scope="module")
def found(in_two_processes):
    folder = in_two_processes(work)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


def test_one_that_raises_where_all_is_shared_says_why_and_the_other_hears(found):
    ((innocent, text), _), (guilty, calls) = (each["one_raises"] for each in found)
    assert guilty == ("ValueError", "of one rank alone")
    assert calls == 1, "all began; then it told nobody, who would take it for something else"
    assert innocent == "RankError"
    assert "a gather of activations" in text


@pytest.mark.parametrize("rank", range(2))
def test_hybridized_again_a_model_stays_sharded(found, rank):
    same, equal, behind = found[rank]["again"]
    assert same
    assert equal
    assert behind[0] == "ConfigError"
    assert "sharded already" in behind[1]


@pytest.mark.parametrize("rank", range(2))
def test_what_cannot_be_sharded_is_left_as_it_was(found, rank):
    kinds = [error[0] for error, _ in found[rank]["refused"]]
    assert kinds == ["ConfigError", "ConfigError", "UnsupportedModelError", "ConfigError"]
    assert "give the model that is in it (model.module)" in found[rank]["refused"][3][0][1]
    assert not any(changed for _, changed in found[rank]["refused"])


@pytest.mark.parametrize("rank", range(2))
def test_a_model_of_a_chosen_group_can_be_pickled(found, rank):
    assert found[rank]["from_a_file"]
