"""What is drawn: the same of one seed, in words that say all of it, shrunk; whole numbers stay."""

import itertools
import shlex

import hypothesis
import pytest
import torch

import accel_conformance
from accel.contracts import CONTRACTS
from accel_conformance.faults import FAULTS, plant
from accel_conformance.plugin import OPTIONS
from accel_conformance.subject import find
from accel_conformance.suite import drawn, integers
from accel_conformance.suite.variations import KINDS, Variation, kinds, variations
from accel_conformance.target import storage_bits

HOST = torch.device("cpu")


def words(op, kind, seed):
    """Of what is drawn."""
    found = []

    @hypothesis.seed(seed)
    @drawn._SETTINGS
    @hypothesis.given(variations(op, kind))
    def look(variation):
        found.append(str(variation))

    look()
    return found


def test_one_seed_always_draws_the_same_and_another_draws_otherwise():
    kept = [words("linear", kind, 3) for kind in KINDS]
    assert kept == [words("linear", kind, 3) for kind in KINDS]
    assert kept != [words("linear", kind, 4) for kind in KINDS]
    assert kept[0][0] == "sample even, x large", "the simplest comes first"
    assert [len(found) for found in kept] == [drawn.EXAMPLES] * len(KINDS)


def test_cases_are_of_the_ways_in_which_an_op_can_be_varied(conform):
    assert kinds("linear") == list(KINDS)
    assert "rows" not in kinds("attention"), "spans speak of rows"
    status, report = conform(cases=["drawn/linear/reference/float32/*"])
    assert status == 0
    assert [case["id"].rpartition("/")[2] for case in report["cases"]] == list(KINDS)
    for case in report["cases"]:
        assert set(case["rules"]) == {"result", "inputs_kept", "componentwise"}
        assert case["ran"] == "reference"


@pytest.mark.parametrize("kind", KINDS)
def test_a_variation_is_made_as_it_says(kind):
    contract, sample = CONTRACTS["linear"], next(iter(CONTRACTS["linear"].samples()))
    ways = {
        "values": ("x", "zeros of both signs"), "layout": ("every argument", "transposed"),
        "rows": 3, "storage": ("b", "w"),
    }  # fmt: skip
    made = Variation(sample, **{kind: ways[kind]})
    x, w, b, *_ = made.make(contract, torch.bfloat16, HOST)
    old, *_ = sample.make(torch.bfloat16, HOST)
    if kind == "values":
        assert not x.any()
        assert torch.equal(x.signbit(), old.signbit())
        assert str(made) == "sample even, x zeros of both signs"
    elif kind == "layout":
        assert torch.equal(x, old)
        assert (x.stride(0), w.stride(0)) == (1, 1)
    elif kind == "rows":
        assert (x.shape, str(made)) == ((3, 64), "sample even, 3 rows")
    else:
        assert b.data_ptr() == w.data_ptr()
        assert torch.equal(b, w.reshape(-1)[: len(b)])
        assert str(made) == "sample even, b in the storage of w"


def test_a_failure_is_told_in_its_simplest_words_with_the_seed(conform):
    with plant(FAULTS["aligned_reads"], "reference") as planted:
        again = {"impls": [planted], "dtypes": ["float32"], "cases": ["drawn/*/layout"], "seed": 5}
        status, report = conform(**again)
        (case,) = report["cases"]
        assert conform(**again)[1]["cases"][0]["message"] == case["message"]
    assert status == 1
    (broken,) = case["broken"]
    assert broken["rule"] == "componentwise"
    assert broken["says"].startswith("sample even, every argument one element into its storage: ")
    assert shlex.split(case["reproduce"])[-2:] == ["--accel-seed", "5"]
    assert "--accel-seed" in OPTIONS
    assert report["selection"]["seed"] == 5


def test_what_raises_is_told_with_what_was_drawn(conform):
    with plant(FAULTS["dtype_listed_and_not_served"], "reference") as planted:
        _, report = conform(impls=[planted], dtypes=["float64"], cases=["drawn/*/values"])
    says = report["cases"][0]["broken"][0]["says"]
    assert says == "sample even, x large: raised RuntimeError: no kernel for float64"


def test_another_seed_is_other_inputs_of_the_same_cases():
    one, other = ([case.id for case in drawn.cases(find("host", seed))] for seed in (0, 1))
    assert one == other
    assert accel_conformance.run("host", cases=["drawn/rotary/torch/float32/*"], seed=2) == 0


@pytest.mark.parametrize("op", sorted(integers.SUMS))
def test_whole_numbers_keep_shapes_and_layouts(op):
    for sample in itertools.islice(CONTRACTS[op].samples(), 14):
        before = sample.make(torch.float16, HOST)
        after = integers._whole(CONTRACTS[op], sample.make(torch.float16, HOST))
        for one, other in zip(before, after, strict=True):
            if not isinstance(one, torch.Tensor):
                continue
            assert (one.shape, one.stride()) == (other.shape, other.stride())
            if one.is_floating_point():
                assert torch.equal(other, other.round().clamp(-4, 4))
                assert storage_bits(one).shape == storage_bits(other).shape
