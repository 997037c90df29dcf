"""Attention that goes on: what a workspace keeps, gives back and never mixes up."""

import pytest
import torch
from agreement import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_cases import context

import accel
from accel import testing
from accel.errors import CapacityError, OpArgumentError
from accel.layers.inference import InferenceConfig, SoftmaxContextOp, WorkspaceOp

F64 = torch.float64
HEADS, KV, SIZE = 4, 2, 6
SETTINGS = {"rotary_dim": 4, "max_out_tokens": 12}


@pytest.fixture(autouse=True)
def _torch_serves():
    with testing.installed(testing.fake_backend()), accel.ops.use(exact=False):
        yield


def made(workspace=None, **more):
    return SoftmaxContextOp(InferenceConfig(dtype=F64, **SETTINGS, **more), workspace)


def tokens(count, seed=0, batch=2):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, (HEADS + 2 * KV) * SIZE, generator=rng, dtype=F64)


def step(op, qkv, layer=0, mask=None, alibi=None, **more):
    return op(qkv, mask, HEADS, KV, 0.6, mask is None, layer, 1, alibi, **more)


def whole(qkv, mask=None, alibi=None, **more):
    """(context, keys, values) of all tokens at once."""
    mask, alibi = (None if t is None else t.numpy() for t in (mask, alibi))
    return context({**SETTINGS, **more}, qkv.numpy(), mask, HEADS, KV, 0.6, mask is None, alibi)


def assert_equal(found, want):
    for one, other in zip(found, want):
        assert_agree(one, torch.from_numpy(other))


WINDOW = {"local_attention": True, "window_size": 3}


@pytest.mark.parametrize("more", [{}, WINDOW], ids=str)
@pytest.mark.parametrize("pieces", [[5, 1, 1, 1], [1, 1, 1], [4, 3, 1]], ids=str)
def test_pieces_are_the_whole(pieces, more):
    """A prompt, then tokens one by one or several; with a mask and alibi that grow along."""
    op, qkv = made(**more), tokens(sum(pieces))
    hidden = torch.zeros(2, 1, 1, sum(pieces), dtype=F64)
    hidden[1, ..., 0] = -torch.inf
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.0])[:, None, None]
    alibi = slopes * torch.arange(sum(pieces), dtype=F64)
    end = 0
    for count in pieces:
        end += count
        found = step(op, qkv[:, end - count : end], mask=hidden[..., :end], alibi=alibi[..., :end],
                     is_prompt=None if count == 1 else end == count)  # fmt: skip
        want = whole(qkv[:, :end], hidden[..., :end], alibi[..., :end], **more)
        assert_equal(found, (want[0][:, end - count :], *want[1:]))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_sizes_and_settings(data):
    draw = data.draw
    batch, kv, group, size = (draw(st.integers(1, most)) for most in (3, 3, 3, 7))
    prompt, then = draw(st.integers(1, 6)), draw(st.integers(0, 3))
    causal, half = draw(st.booleans()), draw(st.booleans())
    window = draw(st.none() | st.integers(1, 5)) if causal else None
    more = {
        "triangular_masking": causal, "local_attention": window is not None,
        "window_size": window or 256, "rotary_dim": 2 * draw(st.integers(0, size // 2)),
        "rotate_half": half, "rotate_every_two": not half,
    }  # fmt: skip
    op = SoftmaxContextOp(InferenceConfig(dtype=F64, **more))
    heads, total = kv * group, prompt + then
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    qkv, mask, positions = (
        torch.randn(shape, generator=rng, dtype=F64)
        for shape in ((batch, total, (heads + 2 * kv) * size), (batch, 1, 1, total), (batch, total))
    )
    mask = mask.masked_fill(mask > 1, -torch.inf) if draw(st.booleans()) else None
    places = (positions * 9).round().long() if draw(st.booleans()) else None

    def seen(end, first=0):
        """Mask and positions of tokens ``first`` to ``end``, beside all keys before ``end``."""
        return (
            None if mask is None else mask[..., :end],
            None if places is None else places[:, first:end],
        )

    def step(first, end):
        cut, where = seen(end, first)
        return op(qkv[:, first:end], cut, heads, kv, 0.8, mask is None, 5, 6, None, first == 0,
                  None, where)  # fmt: skip

    def want(queries, end):
        cut, where = (None if t is None else t.numpy() for t in seen(end))
        return context(more, qkv[:, :end].numpy(), cut, heads, kv, 0.8, mask is None, None, where,
                       queries)  # fmt: skip

    assert_equal(step(0, prompt), want(prompt, prompt))
    if then:
        assert_equal(step(prompt, total), want(then, total))


def test_a_prompt_begins_anew():
    op = made()
    step(op, tokens(5))
    step(op, tokens(1, seed=1))
    assert_equal(step(op, tokens(3, seed=2)), whole(tokens(3, seed=2)))
    assert_equal(step(op, tokens(1, seed=2, batch=3), is_prompt=True),
                 whole(tokens(1, seed=2, batch=3)))  # fmt: skip


def test_what_was_returned_stays_as_it_was():
    op = made()
    first = step(op, tokens(5))
    copies = [t.clone() for t in first]
    step(op, tokens(1, seed=1))
    step(op, tokens(6, seed=2))
    op.workspace.reset_cache()
    step(op, tokens(6, seed=3))
    op.workspace.release_workspace()
    assert all(torch.equal(one, copy) for one, copy in zip(first, copies))


def test_two_models_and_two_layers_share_nothing():
    alone = [made(), made()]
    together, common = [made(), made()], WorkspaceOp(InferenceConfig(dtype=F64, **SETTINGS))
    layers = [made(common), made(common)]
    for count, seed in ((5, 0), (1, 1), (1, 2)):
        for n, op in enumerate(alone):
            want = step(op, tokens(count, seed + 10 * n))
            for other, layer in ((together[n], 0), (layers[n], n)):
                found = step(other, tokens(count, seed + 10 * n), layer)
                assert all(torch.equal(a, b) for a, b in zip(found, want))


def test_bad_input_changes_nothing():
    op, qkv = made(), tokens(7)
    step(op, qkv[:, :5])
    bad = [
        (CapacityError, "raise max_out_tokens", lambda: step(op, tokens(8), is_prompt=False)),
        (CapacityError, "13 tokens", lambda: step(op, tokens(13))),
        (OpArgumentError, "keeps 2 sequences", lambda: step(op, tokens(1, batch=3))),
        (OpArgumentError, "float32", lambda: step(op, tokens(1).float())),
        (OpArgumentError, "mask", lambda: step(op, tokens(1), mask=torch.zeros(2, 1, 1, 5))),
        (OpArgumentError, "alibi", lambda: step(op, tokens(1), alibi=torch.zeros(3, 1, 6))),
        (OpArgumentError, "no prompt", lambda: step(op, tokens(2), layer=1, is_prompt=False)),
        (OpArgumentError, "token_idx", lambda: step(op, tokens(1), token_idx=torch.tensor(3))),
        (OpArgumentError, "num_kv=3", lambda: op(qkv, None, 4, 3, 1.0, True, 0, 1, None)),
        (OpArgumentError, "position_ids", lambda: step(op, qkv, position_ids=torch.zeros(2, 6))),
        (OpArgumentError, "no gradient", lambda: step(op, tokens(1).requires_grad_())),
    ]
    for error, says, call in bad:
        with pytest.raises(error, match=says):
            call()
    assert_equal(step(op, qkv[:, 5:], is_prompt=False)[1:], whole(qkv)[1:])
    with pytest.raises(OpArgumentError, match="needs triangular_masking"):
        made(local_attention=True, triangular_masking=False)


def test_a_prompt_under_inference_mode_goes_on_outside():
    op, qkv = made(), tokens(7)
    for first, end, mode in ((0, 5, torch.inference_mode()), (5, 6, torch.no_grad()),
                             (6, 7, torch.inference_mode())):  # fmt: skip
        with mode:
            found = step(op, qkv[:, first:end])
    want = whole(qkv)
    assert_equal(found, (want[0][:, 6:], *want[1:]))


def test_factor_and_mask_follow_the_config():
    """norm_factor None is the config's; integers in a mask mean what invert_mask says."""
    qkv = tokens(3)
    seen = torch.tensor([[0, 1, 1], [1, 1, 1]])
    hidden = torch.zeros(2, 1, 1, 3, dtype=F64).masked_fill(seen[:, None, None] == 0, -torch.inf)
    want = context(SETTINGS, qkv.numpy(), hidden.numpy(), HEADS, KV, SIZE**-0.25, False, None)
    for invert, mask in ((True, seen), (True, seen.bool()), (False, 1 - seen)):
        op = made(invert_mask=invert, hidden_size=HEADS * SIZE, heads=HEADS)
        assert_equal(op(qkv, mask, HEADS, KV, None, False, 0, 1, None), want)


def test_a_workspace_is_allocated_released_and_retaken():
    op = made(num_kv=KV)
    workspace = op.workspace
    workspace.allocate_workspace(HEADS * SIZE, HEADS, 5, 2, 3, 1, False, 0, 12, 1)
    size = workspace.bytes
    assert size == 3 * 2 * 2 * 12 * KV * SIZE * 8
    assert_equal(step(op, tokens(5), layer=2), whole(tokens(5)))
    assert workspace.bytes == size, "it lies in what was allocated"
    workspace.release_workspace()
    assert (workspace.is_allocated(), workspace.bytes) == (False, 0)
    with pytest.raises(OpArgumentError, match="no prompt"):
        step(op, tokens(2), layer=2, is_prompt=False)
    assert workspace.retake_workspace() is True
    assert (workspace.is_allocated(), workspace.bytes) == (True, size)
    assert workspace.retake_workspace() is False
    assert workspace.bytes == size
    with pytest.raises(CapacityError, match="5 tokens and an answer of at least 9"):
        workspace.allocate_workspace(24, 4, 5, 2, 3, 1, False, 0, 12, 9)
    with pytest.raises(OpArgumentError, match="must divide"):
        workspace.allocate_workspace(23, 4, 5, 2, 3)
    assert workspace.bytes == size
    workspace.allocate_workspace(24, 4, 5, 2, 3, external_cache=True)
    assert workspace.bytes == 0


def test_reset_forgets_the_tokens():
    op = made()
    step(op, tokens(5))
    size = op.workspace.bytes
    op.workspace.reset_cache()
    assert op.workspace.bytes == size
    assert_equal(step(op, tokens(1)), whole(tokens(1)))
