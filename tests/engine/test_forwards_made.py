"""What is computed, counted: no forward, layer or row of the head more than is needed."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch

import accel
from accel import ops

LAYERS = 2


@pytest.fixture(params=("llama", "gpt2"))
def engine(request):
    return accel.HybridEngine(request.getfixturevalue(request.param)())


@pytest.fixture
def prompts():
    """Four, of one to seven tokens, padded left."""
    ids = torch.randint(97, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 6, 3, 1)):
        mask[row, :padding] = 0
    return ids, mask


class Seen:
    """``tokens`` of each forward of the model, calls of its ``layers``, ``rows`` of its head."""

    def __init__(self):
        self.tokens, self.layers, self.rows = [], 0, []

    def model(self, module, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        self.tokens.append(tuple(ids.shape))

    def layer(self, module, args):
        self.layers += 1

    def head(self, module, args, kwargs):
        self.rows.append(args[0].shape[:-1].numel())


@contextmanager
def watching(engine):
    found, model, spec = Seen(), engine.model, engine.plan.spec
    layers = [model.get_submodule(path) for path in spec.layer_paths()]
    head = model.get_submodule(spec.head)
    hooks = [
        model.register_forward_pre_hook(found.model, with_kwargs=True),
        head.register_forward_pre_hook(found.head, with_kwargs=True),
        *(layer.register_forward_pre_hook(found.layer) for layer in layers),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


SAMPLINGS = ({}, {"do_sample": True, "top_p": 0.9, "seed": 1}, {"return_logprobs": True})


@pytest.mark.parametrize("asked", SAMPLINGS, ids=("greedy", "sampled", "with logprobs"))
@pytest.mark.parametrize("new", [1, 2, 17])
def test_a_rollout_makes_as_many_forwards_as_tokens(engine, prompts, new, asked):
    with watching(engine) as seen:
        engine.generate(*prompts, max_new_tokens=new, **asked)
    assert seen.tokens == [(4, 7)] + [(4, 1)] * (new - 1)
    assert seen.layers == LAYERS * new


def test_prompts_that_are_alike_are_computed_once(engine, prompts):
    asked = {"max_new_tokens": 3, "do_sample": True}
    with watching(engine) as seen:
        engine.generate(*prompts, num_return_sequences=2, **asked)
    assert seen.tokens == [(4, 7), (8, 1), (8, 1)]
    twice = (x[[0, 1, 0, 0, 2]] for x in prompts)
    with watching(engine) as seen:
        engine.generate(*twice, **asked)
    assert seen.tokens == [(3, 7), (5, 1), (5, 1)]


def test_a_row_that_has_ended_leaves_the_batch(engine, prompts):
    made = engine.generate(*prompts, max_new_tokens=12)[:, 7:]
    ends = [made[0, 2].item(), made[1, 4].item()]
    ended = torch.isin(made, torch.tensor(ends))
    ended[:, -1] = True
    last = ended.int().argmax(1)  # each answer's last step
    with watching(engine) as seen:
        engine.generate(*prompts, max_new_tokens=12, eos_token_id=ends)
    going = [int((last >= step).sum()) for step in range(int(last.max()) + 1)]
    assert [rows for rows, _ in seen.tokens] == going
    assert going[-1] < 4


def test_a_rollout_stops_when_its_last_answer_has_ended(engine, prompts):
    made = engine.generate(*prompts, max_new_tokens=12)[:, 7:]
    ends = [made[0, 2].item(), *made[1:, 4].tolist()]
    ended = torch.isin(made, torch.tensor(ends)).int().argmax(1)  # each answer's first end
    with watching(engine) as seen:
        engine.generate(*prompts, max_new_tokens=12, eos_token_id=ends)
    assert len(seen.tokens) == ended.max() + 1 <= 5


def test_the_head_sees_one_row_per_new_token(engine, prompts):
    with watching(engine) as seen:
        engine.generate(*prompts, max_new_tokens=5, do_sample=True, return_logprobs=True)
    assert seen.rows == [4] * 5


@pytest.mark.parametrize("sampled", [False, True], ids=("greedy", "sampled"))
def test_a_token_has_one_log_probability_per_distribution(engine, prompts, sampled, monkeypatch):
    made = Counter()
    for name in ("attention", "logprob"):
        counted(monkeypatch, name, made)
    engine.generate(*prompts, max_new_tokens=5, do_sample=sampled)
    # Of attention's those of the prompts, of a step that runs and of one that is recorded.
    assert made == {"attention": 3 * LAYERS, "logprob": 5 * (1 + sampled)}


def counted(monkeypatch, name, calls):
    op = getattr(ops, name)

    def call(*args, **kwargs):
        calls[name] += 1
        return op(*args, **kwargs)

    monkeypatch.setattr(ops, name, call)


MICRO_BATCHES = {None: [7], 1: [1] * 7, 3: [3, 3, 1], 7: [7], 10: [7]}


@pytest.mark.parametrize(("size", "rows"), MICRO_BATCHES.items(), ids=map(str, MICRO_BATCHES))
def test_logprobs_makes_one_forward_per_micro_batch(engine, size, rows):
    ids = torch.arange(35).view(7, 5)
    with watching(engine) as seen:
        engine.logprobs(ids, micro_batch_size=size)
    assert seen.tokens == [(n, 5) for n in rows]
    assert seen.layers == LAYERS * len(rows)


def test_the_configured_micro_batch_holds_where_none_is_given(llama):
    engine = accel.HybridEngine(llama(), config={"micro_batch_size": 2})
    with watching(engine) as seen:
        engine.logprobs(torch.arange(25).view(5, 5))
    assert [rows for rows, _ in seen.tokens] == [2, 2, 1]


def test_logprobs_asks_the_head_for_real_successors_only(engine, prompts):
    ids, mask = prompts
    with watching(engine) as seen:
        engine.logprobs(ids, mask)
    assert seen.rows == [int((mask.sum(1) - 1).sum())]


def test_the_loss_asks_the_head_for_labels_that_count_only(engine, prompts):
    ids, mask = prompts
    labels = ids.clone()
    labels[:, 5] = -100
    engine.train()
    with watching(engine) as seen:
        engine(ids, mask, labels=labels)
    counted_labels = int((mask.sum(1) - 1).sum()) - 3  # column 5 is the second row's padding
    assert seen.rows == [counted_labels]


def test_the_head_computes_no_logits_but_those_to_keep(engine, prompts):
    with watching(engine) as seen:
        engine(*prompts, logits_to_keep=2)
    assert seen.rows == [4 * 2]
