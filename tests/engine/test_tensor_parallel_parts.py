"""How products are split over ranks, and what is refused before there are any."""

import models
import pytest
import torch

import accel
from accel.engine.parallel.share import split, split_heads


def test_without_processes_the_plan_refuses():
    model = models.llama()
    plan = accel.plan(model, {"inference_tp_size": 2})
    (refusal,) = plan.refusals
    assert (refusal.code, refusal.have) == ("inference_tp_size", "no process group")
    assert "forward" not in vars(model)


def test_more_ranks_than_heads_are_refused():
    plan = accel.plan(models.llama(), {"inference_tp_size": 8})
    assert "4 heads for 8 ranks" in [refusal.have for refusal in plan.refusals]


SPLITS = {
    (96, 2): [48, 48], (97, 2): [64, 33], (100, 3): [48, 32, 20], (7, 2): [4, 3], 
    (2, 4): [1, 1, 0, 0], (60, 4): [15, 15, 15, 15],
}  # fmt: skip


@pytest.mark.parametrize(("width", "degree"), SPLITS)
def test_columns_are_split_without_gaps(width, degree):
    parts = split(width, degree)
    assert [part.stop - part.start for part in parts] == SPLITS[width, degree]
    assert [i for part in parts for i in range(width)[part]] == list(range(width))


@pytest.mark.parametrize("degree", range(1, 7))
@pytest.mark.parametrize("heads", [(6, 1), (6, 2), (6, 3), (6, 6), (8, 4)], ids=str)
def test_heads_are_split_with_the_keys_they_look_at(heads, degree):
    queries, keys = heads
    found = split_heads(queries, keys, degree)
    assert [q for own in found for q in range(queries)[own.queries]] == list(range(queries))
    for own in found:
        count, kept = own.counts()
        assert count >= 1
        looked_at = {q * keys // queries for q in range(queries)[own.queries]}
        assert looked_at == set(range(keys)[own.keys])
        assert count % kept == 0


def test_a_part_of_a_weight_is_a_view_of_it():
    for make, paths in ((models.llama, ["model.layers.0.mlp.up_proj", "lm_head"]),
                        (models.gpt2, ["transformer.h.0.attn.c_attn"])):  # fmt: skip
        model = make()
        accel.hybridize(model)
        for path in paths:
            linear = model.get_submodule(path).forward
            for given in ({"rows": slice(3, 40)}, {"columns": slice(3, 40)}):
                part = linear.narrowed(**given).weight
                storage = linear.module.weight.untyped_storage().data_ptr()
                assert part.untyped_storage().data_ptr() == storage
                whole = linear.weight
                assert torch.equal(part, whole[3:40] if "rows" in given else whole[:, 3:40])
