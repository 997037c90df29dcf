"""Choosing the accelerator: use > set > ACCEL_BACKEND > rank, and what cannot be had raises."""

import pytest

import accel
from accel import selection, testing
from accel.errors import (
    AccelWarning,
    AmbiguousBackendError,
    BackendConflictError,
    BackendNotFoundError,
    BackendUnavailableError,
    ConfigError,
    NoBackendError,
)

ABSENT = accel.Refusal("device", "a device", "none", "plug it in")


def chosen():
    return accel.get_accelerator().name


@pytest.fixture
def three():
    """Backends a, b and c, by falling rank."""
    backends = [testing.fake_backend(name, rank=r) for name, r in (("a", 3), ("b", 2), ("c", 1))]
    with testing.installed(*backends) as registry:
        yield registry


# -- precedence --------------------------------------------------------------------------------


def test_the_highest_rank_is_chosen(three):
    assert chosen() == "a"
    assert selection.choose().reason == "highest rank (3) available"


def test_the_environment_is_stronger_than_rank(three, monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "b")
    assert chosen() == "b"
    assert selection.choose().reason == "chosen by ACCEL_BACKEND=b"


def test_set_is_stronger_than_the_environment(three, monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "b")
    accel.set_accelerator("c")
    assert chosen() == "c"
    assert selection.choose().reason == "chosen by set_accelerator()"


def test_use_is_stronger_than_set(three):
    accel.set_accelerator("c")
    with accel.use_accelerator("b") as given:
        assert accel.get_accelerator() is given
        assert selection.choose().reason == "chosen by use_accelerator()"
        assert chosen() == "b"
    assert chosen() == "c"


def test_setting_none_undoes_a_choice(three):
    accel.set_accelerator("c")
    accel.set_accelerator(None)
    assert chosen() == "a"


def test_an_accelerator_can_be_given_itself(three):
    acc = three.accelerator("b")
    accel.set_accelerator(acc)
    assert accel.get_accelerator() is acc


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_is_no_choice(three, monkeypatch, value):
    monkeypatch.setenv("ACCEL_BACKEND", value)
    assert chosen() == "a"


def test_a_lone_backend_says_so():
    with testing.installed(testing.fake_backend()):
        assert selection.choose().reason == "the only backend installed"


# -- a choice that cannot be had ---------------------------------------------------------------


def by_set(name, monkeypatch):
    accel.set_accelerator(name)


def by_use(name, monkeypatch):
    with accel.use_accelerator(name):
        pytest.fail("entered")


def by_variable(name, monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", name)
    accel.get_accelerator()


choosing = pytest.mark.parametrize("choose", [by_set, by_use, by_variable])


@choosing
def test_an_unknown_backend_raises_with_near_names(three, monkeypatch, choose):
    with pytest.raises(BackendNotFoundError, match=r"'bb' is not installed.*did you mean 'b'"):
        choose("bb", monkeypatch)


@choosing
def test_an_unavailable_backend_raises_with_its_reasons(monkeypatch, choose):
    gone = testing.fake_backend("gone", refusals=[ABSENT], rank=-5)
    with (
        testing.installed(gone, testing.fake_backend("here")),
        pytest.raises(BackendUnavailableError) as caught,
    ):
        choose("gone", monkeypatch)
    assert "[device] needs a device, found none (plug it in)" in str(caught.value)


@choosing
def test_a_contested_name_raises(monkeypatch, choose):
    twins = [testing.fake_backend("twin"), testing.fake_backend("twin")]
    with (
        pytest.warns(AccelWarning, match="one distribution that provides"),
        testing.installed(*twins),
        pytest.raises(BackendConflictError, match="found twin and twin"),
    ):
        choose("twin", monkeypatch)


def test_a_failed_variable_is_named_in_the_error(three, monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "z")
    with pytest.raises(BackendNotFoundError, match=r"^ACCEL_BACKEND=z: backend 'z'"):
        accel.get_accelerator()


@pytest.mark.parametrize("choice", ["zz", 3, object, ["a"]])
def test_a_bad_choice_changes_nothing(three, choice):
    accel.set_accelerator("b")
    with pytest.raises((BackendNotFoundError, TypeError)):
        accel.set_accelerator(choice)
    assert chosen() == "b"
    with pytest.raises((BackendNotFoundError, TypeError)), accel.use_accelerator(choice):
        pytest.fail("entered")
    assert chosen() == "b"


# -- choosing by itself ------------------------------------------------------------------------


def test_equal_ranks_are_ambiguous_until_somebody_says():
    with testing.installed(testing.fake_backend("a"), testing.fake_backend("b")):
        with pytest.raises(AmbiguousBackendError, match=r"'a' and 'b'.*ACCEL_BACKEND=a"):
            accel.get_accelerator()
        accel.set_accelerator("b")
        assert chosen() == "b"


def test_an_unavailable_rival_is_no_rival():
    gone = testing.fake_backend("gone", refusals=[ABSENT])
    with testing.installed(gone, testing.fake_backend("here")):
        assert chosen() == "here"


def test_nothing_installed_names_the_install_command():
    with testing.installed(), pytest.raises(NoBackendError) as caught:
        accel.get_accelerator()
    assert "no backend is installed" in str(caught.value)
    assert "pip install ./" in str(caught.value)


def test_nothing_usable_lists_every_reason():
    gone = testing.fake_backend("gone", refusals=[ABSENT])
    old = testing.fake_backend("old", api="0.1")
    with (
        pytest.warns(AccelWarning, match="API"),
        testing.installed(gone, old),
        pytest.raises(NoBackendError) as caught,
    ):
        accel.get_accelerator()
    assert "gone (gone): [device] needs a device, found none" in str(caught.value)
    assert "old (old): [api]" in str(caught.value)


# -- only the host is left ---------------------------------------------------------------------


def test_one_warning_says_that_only_the_host_is_left_and_why():
    gone = testing.fake_backend("gone", rank=9, refusals=[ABSENT])
    with testing.installed(gone, testing.fake_backend("house", host=True)):
        with pytest.warns(AccelWarning) as said:
            assert chosen() == "house"
        accel.get_accelerator()  # a second warning would be an error here
    (warning,) = said
    assert "'house', the host processor, because\n  gone: [device] needs a device" in str(
        warning.message
    )
    assert warning.filename == __file__, "it points at the caller"


def set_by_variable(monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "house")


def set_by_call(monkeypatch):
    accel.set_accelerator("house")


@pytest.mark.parametrize("choose", [set_by_variable, set_by_call])
def test_the_host_chosen_on_purpose_needs_no_warning(choose, monkeypatch):
    gone = testing.fake_backend("gone", rank=9, refusals=[ABSENT])
    with testing.installed(gone, testing.fake_backend("house", host=True)):
        choose(monkeypatch)
        assert chosen() == "house"


def test_a_refused_backend_of_lower_rank_is_not_missed():
    gone = testing.fake_backend("gone", rank=-9, refusals=[ABSENT])
    with testing.installed(gone, testing.fake_backend("house", host=True)):
        assert chosen() == "house"


# -- the environment's names -------------------------------------------------------------------


def test_an_unknown_variable_is_answered_with_the_nearest(three, monkeypatch):
    monkeypatch.setenv("ACCEL_BACKENDS", "a")
    with (
        pytest.raises(ConfigError, match=r"ACCEL_BACKENDS='a'; did you mean 'ACCEL_BACKEND'"),
        testing.installed(testing.fake_backend()),
    ):
        pytest.fail("installed")
    assert chosen() == "a", "what was installed before still is"


def test_a_plugin_may_have_variables_of_its_own(monkeypatch):
    monkeypatch.setenv("ACCEL_FAKE_LEVEL", "2")
    with testing.installed(testing.fake_backend(variables=("ACCEL_FAKE_LEVEL",))):
        assert chosen() == "fake"
