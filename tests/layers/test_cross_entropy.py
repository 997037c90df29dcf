"""tiled_cross_entropy beside torch's own, which holds all logits."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st

import accel
from accel import layers, testing
from accel.contracts import LOGPROB
from accel.errors import OpArgumentError
from accel.layers import cross_entropy
from accel.layers.cross_entropy import TiledCrossEntropy, tiled_cross_entropy

F64, F32 = torch.float64, torch.float32
IGNORED = -100


@pytest.fixture(autouse=True)
def _torch_serves():
    with testing.installed(testing.fake_backend()), accel.ops.use(exact=False):
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of three tokens of 11 logits."""
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 3 * 11 * 4)


def head(rows=(7,), hidden=5, vocabulary=11, *, bias=True, ignored=0, dtype=F64):
    generator = torch.Generator().manual_seed(len(rows) + 7 * ignored)
    drawn = lambda *shape: torch.randn(shape, dtype=F64, generator=generator).to(dtype)  # noqa: E731
    targets = torch.randint(vocabulary, rows, generator=generator)
    targets.view(-1)[:ignored] = IGNORED
    x, w, b = drawn(*rows, hidden), drawn(vocabulary, hidden), drawn(vocabulary) if bias else None
    return x.requires_grad_(), w.requires_grad_(), targets, b.requires_grad_() if bias else None


def plain(x, w, targets, b=None, *, scale=1.0, softcap=None, **options):
    z = F.linear(x, w, b) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    values = F.cross_entropy(z.flatten(0, -2) if z.dim() > 1 else z, targets.flatten(), **options)
    return values.reshape(targets.shape) if options.get("reduction") == "none" else values


def leaves(x, w, targets, b):
    return [t for t in (x, w, b) if t is not None and t.requires_grad]


def gradients(loss, *args):
    value = loss(*args)
    return value, torch.autograd.grad((value * 1.7).sum(), leaves(*args))


@given(
    rows=st.sampled_from([(1,), (7,), (2, 3), (3, 1, 4)]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    ignored=st.integers(0, 1), bias=st.booleans(), scale=st.sampled_from([1.0, 0.3]),
    softcap=st.sampled_from([None, 1.5]), tokens=st.integers(1, 8),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_is_cross_entropy_of_the_logits(rows, reduction, ignored, bias, scale, softcap, tokens):
    args = head(rows, bias=bias, ignored=min(ignored, torch.Size(rows).numel() - 1))
    options = {"reduction": reduction, "scale": scale, "softcap": softcap}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "BLOCK_BYTES", tokens * 11 * 4)
        ours = gradients(lambda *a: tiled_cross_entropy(*a, **options), *args)
    theirs = gradients(lambda *a: plain(*a, **options), *args)
    assert_agree(ours[0], theirs[0])
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert_agree(one, other)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("small_blocks")
def test_in_lower_precision_it_is_within_the_budget_of_logprob(dtype):
    args = head((4, 9), dtype=dtype)
    exact = [
        t if t is None else t.detach().to(F64 if t.is_floating_point() else t.dtype) for t in args
    ]
    exact = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in exact]
    (value, found), (wanted, right) = (
        gradients(tiled_cross_entropy, *args),
        gradients(plain, *exact),
    )
    assert value.dtype == F32
    budget = LOGPROB.tolerance
    assert abs(value.item() - wanted.item()) <= budget[F32].peak * abs(wanted.item())
    for one, other in zip(found, right, strict=True):
        assert one.dtype == dtype
        error = (one.to(F64) - other).abs()
        # Up to four roundings deep, as every gradient.
        assert error.max() <= 4 * budget[dtype].peak * other.square().mean().sqrt()


def test_where_no_target_counts_the_mean_is_nan_and_nothing_flows():
    args = head(ignored=7)
    value, found = gradients(tiled_cross_entropy, *args)
    assert value.isnan()
    assert value.isnan() == plain(*args).isnan()
    assert not any(g.any() for g in found)


def test_each_weight_gets_one_gradient_however_many_blocks(small_blocks):
    x, w, targets, b = head((20,))
    arrivals = []
    w.register_hook(arrivals.append)
    tiled_cross_entropy(x, w, targets, b).backward()
    assert len(arrivals) == 1


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=3)))
def test_only_what_is_asked_for_gets_a_gradient(frozen, small_blocks):
    x, w, targets, b = head()
    for one, still in zip((x, w, b), frozen):
        one.requires_grad_(not still)
    if all(frozen):
        assert not tiled_cross_entropy(x, w, targets, b).requires_grad
        return
    ours = gradients(tiled_cross_entropy, x, w, targets, b)[1]
    for one, other in zip(ours, gradients(plain, x, w, targets, b)[1], strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_backward_gives_the_same(small_blocks):
    x, w, targets, b = head()
    loss = tiled_cross_entropy(x, w, targets, b)
    first = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, (x, w, b)), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_can_be_differentiated(small_blocks):
    x, w, targets, b = head((4,), hidden=3, vocabulary=5)
    loss = lambda x, w, b: tiled_cross_entropy(x, w, targets, b)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (x, w, b))
    assert torch.autograd.gradgradcheck(loss, (x, w, b))


def test_under_functorch_and_compile_it_is_the_same():
    x, w, targets, b = (t.detach() for t in head())
    wanted = torch.func.grad(lambda w: plain(x, w, targets, b))(w)
    found = torch.func.grad(lambda w: tiled_cross_entropy(x, w, targets, b))(w)
    torch.testing.assert_close(found, wanted)
    compiled = torch.compile(tiled_cross_entropy, backend="aot_eager", fullgraph=True)
    w.requires_grad_()
    compiled(x, w, targets, b).backward()
    torch.testing.assert_close(w.grad, wanted)


def test_its_value_is_the_one_that_logprob_scores_with():
    x, w, targets, b = head(dtype=F32)
    tokens = tiled_cross_entropy(x, w, targets, b, reduction="none")
    assert torch.equal(tokens, -accel.ops.logprob(x, targets, w, b)[0])


def test_a_head_in_one_module_shares_the_weight_of_a_linear():
    linear = torch.nn.Linear(5, 11)
    module = TiledCrossEntropy.from_linear(linear, softcap=2.0)
    assert module.weight is linear.weight
    assert module.bias is linear.bias
    x, _, targets, _ = head(dtype=F32)
    wanted = plain(x, linear.weight, targets, linear.bias, softcap=2.0)
    torch.testing.assert_close(module(x, targets), wanted)
    torch.manual_seed(3)
    fresh = layers.TiledCrossEntropy(5, 11, bias=True)
    torch.manual_seed(3)
    other = torch.nn.Linear(5, 11)
    assert torch.equal(fresh.weight, other.weight)
    with pytest.raises(TypeError, match=r"takes a torch.nn.Linear, not ReLU"):
        TiledCrossEntropy.from_linear(torch.nn.ReLU())
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {
        k: v.shape for k, v in other.state_dict().items()
    }
    assert set(module.explain()) == {"linear", "logprob"}


def test_bad_input_is_refused():
    x, w, targets, b = head()
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none"):
        tiled_cross_entropy(x, w, targets, b, reduction="average")
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none"):
        TiledCrossEntropy(3, 5, reduction="average")
    with pytest.raises(TypeError, match=r"targets must be a torch\.Tensor, not list"):
        tiled_cross_entropy(x, w, targets.tolist(), b)
    with pytest.raises(OpArgumentError, match="last dimension"):
        tiled_cross_entropy(x[:, :4], w, targets, b)
    with pytest.raises(OpArgumentError, match="ids must be"):
        tiled_cross_entropy(x, w, targets[:3], b)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        tiled_cross_entropy(x, w, targets + 11, b)
    with pytest.raises(OpArgumentError, match="softcap must be more than 0"):
        tiled_cross_entropy(x, w, targets, b, softcap=-1.0)
