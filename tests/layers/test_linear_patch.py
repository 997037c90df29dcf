"""The ZeRO-3 linear in torch's place: in a block, in a thread, in a model, and then no more."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accel import ops
from accel.errors import AccelWarning
from accel.layers.linear import Linear
from accel.layers.patching import memory_efficient_linear, use_zero3_linear

OURS = "LinearFunctionForZeroStage3Backward"


@pytest.fixture(autouse=True)
def torch_serves():
    with ops.use("*=torch", exact=False):
        yield


@pytest.fixture(autouse=True)
def _nothing_stays_behind():
    before = F.linear
    yield
    assert F.linear is before


def served(module):
    """Whether the module computes by the ZeRO-3 linear."""
    return made_by_ours(module(torch.ones(2, 3)))


def made_by_ours(y):
    return type(y.grad_fn).__name__ == OURS


# -- a block -----------------------------------------------------------------------------------


def test_in_the_block_torch_s_linear_is_ours_and_after_it_is_the_very_one_again():
    before, linear = F.linear, nn.Linear(3, 2)
    with memory_efficient_linear():
        assert served(linear)
        assert made_by_ours(F.linear(torch.ones(2, 3), linear.weight, bias=linear.bias))
    assert F.linear is before
    assert not served(linear)


def test_an_exception_ends_the_block_too():
    before = F.linear
    with pytest.raises(KeyError), memory_efficient_linear():
        raise KeyError
    assert F.linear is before


def test_blocks_nest():
    linear = nn.Linear(3, 2)
    with memory_efficient_linear():
        with memory_efficient_linear():
            assert served(linear)
        assert served(linear)
    assert not served(linear)


def test_another_thread_is_not_in_the_block():
    linear, found = nn.Linear(3, 2), []
    with memory_efficient_linear():
        thread = threading.Thread(target=lambda: found.append(served(linear)))
        thread.start()
        thread.join()
        assert served(linear)
    assert found == [False]


def test_blocks_of_two_threads_may_end_in_any_order():
    linear, before, found = nn.Linear(3, 2), F.linear, []
    entered, leave = threading.Event(), threading.Event()

    def work():
        with memory_efficient_linear():
            entered.set()
            leave.wait()
            found.append(served(linear))

    thread = threading.Thread(target=work)
    with memory_efficient_linear():
        thread.start()
        entered.wait()
    assert not served(linear)
    assert F.linear is not before, "the other block is open"
    leave.set()
    thread.join()
    assert found == [True]


def test_who_patched_before_is_put_back_and_asked_outside_the_block():
    calls, torch_s = [], F.linear

    def theirs(input, weight, bias=None):
        calls.append(1)
        return torch_s(input, weight, bias)

    linear, integers = nn.Linear(3, 2), torch.ones(2, 3, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", theirs)
        with memory_efficient_linear():
            assert served(linear)
            assert not calls
            F.linear(integers, integers)
            assert calls == [1], "what the op does not serve is served by what was there"
        assert F.linear is theirs


def test_a_vector_for_a_weight_and_a_bias_to_expand_are_left_to_torch():
    x, w, one = torch.randn(2, 3), torch.randn(4, 3), torch.ones(1)
    with memory_efficient_linear():
        found = F.linear(x, w[0]), F.linear(x, w, one)
    assert torch.equal(found[0], F.linear(x, w[0]))
    assert torch.equal(found[1], F.linear(x, w, one))


def replaced_inside(linear):
    """Somebody's replacement of torch's linear, made in a block, and what it replaced."""
    with memory_efficient_linear():
        ours = F.linear

        def theirs(input, weight, bias=None):
            return ours(input, weight, bias)

        F.linear = theirs
        assert served(linear)
    return theirs, ours


def test_who_patched_inside_stays_with_a_warning_and_meets_torch_s_after():
    linear, torch_s = nn.Linear(3, 2), F.linear
    with pytest.warns(AccelWarning, match="replaced by .*theirs.* stays"):
        theirs, ours = replaced_inside(linear)
    assert F.linear is theirs
    assert not served(linear)
    F.linear = ours  # as they put back what they had found
    with memory_efficient_linear():
        assert F.linear is ours, "and is taken up again rather than wrapped"
        assert served(linear)
    assert F.linear is torch_s


def test_a_compiled_model_computes_as_torch_inside():
    torch.compiler.reset()
    linear = nn.Linear(3, 2)
    with memory_efficient_linear():
        got = torch.compile(linear, backend="aot_eager", fullgraph=True)(torch.ones(2, 3))
    torch.testing.assert_close(got, linear(torch.ones(2, 3)))


# -- a model -----------------------------------------------------------------------------------


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def model():
    return nn.ModuleDict(
        {"plain": nn.Linear(3, 2), "head": nn.Linear(3, 2), "own": Own(3, 2), "mine": Linear(3, 2)}
    )


def test_the_plain_layers_of_one_model_are_served_and_then_no_more():
    one, other = model(), model()
    before = {name: dict(m.__dict__) for name, m in one.items()}
    undo = use_zero3_linear(one, skip=lambda name, linear: name == "head")
    assert [name for name, m in one.items() if served(m)] == ["plain"]
    assert not any(served(m) for m in other.values())
    assert list(one.state_dict()) == list(other.state_dict())
    undo()
    undo()
    assert not served(one["plain"])
    assert {name: dict(m.__dict__) for name, m in one.items()} == before


def test_hooks_fire_and_values_are_torch_s():
    linear, seen = nn.Linear(3, 2), []
    x = torch.randn(4, 3)
    want = linear(x)
    linear.register_forward_hook(lambda *args: seen.append(1))
    use_zero3_linear(linear)
    assert torch.equal(linear(x), want)
    assert seen == [1]


def test_copies_and_pickles_compute_by_their_own_weights():
    whole = nn.Sequential(nn.Linear(3, 2))
    use_zero3_linear(whole)
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert served(other)
        with torch.no_grad():
            other[0].weight.zero_()
        assert torch.equal(other(torch.ones(1, 3))[0], other[0].bias)


def test_a_forward_replaced_since_stays_with_a_warning():
    linear = nn.Linear(3, 2)
    undo = use_zero3_linear(linear)
    linear.forward = lambda x: x
    with pytest.warns(AccelWarning, match="was replaced after"):
        undo()
    x = torch.ones(1, 3)
    assert linear(x) is x
