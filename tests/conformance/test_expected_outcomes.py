"""The expectations file: what it excuses, and everything that makes it fail the run itself."""

import datetime
import re

import conformance_host
import pytest

import accel_conformance
from accel import testing
from accel_conformance import expectations
from accel_conformance.faults import FAULTS, plant
from accel_conformance.selection import UsageError
from accel_conformance.subject import find
from accel_conformance.suite import cases

PLANTED = "planted.bias_forgotten"
LATER = "2999-01-01"


@pytest.fixture
def file(tmp_path):
    """Write an expectations file of entries (id, outcome, expires)."""

    def write(*entries):
        path = tmp_path / "expectations.toml"
        path.write_text(
            "".join(
                f'[[expect]]\nid = "{id}"\noutcome = "{outcome}"\nreason = "known"\n'
                f"expires = {expires}\n"
                for id, outcome, expires in entries
            )
        )
        return path

    return write


@pytest.fixture
def planted(conform):
    """Run the suite on a linear that forgets its bias, in float32 alone, and on few elements."""

    def run(path):
        with plant(FAULTS["bias_forgotten"], "reference") as id:
            cases = [
                f"{area}/*" for area in ("ops", "gradients", "special", "bad_inputs", "guards")
            ]
            return conform(impls=[id], dtypes=["float32"], cases=cases, expectations=path)

    return run


def outcomes(report):
    return {case["id"]: case["outcome"] for case in report["cases"]}


def biased():
    """Samples of linear with a bias that is not empty."""
    return ("even", "odd", "vector", "one", "no_sum", "many_rows", "layout_*", "act_*", "out_fp32")


def test_an_expected_failure_passes(file, planted):
    expected = [(f"ops/linear/{PLANTED}/float32/{name}", "fail", LATER) for name in biased()]
    status, report = planted(file(*expected))
    assert status == 0
    assert report["verdict"] == "passed"
    found = outcomes(report)
    assert found[f"ops/linear/{PLANTED}/float32/odd"] == "expected"
    assert found[f"ops/linear/{PLANTED}/float32/batched"] == "passed"


def test_what_passes_although_it_is_expected_to_fail_fails_the_run(file, planted):
    status, report = planted(file((f"ops/linear/{PLANTED}/float32/*", "fail", LATER)))
    assert status == 1
    assert outcomes(report)[f"ops/linear/{PLANTED}/float32/batched"] == "unexpected"
    messages = {case["message"] for case in report["cases"] if case["outcome"] == "unexpected"}
    assert messages == {"[1.2 expectation] was expected to fail (known) and did not"}


def test_what_is_to_be_skipped_is_not_run(file, conform):
    path = file(("special/linear/reference/*", "skip", LATER))
    status, report = conform(
        impls=["reference"], ops=["linear"], dtypes=["float32"], expectations=path
    )
    assert status == 0
    skipped = [case for case in report["cases"] if case["outcome"] == "skipped"]
    assert skipped
    assert all(case["seconds"] == 0 and case["message"] == "known" for case in skipped)


def test_a_required_case_is_not_skipped(file, planted):
    status, report = planted(file((f"ops/linear/{PLANTED}/*", "skip", LATER)))
    assert status == 1
    assert "skipped" not in outcomes(report).values()
    (problem,) = report["expectations"]["problems"]
    assert re.search(rf"skips ops/linear/{PLANTED}/float\d+/\w+, which is required", problem)


def test_a_required_rule_is_not_excused(file, conform):
    path = file(("ops/linear/planted.*", "fail", LATER))
    with plant(FAULTS["input_overwritten"], "reference") as id:
        status, report = conform(
            impls=[id], dtypes=["float32"], cases=["ops/*/odd"], expectations=path
        )
    assert status == 1
    (case,) = report["cases"]
    assert case["outcome"] == "failed"
    assert "[2.4 inputs_kept]" in case["message"]


def test_an_entry_that_matches_nothing_fails_the_run(file, conform):
    path = file(("ops/linear/host.linaer/*", "fail", LATER))
    status, report = conform(ops=["rms_norm"], dtypes=["float32"], expectations=path)
    assert status == 1
    assert report["verdict"] == "failed"
    assert "failed" not in report["totals"]
    assert "'ops/linear/host.linaer/*' matches no case" in report["expectations"]["problems"][0]


def test_an_entry_for_cases_that_were_not_selected_is_no_problem(file, conform):
    path = file(("ops/linear/host.linear/*", "fail", LATER))
    status, _ = conform(ops=["rms_norm"], impls=["reference"], expectations=path)
    assert status == 0


def test_an_expired_entry_excuses_nothing_and_fails_the_run(file, planted):
    status, report = planted(file((f"ops/linear/{PLANTED}/float32/odd", "fail", "2001-01-01")))
    assert status == 1
    assert outcomes(report)[f"ops/linear/{PLANTED}/float32/odd"] == "failed"
    assert "expired on 2001-01-01" in report["expectations"]["problems"][0]


def test_the_last_day_counts(file):
    path = file(("special/*", "skip", "2026-12-31"))
    for day, problems in ((31, 0), (32, 1)):
        today = datetime.date(2026, 12, 1) + datetime.timedelta(days=day - 1)
        assert len(expectations.read(path, cases(find("host")), today).problems) == problems


def test_patterns_match_the_whole_id(file):
    path = file(("linear/host.linear/*", "fail", LATER), ("ops/linear", "fail", LATER))
    assert len(expectations.read(path, cases(find("host"))).problems) == 2


def test_the_backend_names_its_file(file, capsys):
    path = file(("ops/nothing", "fail", LATER))
    with testing.installed(conformance_host.plugin(expectations=str(path))):
        assert accel_conformance.run("host", cases=["accelerator/is_available"]) == 1
    assert "'ops/nothing' matches no case (known)" in capsys.readouterr().out


def test_a_package_may_bring_the_file(file, monkeypatch):
    folder = file(("accelerator/*", "skip", LATER)).parent
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(folder.parent)
    found = expectations.read(f"{folder.name}:expectations.toml", cases(find("host")))
    assert [entry.id for entry in found.entries] == ["accelerator/*"]
    with pytest.raises(UsageError, match="No module named 'no_such_package'"):
        expectations.read("no_such_package:expectations.toml", [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[expect]", "is not TOML"),
        ("[expect]\nid = 1", "is written as [[expect]]"),
        ("[[except]]", "unknown key 'except'; did you mean 'expect'?"),
        ('[[expect]]\nid = "*"', "outcome is missing; all of id, outcome, reason, expires"),
        (
            '[[expect]]\nid = "*"\noutcome = "fial"\nreason = "r"\nexpires = 2999-01-01',
            "unknown outcome 'fial'; did you mean 'fail'?",
        ),
        (
            '[[expect]]\nid = "*"\noutcome = "fail"\nreason = "r"\nexpires = "soon"',
            "expires must be a day like 2026-12-31, not 'soon'",
        ),
        ('[[expect]]\nid = "*"\noutcom = "fail"', "unknown key 'outcom'; did you mean 'outcome'?"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, text, says):
    path = tmp_path / "expectations.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        expectations.read(path, [])
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="cannot read the expectations file"):
        expectations.read(tmp_path / "nowhere.toml", [])
