"""What two distributions cannot both claim, and what one cannot claim at all."""

import pytest

import accel
from accel import testing
from accel.contracts import CONTRACTS
from accel.errors import AccelWarning, ConfigError


def pack(name, id):
    builder = testing.fake_builder({"linear": CONTRACTS["linear"].reference}, id=id)
    plugin = testing.fake_backend(name, builders=[builder])
    del plugin.accel_backend
    return plugin


def test_an_implementation_is_one_distributions():
    with (
        pytest.warns(AccelWarning, match=r"linear by 'same\.id', found first and second"),
        testing.installed(pack("first", "same.id"), pack("second", "same.id")) as registry,
    ):
        assert [c.refusals[0].code for c in registry.candidates] == ["conflict", "conflict"]


def test_other_implementations_of_the_same_op_stand_beside_each_other():
    with testing.installed(pack("first", "one.id"), pack("second", "two.id")) as registry:
        assert not any(c.refusals for c in registry.candidates)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"supersedes": ("fake",)}, "cannot supersede itself"),
        ({"supersedes": (3,)}, "must hold strings"),
        ({"variables": (None,)}, "must hold strings"),
    ],
)
def test_a_backend_says_sensible_things_of_itself(fields, says):
    with (
        pytest.warns(AccelWarning, match=says),
        testing.installed(testing.fake_backend("fake", **fields)) as registry,
    ):
        assert registry.backends() == []


def test_a_variable_nobody_knows_is_an_error(monkeypatch):
    monkeypatch.setenv("ACCEL_FAKE", "1")
    with pytest.raises(ConfigError, match="ACCEL_FAKE"), testing.installed():
        pass


def test_a_variable_that_may_be_a_broken_plugins_breaks_nothing_else(monkeypatch):
    monkeypatch.setenv("ACCEL_FAKE", "1")
    old = testing.fake_backend("fake", api="0.1", variables=("ACCEL_FAKE",))
    with (
        pytest.warns(AccelWarning) as said,
        testing.installed(old, testing.fake_backend("good")),
    ):
        assert accel.get_accelerator().name == "good"
    assert any("ACCEL_FAKE" in str(warning.message) for warning in said)
