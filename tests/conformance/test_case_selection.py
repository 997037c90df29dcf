"""Which cases run; names nobody has, and selections that are empty."""

import json

import conformance_host
import pytest

import accel_conformance
from accel import testing
from accel.errors import AccelWarning
from accel.refusal import Refusal
from accel_conformance import suite
from accel_conformance.case import Case, Evidence, Outcome, execute
from accel_conformance.selection import PROFILES
from accel_conformance.subject import find


def listed(capsys, **options):
    assert accel_conformance.run("host", list_only=True, json=True, **options) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, backend="host", **options):
    """What is said on stderr of a run that cannot be done."""
    assert accel_conformance.run(backend, **options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_every_contract_implementation_dtype_and_sample_is_a_case(capsys):
    ids = listed(capsys)
    assert len(ids) == len(set(ids))
    for target in find("host").targets:
        for sample in target.contract.samples():
            assert f"ops/{target.op}/{target.impl.id}/bfloat16/{sample.name}" in ids
    assert "rows/linear/host.linear/float32/odd" in ids
    assert "rows/linear/torch/float32/odd" not in ids, "it claims no invariance"


def test_the_list_as_lines(capsys):
    assert accel_conformance.run("host", list_only=True, ops=["linear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ops/linear/host.linear/float16/layout_sliced" in lines


def test_a_selection_takes_the_cases_that_have_what_is_selected(capsys):
    ids = listed(capsys, ops=["linear"], impls=["linear"], dtypes=["float16"])
    assert ids
    assert all("/linear/host.linear/float16/" in id for id in ids)
    assert listed(capsys, cases=["accelerator/*"]) == [
        case.id for case in suite.cases(find("host")) if case.area == "accelerator"
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ops": ["liner"]}, "unknown op 'liner'; did you mean 'linear'"),
        ({"dtypes": ["bfloat61"]}, "unknown dtype 'bfloat61'; did you mean 'bfloat16'"),
        ({"impls": ["host.linaer"]}, "did you mean 'host.linear'"),
        ({"cases": ["ops/linear/host.linear/float32/evne"]}, "did you mean 'ops/linear/host"),
        ({"ops": ["rms_norm"], "impls": ["host.linear"]}, "nothing to test: no case is of op"),
    ],
)
def test_what_cannot_be_selected_is_an_error(capsys, options, says):
    assert says in refused(capsys, **options)


def test_an_unknown_backend_is_an_error_that_says_what_there_is(capsys):
    assert "backend 'hots' is not installed; installed: host" in refused(capsys, "hots")


def test_a_refused_backend_is_an_error_with_its_reasons(capsys):
    absent = testing.fake_backend("absent", refusals=[Refusal("driver", "a driver", "none")])
    said = refused(capsys, "absent", plugins=[absent])
    assert "[driver] needs a driver, found none" in said


def test_plugins_given_are_tested_and_gone_afterwards(capsys):
    other = testing.fake_backend("other", accelerator="conformance_host:HostAccelerator")
    assert accel_conformance.run("other", plugins=[other], list_only=True) == 0
    capsys.readouterr()
    refused(capsys, "other")


def test_where_every_case_is_refused_nothing_is_shown(capsys):
    cases = ["accelerator/pinned_memory_is_pinned"]  # which the host lacks
    assert accel_conformance.run("host", cases=cases, quiet=True) == 1
    assert "shows nothing: 1 refused" in capsys.readouterr().out


def test_a_conflict_with_a_given_plugin_does_not_outlive_the_run(capsys):
    with pytest.warns(AccelWarning, match="conflict"):
        assert "conflict" in refused(capsys, plugins=[conformance_host.plugin()])
    assert listed(capsys)


def test_another_backends_kernels_are_its_own_to_prove(capsys):
    builder = testing.fake_builder({"linear": conformance_host.row_by_row("linear")}, id="o.k")
    other = testing.fake_backend("other", builders=[builder])
    pack = testing.fake_builder({"linear": conformance_host.row_by_row("linear")}, id="pack.k")
    loose = testing.fake_backend("pack", builders=[pack])
    del loose.accel_backend
    ids = listed(capsys, plugins=[other, loose])
    assert not any("/o.k/" in id for id in ids)
    assert any("/pack.k/" in id for id in ids)


def areas(ids):
    return {id.partition("/")[0] for id in ids}


def test_a_profile_takes_the_areas_of_those_before_it(capsys):
    cases = ["*/linear/*", "engine/*/one_value"]
    inference, training, engine = (listed(capsys, cases=cases, profile=p) for p in PROFILES)
    assert set(inference) < set(training) < set(engine) == set(listed(capsys, cases=cases))
    assert areas(set(training) - set(inference)) == {"gradients", "torch"}
    assert areas(set(engine) - set(training)) == {"engine"}
    assert "unknown profile 'infrence'; did you mean 'inference'?" in refused(
        capsys, profile="infrence"
    )


def test_a_smoke_run_takes_one_input_of_each_kind(capsys):
    smoke = listed(capsys, ops=["linear"], level="smoke")
    full = listed(capsys, ops=["linear"])
    kinds = [id.rpartition("/")[0] for id in smoke if not id.startswith("builders/")]
    assert len(kinds) == len(set(kinds))
    groups, taken = ({id.rpartition("/")[0] for id in ids} for ids in (full, smoke))
    assert all(group.startswith("large/") for group in groups - taken)
    assert sum(id.startswith("large/linear/host.linear/") for id in smoke) == 1
    assert "unknown level 'smok'" in refused(capsys, level="smok")


def test_a_case_that_looks_at_nothing_is_no_pass():
    result = execute(Case("ops/nothing", lambda seen: None))
    assert result.outcome is Outcome.UNTESTED
    assert result.outcome.bad
    assert "looked at nothing" in result.message()
    with pytest.raises(KeyError):
        Evidence().expect("no_such_rule", True, "")
