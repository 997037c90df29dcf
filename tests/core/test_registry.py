"""Among plugins: availability, conflicts, supersession, kernel packs, and making accelerators."""

from importlib.metadata import EntryPoint

import pytest
import torch

import accel
from accel import plugins, testing
from accel.errors import (
    AccelWarning,
    BackendConflictError,
    BackendNotFoundError,
    BackendUnavailableError,
    PluginError,
    UnknownOpError,
)
from accel.registry import Registry

ABSENT = accel.Refusal("device", "a device", "none", "plug it in")


def raising():
    raise OSError("driver says no")


NONSENSE_PROBES = {
    "raises": (raising, "found OSError('driver says no')"),
    "none": (lambda: None, "found NoneType: None"),
    "true": (lambda: True, "found bool: True"),
    "text": (lambda: "not here", "found str: 'not here'"),
    "texts": (lambda: ["not here"], "found list: ['not here']"),
}


@pytest.mark.parametrize(("probe", "says"), NONSENSE_PROBES.values(), ids=NONSENSE_PROBES)
def test_a_probe_that_fails_makes_its_backend_unavailable_and_no_other(probe, says):
    odd = testing.fake_backend("odd", rank=9, probe=probe)
    with testing.installed(odd, testing.fake_backend("fine")) as registry:
        assert accel.get_accelerator().name == "fine"
        with pytest.raises(BackendUnavailableError) as caught:
            accel.set_accelerator("odd")
    assert says in str(caught.value)
    assert "report it to the authors of odd" in str(caught.value)
    (odd,) = [c for c in registry.candidates if c.name == "odd"]
    assert (probe is raising) == ("driver says no" in (odd.traceback or ""))


def test_a_probe_is_asked_once():
    asked = []
    probe = lambda: asked.append(1) or []  # noqa: E731
    with testing.installed(testing.fake_backend(probe=probe)):
        for _ in range(3):
            accel.get_accelerator()
    assert asked == [1]


def test_a_probe_is_not_asked_of_what_nobody_chooses():
    shy = testing.fake_backend("shy", probe=raising)
    with testing.installed(shy, testing.fake_backend("bold", rank=2)) as registry:
        accel.set_accelerator("bold")
        (shy,) = [c for c in registry.candidates if c.name == "shy"]
        assert shy.traceback is None


# -- two of one name ---------------------------------------------------------------------------


def test_two_distributions_with_one_name_are_both_refused_and_named(site, plugin_code):
    site.install("accel-left", plugin_code("twin"), version="1.0")
    site.install("accel-right", plugin_code("twin"), version="2.0")
    site.install("accel-other", plugin_code("other"))
    with pytest.warns(AccelWarning, match=r"accel-left 1\.0 and accel-right 2\.0") as said:
        registry = Registry(site.discover())
    assert len(said) == 1, "one conflict, one warning"
    assert registry.accelerator("other").name == "other"
    with pytest.raises(BackendConflictError, match=r"accel-left 1\.0 and accel-right 2\.0"):
        registry.accelerator("twin")


def test_two_entry_points_of_one_name_with_different_backends_both_work(site, plugin_code):
    site.install("accel-left", plugin_code("left"), entry="same")
    site.install("accel-right", plugin_code("right"), entry="same")
    registry = Registry(site.discover())
    assert {c.name for c in registry.backends()} == {"left", "right"}


# -- asking for a backend by name --------------------------------------------------------------


def test_a_backend_that_is_not_installed_is_answered_with_near_names():
    backends = [testing.fake_backend("vulkan"), testing.fake_backend("metal")]
    with (
        testing.installed(*backends) as registry,
        pytest.raises(BackendNotFoundError) as caught,
    ):
        registry.accelerator("vulcan")
    assert "installed: metal, vulkan; did you mean 'vulkan'?" in str(caught.value)


def test_a_broken_plugin_asked_for_by_its_entry_point_says_why(site):
    site.install("accel-bad", "raise OSError('no lib')", entry="bad")
    with pytest.warns(AccelWarning):
        registry = Registry(site.discover())
    with pytest.raises(BackendUnavailableError, match=r"'bad' of accel-bad 1\.0 gives no.*no lib"):
        registry.accelerator("bad")


def test_a_kernel_pack_asked_for_as_a_backend_says_what_it_is():
    with (
        testing.installed(kernel_pack("pack")) as registry,
        pytest.raises(BackendUnavailableError, match="gives no backend: it is a kernel pack"),
    ):
        registry.accelerator("pack")


# -- supersession ------------------------------------------------------------------------------


def test_a_newer_backend_takes_the_place_of_what_it_supersedes():
    old = testing.fake_backend("old", rank=9)
    new = testing.fake_backend("new", rank=1, supersedes=("old",))
    with testing.installed(old, new) as registry:
        assert accel.get_accelerator().name == "new"
        with pytest.raises(BackendUnavailableError, match=r"'new' to be absent.*uninstall new"):
            registry.accelerator("old")


def test_an_unavailable_backend_supersedes_nothing():
    old = testing.fake_backend("old")
    new = testing.fake_backend("new", supersedes=("old",), refusals=[ABSENT])
    with testing.installed(old, new):
        assert accel.get_accelerator().name == "old"


# -- kernel packs ------------------------------------------------------------------------------


def kernel_pack(name, kernels=(), **impl):
    """A plugin with builders and no backend."""
    module = testing.fake_backend(name)
    del module.accel_backend
    builders = [testing.fake_builder(kernels, **impl)] if kernels else []
    module.accel_op_builders = accel.hookimpl(lambda: builders)
    return module


def test_a_kernel_pack_serves_somebody_elses_device():
    calls = testing.Calls()
    pack = kernel_pack("pack", {"linear": testing.fake_kernel("linear", calls)}, id="pack.fast")
    with testing.installed(testing.fake_backend("device"), pack):
        accel.ops.linear(torch.ones(2, 3), torch.ones(4, 3))
        assert accel.ops.explain("linear").chosen.impl.id == "pack.fast"
    assert [op for op, _ in calls] == ["linear"]


def test_the_builders_of_a_broken_plugin_are_refused_with_it():
    fine = testing.fake_builder({"linear": testing.fake_kernel("linear")}, id="half.fast")
    half = testing.fake_backend("half", builders=[fine])
    half.accel_policies = accel.hookimpl(lambda: [1])
    with pytest.warns(AccelWarning, match="accel_policies"), testing.installed(half):
        (verdict, *_) = accel.ops.explain("linear", device=testing.HOST).verdicts
    assert verdict.impl.id == "half.fast"
    assert "accel_policies() must list" in str(verdict.refusals[0])


def test_the_builders_of_an_unavailable_device_are_refused_with_its_reason():
    fine = testing.fake_builder({"linear": testing.fake_kernel("linear")})
    absent = testing.fake_backend("gone", builders=[fine], refusals=[ABSENT])
    with (
        testing.installed(absent, testing.fake_backend("here")),
        accel.ops.use(exact=False, fallback="error"),
    ):
        decision = accel.ops.explain("linear")
        assert decision.verdicts[0].refusals == (ABSENT,)
        assert accel.ops.linear(torch.ones(1, 2), torch.ones(1, 2)).item() == 2, "no fallback"


# -- making the accelerator --------------------------------------------------------------------


class NoAccelerator:
    """Found where an accelerator should be."""


class FailingAccelerator(accel.Accelerator):
    def __init__(self, backend):
        raise OSError("driver says no")


WRONG_ACCELERATORS = {
    "module": ("a_module_nobody_has:X", "cannot be imported: ModuleNotFoundError: No module named"),
    "init": (f"{__name__}:FailingAccelerator", "cannot be made: OSError: driver says no"),
    "attribute": ("accel.testing:Missing", "must be a subclass of accel.Accelerator, not None"),
    "class": (f"{__name__}:NoAccelerator", "must be a subclass of accel.Accelerator, not <class"),
    "function": ("accel.testing:installed", "must be a subclass of accel.Accelerator, not <func"),
}


@pytest.mark.parametrize(
    ("accelerator", "says"), WRONG_ACCELERATORS.values(), ids=WRONG_ACCELERATORS
)
def test_an_accelerator_that_is_not_there_names_its_distribution(accelerator, says):
    wrong = testing.fake_backend("wrong", accelerator=accelerator)
    with testing.installed(wrong, testing.fake_backend("right")):
        with pytest.raises(PluginError) as caught:
            accel.set_accelerator("wrong")
        assert str(caught.value).startswith("wrong: ")
        assert says in str(caught.value)
        accel.set_accelerator("right")
        assert accel.get_accelerator().name == "right"


def test_there_is_one_accelerator_per_backend():
    with testing.installed(testing.fake_backend()) as registry:
        assert registry.accelerator("fake") is accel.get_accelerator()


def test_candidates_come_in_the_order_of_their_names(monkeypatch):
    found = [EntryPoint(n, "nobody_has_this", plugins.GROUP) for n in ("zebra", "ant", "mole")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)
    assert [c.label for c in plugins.discover()] == ["ant", "mole", "zebra"]


# -- builders -----------------------------------------------------------------------------------


def test_a_backend_s_own_builder_comes_before_the_one_over_torch():
    mine = testing.fake_builder({"linear": testing.fake_kernel("linear")})
    with testing.installed(testing.fake_backend(builders=[mine])):
        acc = accel.get_accelerator()
        assert acc.get_op_builder("LinearBuilder") is mine
        other = acc.create_op_builder("TransformerBuilder")
        assert type(other).__module__ == "accel.torch_impls"
        with pytest.raises(UnknownOpError, match="'LinearBilder'; did you mean 'LinearBuilder'"):
            acc.create_op_builder("LinearBilder")
