"""How products are split over ranks, and what is refused before there are any."""

import encoders
import models
import pytest
import torch

import accel
from accel import ops
from accel.engine.parallel.share import split, split_heads


def test_without_processes_the_plan_refuses():
    model = models.llama()
    plan = accel.plan(model, {"inference_tp_size": 2})
    (refusal,) = plan.refusals
    assert (refusal.code, refusal.have) == ("inference_tp_size", "no process group")
    assert "forward" not in vars(model)


def test_an_encoder_has_no_rollouts_to_share():
    (refusal,) = accel.plan(encoders.small("bert"), {"inference_tp_size": 2}).refusals
    assert refusal.have == "an encoder"


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


PARTS = [slice(0, 96), slice(96, 193), slice(5, 40), slice(192, 193), slice(7, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_some_output_features_have_the_bits_they_have_among_all(rows, dtype):
    """Which is what gathering them rests on; through views of the weights."""
    torch.manual_seed(0)
    width, inner = 193, 1100
    weights = [torch.randn(width, inner).to(dtype) for _ in range(2)]
    one, two = weights
    bias, low = torch.randn(width).to(dtype), torch.randn(4, inner).to(dtype)
    up, turned = torch.randn(width, 4).to(dtype), one.t().contiguous().t()
    experts, ends = torch.stack(weights), torch.tensor([rows // 2, rows])
    x = torch.randn(rows, inner).to(dtype)
    products = {
        "linear": lambda p: ops.linear(x, one[p], bias[p], act="gelu"),
        "linear turned": lambda p: ops.linear(x, turned[p]),
        "head": lambda p: ops.linear(x, one[p], out_dtype=torch.float32),
        "gated_linear": lambda p: ops.gated_linear(x, one[p], two[p], act="silu"),
        "lora_linear": lambda p: ops.lora_linear(x, one[p], low, up[p], bias[p], scale=2.0),
        "grouped_linear": lambda p: ops.grouped_linear(x, experts[:, p], ends),
    }
    with ops.use(exact=True, strict=True):
        for name, product in products.items():
            whole = product(slice(None))
            for part in PARTS:
                assert torch.equal(product(part), whole[:, part]), (name, part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [1, 300])
def test_some_heads_have_the_bits_they_have_among_all(queries, dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(300, heads, 16).to(dtype) for heads in (6, 3, 3))
    spans = torch.tensor([[0, queries, 0, 300]])
    q = q[:queries]
    with ops.use(exact=True, strict=True):
        whole = ops.attention(q, k, v, spans, scale=0.3)
        for own in split_heads(6, 3, 2) + split_heads(6, 3, 5):
            mine, keys = own.queries, own.keys
            found = ops.attention(q[:, mine], k[:, keys], v[:, keys], spans, scale=0.3)
            assert torch.equal(found, whole[:, mine])


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
