"""What a run says: report.json, lines, JSON on stdout, exit status. Its page has its own tests."""

import json

import pytest

import accel_conformance
from accel_conformance.faults import FAULTS, plant
from accel_conformance.rules import RULES

KEYS = {
    "schema", "verdict", "suite", "core", "plugin", "software", "device", "selection", "started",
    "seconds", "totals", "expectations", "rules", "cases",
}  # fmt: skip
CASE = {
    "id", "area", "op", "implementation", "dtype", "outcome", "input", "ran", "rms_share",
    "peak_share", "own_share", "seconds", "rules", "broken", "reason", "message", "refusals",
    "reproduce",
}  # fmt: skip


def case(report, id):
    return next(case for case in report["cases"] if case["id"] == id)


@pytest.fixture
def failing(conform):
    with plant(FAULTS["bias_twice"], "reference") as planted:
        return conform(impls=[planted], dtypes=["float32"])[1]


def test_a_report_of_every_area(conform):
    # Of each rule something; what is compiled or large, which takes long, of one op.
    ops = ("*/embedding/*", "[!tl]*/linear/*/bfloat16/*", "[!tl]*/rms_norm/host.norm/float32/*")
    cases = ["accelerator/*", "builders/*", "engine/gpt2/float32/exact", *ops]
    status, report = conform(cases=cases)
    assert status == 0, [c["message"] for c in report["cases"] if c["outcome"] == "failed"]
    assert set(report) == KEYS
    assert report["verdict"] == "passed"
    assert report["plugin"]["backend"] == "host"
    assert report["device"]["name"] == "a host of tests"
    assert report["device"]["total_memory"] == 1 << 33
    assert report["device"]["dtypes"] == ["float32", "float16", "bfloat16", "float64"]
    assert sum(report["totals"].values()) == len(report["cases"])
    assert not any(rule["broken"] for rule in report["rules"].values())
    idle = {name for name, rule in report["rules"].items() if not rule["cases"]}
    of_the_engine = {name for name, rule in RULES.items() if rule.number.startswith("5.")}
    assert idle - of_the_engine == {
        "works", "expectation", "agreement", "unseen", "placed", "environment", "memory",
    }  # fmt: skip
    assert all(set(case) == CASE for case in report["cases"])
    assert {case["area"] for case in report["cases"]} == {
        "accelerator", "builders", "ops", "integers", "large", "guards", "gradients", "bad_inputs",
        "rows", "features", "special", "drawn", "torch", "engine",
    }  # fmt: skip

    passed = case(report, "ops/linear/host.linear/bfloat16/layout_sliced")
    assert (passed["outcome"], passed["ran"]) == ("passed", "host.linear")
    assert 0 < passed["rms_share"] <= 1
    assert 0 < passed["peak_share"] <= 1
    assert 0 <= passed["own_share"] <= 1
    refused = case(report, "accelerator/allocated_moves_with_tensors")
    assert refused["outcome"] == "refused"
    assert refused["refusals"][0]["code"] == "memory_stats"


def test_a_failure_says_which_rule_and_how_to_see_it_again(failing):
    assert failing["verdict"] == "failed"
    numbers = {"accuracy", "componentwise", "whole"}
    assert {name for name, rule in failing["rules"].items() if rule["broken"]} == numbers
    failed = case(failing, "ops/linear/planted.bias_twice/float32/odd")
    assert [broken["rule"] for broken in failed["broken"]] == ["accuracy", "componentwise"]
    assert failed["message"].startswith("[2.3 accuracy] error is ")
    assert failed["input"] == "x float32[7, 100], w float32[33, 100], b float32[33]"
    assert failed["rms_share"] > 1
    assert failed["own_share"] > 1
    assert failed["reproduce"] == (
        "pytest --pyargs accel_conformance --accel-backend host "
        "--accel-cases ops/linear/planted.bias_twice/float32/odd"
    )


def test_json_on_stdout_is_the_report_and_nothing_else(capsys):
    assert accel_conformance.run("host", cases=["accelerator/*"], json=True) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["totals"]["passed"] > 0
    assert err == ""


def test_plain_lines_where_there_is_no_terminal(capsys):
    options = {"ops": ["linear"], "impls": ["reference"], "dtypes": ["float32"]}
    assert accel_conformance.run("host", **options) == 0
    out = capsys.readouterr().out
    assert "ops/linear/reference/float32  19 passed" in out
    assert "host (host) conforms: " in out
    assert "\x1b" not in out


def test_a_line_waits_for_no_cases_of_its_group_that_come_later(capsys):
    ids = ["linear/host.linear/float32/odd", "rms_norm/host.norm/float32/odd",
           "linear/host.linear/float32/padded"]  # fmt: skip
    assert accel_conformance.run("host", cases=[f"rows/{id}" for id in ids]) == 0
    lines = capsys.readouterr().out.splitlines()[:3]
    assert lines == [f"rows/{id.rpartition('/')[0]}  1 passed" for id in ids]


def test_quiet_says_the_verdict_alone(capsys):
    assert accel_conformance.run("host", cases=["accelerator/is_available"], quiet=True) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("host (host) conforms: 1 passed in ")


def test_failures_are_printed_with_their_command(capsys):
    with plant(FAULTS["relu_loses_nan"], "reference") as planted:
        status = accel_conformance.run("host", impls=[planted], dtypes=["float32"], quiet=True)
    assert status == 1
    out = capsys.readouterr().out
    assert "FAILED special/linear/planted.relu_loses_nan/float32/act_relu" in out
    assert "[2.13 contained] a NaN was lost in its own row" in out
    assert "--accel-cases special/linear/planted.relu_loses_nan/float32/act_relu" in out
