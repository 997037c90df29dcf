"""``accel conform --self-test``: what is printed and written, and the exit status."""

import json

import pytest

import accel_conformance
from accel_conformance import trials
from accel_conformance.faults import FAULTS


def self_test(capsys, *args, **options):
    status = accel_conformance.self_test(*args, **options)
    return status, capsys.readouterr()


def test_the_kill_matrix_names_the_fault_its_rule_and_its_killers(capsys, tmp_path):
    status, told = self_test(capsys, "seed_cut_short", report=tmp_path)
    assert status == 0
    assert "seed_cut_short" in told.out
    assert "4.9 random" in told.out
    assert "1 of 1 faults killed for their own reason" in told.out
    report = json.loads((tmp_path / "self-test.json").read_text())
    assert report["verdict"] == "passed"
    (fault,) = report["faults"]
    assert fault["killed_by"] == ["accelerator/seeding_reproduces"]
    assert (fault["kind"], fault["rule"], fault["number"]) == ("rng", "random", "4.9")
    (right,) = report["unfaulted"]
    assert (right["op"], right["problems"]) == (None, [])


def test_a_surviving_fault_fails_the_run(capsys, monkeypatch):
    tame = trials.replace(FAULTS["seed_cut_short"], wrong=lambda right: right)
    monkeypatch.setitem(FAULTS, "seed_cut_short", tame)
    status, told = self_test(capsys, "seed_cut_short", json=True)
    assert status == 1
    (fault,) = json.loads(told.out)["faults"]
    assert fault["verdict"] == "survived"
    assert fault["problems"] == [
        "no case like accelerator/seeding_reproduces says that random is broken"
    ]


def test_faults_are_listed_by_name_and_by_kind(capsys):
    _, told = self_test(capsys, list_only=True, json=True)
    assert sorted(json.loads(told.out)) == sorted(FAULTS)
    _, told = self_test(capsys, "stream", list_only=True)
    lines = told.out.splitlines()
    assert lines
    assert all(line.startswith("stream ") for line in lines)
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize("name", ["bias_twoce", "streams"])
def test_a_name_that_no_fault_has_is_refused(capsys, name):
    status, told = self_test(capsys, name)
    assert status == 2
    assert f"no fault or kind is {name!r}; did you mean" in told.err
