"""Graphs of the host: what was recorded computes again on what its arguments hold then."""

import gc
import operator
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import ops


@pytest.fixture
def acc(build_cache, monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "cpu")
    return accel.get_accelerator()


def captured(acc, work):
    """(the graph of ``work()``, what it returned)"""
    graph = acc.create_graph()
    with torch.no_grad(), acc.capture_to_graph(graph):
        made = work()
    return graph, made


def halves(x):
    left, right = x.chunk(2, dim=-1)
    return torch.cat([right, left], -1) * torch.tensor(3.0, dtype=x.dtype)


def written(x):
    y = torch.zeros_like(x)
    y[:, 1:3] = x[:, :2]
    y.index_copy_(1, torch.tensor([0]), x[:, 3:])
    return y


def indexed(x):
    y = x[torch.tensor([1, 0])]
    y[:, torch.tensor([2])] = 9.0
    return y


def kernels(x):
    w = torch.arange(24.0).view(6, 4)
    y = ops.linear(x, w, act="silu")
    return ops.softmax(ops.rms_norm(y)) + ops.embedding(torch.tensor([1, 2]), w).sum()


def written_to(x):
    y = x * 2
    y.flatten()[2:5].add_(1)
    return y


WORK = {
    "one": lambda x: x + 1,
    "views": lambda x: x.t().reshape(4, 2)[:, 1],
    "parts": halves,
    "in place": written,
    "indices": indexed,
    "kernels": kernels,
    "a tuple": lambda x: x.max(-1),
    "no tensors": lambda x: torch.arange(4.0) * x,
    "new tensors written to": lambda x: torch.zeros(2, 4).add_(x),
    "nested": lambda x: F.layer_norm(F.gelu(x), (4,)),
    "a module": lambda x: LINEAR(x),
    "the same": lambda x: x.to(x.dtype),
    "views of a view": lambda x: x.view(4, 2).t()[1:].unsqueeze(0).expand(3, -1, -1).flatten(1) + 1,
    "a view of what was made": lambda x: (x * 2).unflatten(0, (1, 2))[0, 1],
    "a view beside another": lambda x: (x[:, :1] * 2).expand_as(x * 3) + x,
    "a view written to": written_to,
}
LINEAR = nn.Linear(4, 3)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_replay_computes_again(acc, work):
    x = torch.arange(8.0).view(2, 4)
    graph, made = captured(acc, lambda: work(x))
    for value in (x.flip(1).clone(), x - 5):
        with torch.no_grad():
            x.copy_(value)
            acc.replay_graph(graph)
            want = work(value.clone())
        for one, other in zip(*[[t] if isinstance(t, torch.Tensor) else t for t in (made, want)]):
            assert torch.equal(one, other)


def test_weights_are_read_as_they_are_then(acc):
    layer, x = nn.Linear(4, 3), torch.ones(2, 4)
    graph, made = captured(acc, lambda: layer(x))
    for change in (
        lambda: layer.weight.data.fill_(2.0),
        lambda: setattr(layer.weight, "data", torch.ones(3, 4)),
    ):
        change()
        acc.replay_graph(graph)
        assert torch.equal(made, layer(x))


def test_what_lies_otherwise_by_then_is_seen_as_it_lies(acc):
    w = torch.arange(6.0).view(2, 3)
    graph, made = captured(acc, lambda: w.t() * 1)
    w.set_(torch.arange(12.0).view(3, 4).t()[1:3])  # as large, other strides, not from the first on
    acc.replay_graph(graph)
    assert torch.equal(made, w.t())


def test_what_counts_goes_on_counting(acc):
    """A capture runs its work here, as the accelerator says."""
    count = torch.zeros(())
    graph, _ = captured(acc, lambda: count.add_(1).mul_(2))
    assert acc.captures_run
    assert count == 2
    acc.replay_graph(graph)
    assert count == 6


def test_a_gradient_sees_what_was_written_through_a_view(acc):
    kept, p = torch.zeros(4), torch.ones(4, requires_grad=True)
    graph, _ = captured(acc, lambda: kept[1:].add_(1))
    y = (p * kept).sum()
    acc.replay_graph(graph)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # torch's will go
def test_views_of_tensors_of_another_kind_are_their_own(acc):
    q = torch.quantize_per_tensor(torch.randn(4, 6), 0.1, 0, torch.qint8)
    graph, made = captured(acc, lambda: q.view(6, 4).dequantize())
    acc.replay_graph(graph)
    assert torch.equal(made, q.view(6, 4).dequantize())


def stack(x, ids, w, table):
    """Kernels, an operation of torch's that is large, and kernels again."""
    h = ops.rms_norm(ops.linear(x, w, act="gelu"))
    h = ops.linear(h, w) + ops.embedding(ids, table)
    large = torch.outer(h.flatten(), h.flatten()).sum(1).view_as(h)
    return ops.gated_linear(ops.linear(h, w), w, w) + ops.linear(large, w)


def stacked(width=512):
    """Its arguments."""
    x, w, table = torch.randn(3, width), torch.randn(width, width) / width, torch.randn(9, width)
    return x, torch.tensor([8, 0, 1]), w, table


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_that_stay_compute_the_same(acc, count):
    torch.manual_seed(0)
    x, *rest = stacked()
    torch.set_num_threads(count)
    graph, made = captured(acc, lambda: stack(x, *rest))
    for _ in range(30):
        x.normal_()
        acc.replay_graph(graph)
        with torch.no_grad():
            assert torch.equal(made, stack(x, *rest))


def test_what_fails_beside_them_says_so_and_may_be_mended(acc):
    x, ids, *rest = stacked()
    torch.set_num_threads(2)
    graph, made = captured(acc, lambda: stack(x, ids, *rest))
    ids[1] = 9
    with pytest.raises(IndexError, match="9"):
        acc.replay_graph(graph)
    ids[1] = 2
    acc.replay_graph(graph)
    with torch.no_grad():
        assert torch.equal(made, stack(x, ids, *rest))


def test_graphs_of_two_threads_of_python_have_threads_each(acc):
    def work(number):
        torch.set_num_threads(2)
        x, *rest = stacked()
        graph, made = captured(acc, lambda: stack(x, *rest))
        for _ in range(50):
            x.normal_()
            acc.replay_graph(graph)
            with torch.no_grad():
                assert torch.equal(made, stack(x, *rest))
        return number

    torch.set_num_threads(2)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [0, 1]


def test_random_numbers_are_drawn_anew(acc):
    graph, made = captured(acc, lambda: torch.rand(8))
    first = made.clone()
    torch.manual_seed(3)
    acc.replay_graph(graph)
    torch.manual_seed(3)
    assert torch.equal(made, torch.rand(8))
    assert not torch.equal(made, first)


def test_only_what_somebody_holds_is_kept(acc):
    x, lost = torch.ones(4), []
    kept = weakref.ref(x)

    def work(x):
        passing = x * 2
        lost.append(weakref.ref(passing))
        return passing + 1

    graph, made = captured(acc, partial(work, x))
    gc.collect()
    assert lost[0]() is None
    x.fill_(5)
    del x
    acc.replay_graph(graph)
    assert made.tolist() == [11] * 4
    del graph
    gc.collect()
    assert kept() is None


def test_reading_a_value_is_refused(acc):
    x = torch.ones(4)
    for read in (lambda: x.sum().item(), lambda: bool((x > 0).all()), lambda: torch.equal(x, x)):
        with pytest.raises(RuntimeError, match="reads a tensor's values on the host"):
            captured(acc, read)


def test_after_an_exception_nothing_is_recorded_any_more(acc):
    x, graph = torch.zeros(4), acc.create_graph()
    with pytest.raises(TypeError, match="unsupported"), acc.capture_to_graph(graph):
        operator.add(x.add_(1), None)
    acc.replay_graph(graph)
    assert x.tolist() == [1] * 4
    again, _ = captured(acc, lambda: x.add_(1))
    acc.replay_graph(again)
    assert x.tolist() == [3] * 4


def test_a_graph_in_a_graph_is_refused(acc):
    with pytest.raises(RuntimeError, match="recorded in this thread already"):
        captured(acc, lambda: captured(acc, torch.rand))


def test_an_operation_that_fails_says_so(acc):
    x, w = torch.ones(2, 4), torch.ones(3, 4)
    graph, _ = captured(acc, lambda: x @ w.t())
    w.set_(torch.ones(3, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        acc.replay_graph(graph)


def test_a_graph_dropped_while_another_is_recorded_is_no_part_of_it(acc):
    """As Python's collector may drop one at any time; the second replay found it gone."""
    others = [captured(acc, lambda: torch.ones(1))]
    x = torch.ones(3)

    def work():
        others.clear()
        return x + 1

    graph, made = captured(acc, work)
    for value in (2.0, 5.0):
        x.fill_(value)
        acc.replay_graph(graph)
        assert torch.equal(made, torch.full((3,), value + 1))
