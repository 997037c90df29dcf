"""Gathering and releasing: nested, interrupted, by several threads, by whoever is registered."""

import threading
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from accel import ops
from accel.layers import gather
from accel.layers.gather import (
    PartitionedGatherer,
    gathered,
    register_gatherer,
    unregister_gatherer,
)
from accel.layers.tiled_linear import TiledLinear
from accel.layers.zero3 import LinearModuleForZeroStage3, zero3_linear_wrap


class Away:
    """Takes parameters' values away, and keeps a diary."""

    def __init__(self):
        self.values, self.diary = {}, []

    def take(self, *parameters):
        for parameter in parameters:
            self.values[parameter] = parameter.data
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    def knows(self, parameter):
        return parameter in self.values

    def absent(self, parameter):
        return parameter in self.values and parameter.numel() == 0

    def gather(self, parameter):
        self.diary.append("gather")
        parameter.data = self.values[parameter].clone()

    def release(self, parameter, modified):
        self.diary.append("release, modified" if modified else "release")
        if modified:
            self.values[parameter] = parameter.data
        parameter.data = torch.empty(0, dtype=parameter.dtype)


@pytest.fixture
def away():
    gatherer = Away()
    register_gatherer(gatherer)
    yield gatherer
    unregister_gatherer(gatherer)
    assert not gather._held


@pytest.fixture
def parameter(away):
    made = nn.Parameter(torch.ones(3, 2))
    away.take(made)
    return made


def test_values_are_there_in_the_block_and_away_after(away, parameter):
    with gathered(parameter, None):
        assert parameter.shape == (3, 2)
    assert parameter.numel() == 0
    assert away.diary == ["gather", "release"]


def test_the_last_of_nested_blocks_releases(away, parameter):
    with gathered(parameter):
        with gathered(parameter, parameter):
            pass
        assert parameter.numel() == 6
    assert away.diary == ["gather", "release"]


@pytest.mark.parametrize("inner", [False, True])
def test_what_a_block_wrote_is_kept(away, parameter, inner):
    with gathered(parameter, modify=not inner), gathered(parameter, modify=inner), torch.no_grad():
        parameter.fill_(7)
    assert away.diary == ["gather", "release, modified"]
    with gathered(parameter):
        assert parameter.eq(7).all()
    assert away.diary[-1] == "release"


def test_a_parameter_that_is_there_is_left_alone(away):
    there = nn.Parameter(torch.ones(2))
    with gathered(there, modify=True):
        pass
    assert there.numel() == 2
    assert not away.diary


def test_an_exception_releases(away, parameter):
    with pytest.raises(KeyError), gathered(parameter):
        raise KeyError
    assert parameter.numel() == 0


def test_a_failure_to_gather_one_releases_those_before(away, parameter, monkeypatch):
    second = nn.Parameter(torch.ones(2))
    away.take(second)
    gather_one = away.gather

    def fail(asked):
        if asked is second:
            raise RuntimeError("lost")
        gather_one(asked)

    monkeypatch.setattr(away, "gather", fail)
    with pytest.raises(RuntimeError, match="lost"), gathered(parameter, second):
        pass
    assert away.diary == ["gather", "release"]


def test_threads_share_what_is_gathered(away, parameter):
    entered, leave = threading.Event(), threading.Event()

    def work():
        with gathered(parameter):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    with gathered(parameter):
        pass
    assert parameter.numel() == 6
    leave.set()
    thread.join()
    assert away.diary == ["gather", "release"]


def test_who_registered_last_is_asked_first_and_who_left_no_more(away, parameter):
    other = Away()
    register_gatherer(other)
    other.values[parameter] = torch.zeros(1)
    with gathered(parameter):
        assert parameter.shape == (1,)
        unregister_gatherer(other)
    assert other.diary == ["gather", "release"], "it releases what it has gathered"
    with pytest.raises(ValueError, match="not in list"):
        unregister_gatherer(other)


@pytest.mark.parametrize("other", [3, None, PartitionedGatherer])
def test_what_gathers_nothing_is_not_registered(other, parameter):
    with pytest.raises(TypeError, match=r"an object with knows\(\).*release\(\); found"):
        register_gatherer(other)
    with gathered(parameter):
        pass


# -- in the layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_the_zero3_linear_gathers_where_it_reads(away, frozen):
    x, w = torch.randn(2, 3, requires_grad=not frozen), nn.Parameter(torch.randn(4, 3))
    with ops.use("*=torch", exact=False):
        want = torch.autograd.grad(zero3_linear_wrap(x, w).sum(), w)
        away.take(w)
        y = zero3_linear_wrap(x, w)
        assert away.diary == ["gather", "release"]
        away.gather(w)  # the engine takes gradients of what is there
        grads = torch.autograd.grad(y.sum(), w)
    torch.testing.assert_close(grads, want)


def test_a_backward_gathers_the_weight_and_releases_it(away):
    x, w = torch.randn(2, 3, requires_grad=True), nn.Parameter(torch.randn(4, 3))
    w.requires_grad_(False)
    with ops.use("*=torch", exact=False):
        y = zero3_linear_wrap(x, w)
        away.take(w)
        y.sum().backward()
    assert away.diary == ["gather", "release"]
    torch.testing.assert_close(x.grad, away.values[w].sum(0).expand(2, 3))


def test_copying_into_tiles_writes_back_and_reads_away_sources(away):
    source, tiled = nn.Linear(4, 4), TiledLinear(4, 4, in_splits=2, out_splits=2)
    weight, bias = source.weight.detach().clone(), source.bias.detach().clone()
    away.take(*tiled.parameters(), *source.parameters())
    tiled.copy_params_from(source)
    assert away.diary.count("release, modified") == 6
    assert all(p.numel() == 0 for p in (*tiled.parameters(), *source.parameters()))
    assert torch.equal(tiled.weight, weight)
    assert torch.equal(tiled.bias, bias)
    assert list(tiled.state_dict()) == [name for name, _ in tiled.named_parameters()]


# -- parameters that say themselves how ---------------------------------------------------------

Status = Enum("Status", "AVAILABLE NOT_AVAILABLE")


def test_a_partitioned_parameter_is_asked_by_its_attributes():
    calls = []
    parameter = SimpleNamespace(
        ds_id=3, ds_status=Status.NOT_AVAILABLE, all_gather=lambda: calls.append("all_gather"),
        partition=lambda has_been_updated: calls.append(has_been_updated),
    )  # fmt: skip
    known = PartitionedGatherer()
    assert known.absent(parameter)
    known.gather(parameter)
    known.release(parameter, False)
    known.release(parameter, True)
    assert calls == ["all_gather", False, True]
    parameter.ds_status = Status.AVAILABLE
    assert not known.absent(parameter)
    assert not known.absent(nn.Parameter(torch.ones(1)))


def test_what_no_gatherer_knows_compiles_whole(away):
    layer, x = LinearModuleForZeroStage3(3, 2), torch.randn(4, 3)
    register_gatherer(partitioned := PartitionedGatherer())
    try:
        y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
        y.sum().backward()
    finally:
        unregister_gatherer(partitioned)
    torch.testing.assert_close(y, layer(x))
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(2, 3))
