"""What generate is asked is read once: prompts, lengths, processors."""

import pytest
import torch
from transformers import GenerationConfig

from accel.engine.generation import request as requests
from accel.engine.generation.prompts import prompts

IDS = torch.ones(2, 5, dtype=torch.int64)


def read(llama, config=None, **settings):
    return requests.read(llama(), input_ids=IDS, generation_config=config, **settings)


def test_a_request_that_asks_for_nothing_is_greedy_and_ends_after_twenty(llama):
    found = read(llama)
    assert (found.max_new_tokens, found.sampled, found.ends.tolist()) == (20, False, [])
    assert (found.processors, found.criteria, found.looks_back) == ([], [], False)
    assert (found.prompts.each, found.kept, found.as_object, found.whole) == (1, (), False, False)
    assert not found.abort()


@pytest.mark.parametrize(
    ("asked", "filler"),
    [({"pad_token_id": 5, "eos_token_id": 3}, 5), ({"eos_token_id": [3, 4]}, 3), ({}, 0)],
    ids=str,
)
def test_behind_an_end_stands_the_padding_or_the_end(llama, asked, filler):
    assert read(llama, **asked).filler == filler


def test_reading_a_request_changes_no_configuration(llama):
    model, config = llama(), GenerationConfig(max_length=9, min_length=3, eos_token_id=4)
    before = config.to_dict(), model.generation_config.to_dict()
    settings = {"do_sample": True, "temperature": 0.5, "top_p": 0.5, "min_new_tokens": 2}
    requests.read(model, input_ids=IDS, generation_config=config, **settings)
    assert (config.to_dict(), model.generation_config.to_dict()) == before


def test_processors_are_those_asked_for(llama):
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    plain = read(llama, do_sample=True, top_k=0)
    assert plain.processed(IDS, logits) is logits
    cut = read(llama, do_sample=True, top_k=2, temperature=0.5).processed(IDS, logits)
    assert cut.tolist() == [[float("-inf"), float("-inf"), 4.0, 6.0]]


# -- prompts -----------------------------------------------------------------------------------


def test_processors_see_prompts_padded_left():
    """Holes and padding on either side; what stands there is beyond every vocabulary."""
    ids = torch.arange(12).view(3, 4)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]])
    found = prompts(ids, mask, None, 1, None)
    assert found.seen(as_given=True).tolist() == [[0, 1, 2, 3], [6, 7, 4, 5], [9, 8, 10, 11]]
    nothing = found.seen(as_given=False)
    assert nothing.clamp(max=99).tolist() == [[99, 1, 2, 3], [99, 99, 4, 5], [99, 8, 10, 11]]


def test_prompts_are_alike_whatever_their_padding():
    ids = torch.tensor([[0, 1, 2], [1, 2, 0], [1, 2, 0], [1, 2, 5]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]])
    found = prompts(ids, mask, None, 2, None)
    assert found.alike.tolist() == [0, 0, 0, 0, 2, 2, 0, 0]
    assert len(set(found.contents())) == 2
    assert found.lengths() == [2, 2, 2, 2, 3, 3, 2, 2]
    embeds = torch.ones(4, 3, 5).index_fill_(0, torch.tensor([1]), 2)
    given_both = prompts(ids, mask, embeds, 1, None)
    assert given_both.alike.tolist() == [0, 1, 2, 0]
    assert given_both.contents() == found.contents()[::2]
