"""The library that a builder compiles: whether it has one, and when there is no compiler."""

import json

import pytest

import accel_conformance
from accel import Refusal, testing


@pytest.mark.parametrize(("level", "cases"), [("full", ["builders/cached/answer"]), ("smoke", [])])
def test_only_a_full_run_compiles(capsys, level, cases):
    accel_conformance.run("host", cases=["builders/*"], level=level, list_only=True, json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [id for id in listed if "cached" in id] == cases


def test_a_backend_that_compiles_nothing_keeps_no_rule(conform):
    plain = testing.fake_backend("plain", builders=[testing.fake_builder({})])
    _, report = conform("plain", plugins=[plain], cases=["builders/cached*"])
    (case,) = report["cases"]
    assert (case["outcome"], case["rules"]) == ("refused", [])
    assert "needs a builder that compiles a NativeLibrary" in case["message"]


def test_without_a_compiler_a_library_shows_nothing(conform, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    _, report = conform(cases=["builders/cached/answer"])
    (case,) = report["cases"]
    assert case["outcome"] == "refused"
    assert "[compiler] needs a C++20 compiler" in case["message"]


@pytest.mark.parametrize(("code", "outcome"), [("library", "refused"), ("dtype", "failed")])
def test_what_serves_nothing_fails_unless_its_library_is_not_there(conform, code, outcome):
    refusals = [Refusal(code, "what is never there", "nothing", "do without")]
    builder = testing.fake_builder(
        {"linear": testing.fake_kernel("linear")}, reasons=lambda *_: refusals
    )
    plain = testing.fake_backend("plain", builders=[builder])
    _, report = conform("plain", plugins=[plain], cases=["builders/linear/fake.kernel/serves"])
    (case,) = report["cases"]
    assert case["outcome"] == outcome
