"""What a transformer layer keeps for its backward: less by each flag, and no other values."""

import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformer_twin import FLAGS, config, drawn, made, saved_bytes

from accel.layers.transformer import TransformerFunction

pytestmark = pytest.mark.usefixtures("torch_serves")

EVERY = [c for n in range(4) for c in itertools.combinations(FLAGS, n)]
HALVES = [torch.float32, torch.bfloat16]


def run(flags, dtype=torch.float32, **settings):
    """(bytes kept, result, gradients) of one forward and backward; the same for all flags."""
    rates = {"attn_dropout_ratio": 0.2, "hidden_dropout_ratio": 0.1}
    layer = made(config(**(rates | settings), **dict.fromkeys(flags, True)), dtype)
    x = drawn(3, 17, 8, dtype=dtype).requires_grad_()
    mask = drawn(3, 1, 1, 17, dtype=dtype)
    torch.manual_seed(3)
    kept, y = saved_bytes(layer, lambda: layer(x, mask))
    return kept, y, torch.autograd.grad(y, [x, *layer.parameters()], drawn(3, 17, 8, dtype=dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pre_layer_norm", [True, False])
@pytest.mark.parametrize("flags", EVERY[1:], ids="+".join)
def test_each_flag_saves_bytes_and_changes_no_value(flags, pre_layer_norm, dtype, within_budget):
    """Bitwise; but what is recovered from a norm's result is so but for a rounding."""
    most, y, grads = run((), dtype, pre_layer_norm=pre_layer_norm)
    less, same, found = run(flags, dtype, pre_layer_norm=pre_layer_norm)
    size = dtype.itemsize
    activation = 3 * 17 * 12 * size
    rows, root = 3 * 17 * 8 * size, 3 * 17 * 4
    # Of two norms: two inputs less, and where norms are last one result more, the layer's own.
    inputs = (2 if pre_layer_norm else 1) * rows - 2 * root
    saved = dict(zip(FLAGS, (inputs, activation, 0)))  # probabilities are never kept
    assert most - less == sum(saved[flag] for flag in flags)
    assert torch.equal(y, same)
    if "normalize_invertible" not in flags:
        assert all(torch.equal(one, other) for one, other in zip(grads, found, strict=True))
    else:
        wide = tuple(grad.double() for grad in grads)
        within_budget("transformer_layer", found, wide, gradients=True)


def test_nothing_but_arguments_is_kept_by_the_function():
    layer = made(config(), torch.float32)
    x = drawn(2, 5, 8, dtype=torch.float32).requires_grad_()
    apply = lambda: TransformerFunction.apply(  # noqa: E731
        x, None, layer, None, 0, *layer.parameters(), layer.config
    )
    assert saved_bytes(layer, apply)[0] == x.nbytes


def test_nothing_is_kept_and_no_probability_made_where_nothing_is_recorded():
    layer = made(config(), torch.float32)
    x = drawn(2, 5, 8, dtype=torch.float32)
    with torch.no_grad():
        assert saved_bytes(layer, lambda: layer(x))[0] == 0


def test_a_norm_s_weight_of_zero_cannot_be_inverted():
    layer = made(config(normalize_invertible=True))
    with torch.no_grad():
        layer.norm_w[3] = 0
    with pytest.raises(RuntimeError, match="normalize_invertible divides by the norm's weight"):
        layer(drawn(2, 5, 8))


@pytest.mark.parametrize("flags", [(), FLAGS], ids=["plain", "flagged"])
def test_an_eval_between_a_forward_and_its_backward_changes_nothing(flags):
    layer = made(config(hidden_dropout_ratio=0.3, **dict.fromkeys(flags, True)))
    x, weights = drawn(2, 5, 8), list(layer.parameters())
    torch.manual_seed(3)
    want = torch.autograd.grad(layer(x).sum(), weights)
    torch.manual_seed(3)
    y = layer(x).sum()
    with torch.no_grad():
        layer.eval()(x)
    layer(drawn(1, 3, 8)).sum()
    layer.train()
    found = torch.autograd.grad(y, weights, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(found, want))
    again = torch.autograd.grad(y, weights)
    assert all(torch.equal(one, other) for one, other in zip(again, want))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("flags", [(), FLAGS], ids=["plain", "flagged"])
def test_activation_checkpointing_drops_the_same_elements_again(flags, reentrant):
    rates = {"attn_dropout_ratio": 0.3, "hidden_dropout_ratio": 0.3}
    layer = made(config(**rates, **dict.fromkeys(flags, True)))
    x, weights = drawn(2, 5, 8).requires_grad_(), list(layer.parameters())
    torch.manual_seed(3)
    layer(x).square().sum().backward()
    want = [weight.grad.clone() for weight in weights]
    layer.zero_grad()
    torch.manual_seed(3)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(weight.grad, one) for weight, one in zip(weights, want))
