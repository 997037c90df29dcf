"""A plugin that breaks a rule is refused on its own, with the reason, and nothing else is."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch

import accel
from accel import plugins, testing
from accel.errors import AccelWarning
from accel.registry import Registry


def plugin(**attributes):
    module = ModuleType("broken")
    module.__dict__.update({"ACCEL_API": "1.0", **attributes})
    return module


def hook(name, function):
    return {name: accel.hookimpl(function)}


def refusal(module):
    """The one refusal of a plugin, as text."""
    (candidate,) = plugins.from_objects([module])
    (found,) = candidate.refusals
    return str(found)


def test_a_plugin_that_keeps_the_rules_is_accepted():
    (candidate,) = plugins.from_objects([testing.fake_backend("fine")])
    assert (candidate.name, candidate.refusals, candidate.unavailable()) == ("fine", [], [])


BROKEN_MODULES = {
    "raises": ("raise RuntimeError('no such library')", "RuntimeError: no such library"),
    "leaves": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "misses": ("import a_module_nobody_has", "No module named 'a_module_nobody_has'"),
    "garbles": ("def", "SyntaxError"),
}


@pytest.mark.parametrize(("code", "says"), BROKEN_MODULES.values(), ids=BROKEN_MODULES)
def test_a_plugin_that_cannot_be_imported_leaves_the_others_alone(site, plugin_code, code, says):
    site.install("accel-bad", code, entry="bad", version="2.1")
    site.install("accel-good", plugin_code("good"), entry="good")
    with pytest.warns(AccelWarning) as said:
        registry = Registry(site.discover())
    (warning,) = said
    assert "'bad' of accel-bad 2.1" in str(warning.message)
    assert says in str(warning.message)
    assert "accel-bad" not in repr(registry.accelerator("good"))
    (bad,) = [c for c in registry.candidates if c.label == "bad"]
    assert says.partition(":")[0] in bad.traceback
    assert "accel_bad" in bad.traceback, "the traceback leads to the plugin's own line"


def test_two_broken_plugins_are_both_reported_even_under_one_name(site):
    site.install("accel-one", "raise OSError('first')", entry="same")
    site.install("accel-two", "raise OSError('second')", entry="same")
    with pytest.warns(AccelWarning) as said:
        Registry(site.discover())
    assert len(said) == 2


NONSENSE = {
    "backend_none": ("accel_backend", None, "must return an accel.Backend, not None"),
    "backend_dict": ("accel_backend", {"name": "x"}, "must return an accel.Backend, not {"),
    "backend_class": ("accel_backend", accel.Backend, "must return an accel.Backend, not <class"),
    "builders_none": ("accel_op_builders", None, "must return a list of classes, not None"),
    "builders_text": ("accel_op_builders", "LinearBuilder", "a list of classes, not 'Linear"),
    "builders_stranger": ("accel_op_builders", [int], "must list OpBuilder classes, not <class"),
    "builders_object": ("accel_op_builders", [accel.OpBuilder()], "must list OpBuilder classes"),
    "policies_none": ("accel_policies", None, "must return a list of classes, not None"),
    "policies_object": ("accel_policies", [object()], "accel_policies() must list object classes"),
}


@pytest.mark.parametrize(("name", "answer", "says"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_from_a_hook_is_refused(name, answer, says):
    assert says in refusal(plugin(**hook(name, lambda: answer)))


def test_a_misspelt_hook_is_refused_with_the_right_spelling():
    said = refusal(plugin(**hook("accel_op_bilders", lambda: [])))
    assert "unknown hook 'accel_op_bilders'; did you mean 'accel_op_builders'" in said


def test_a_hook_with_an_argument_nobody_passes_is_refused():
    said = refusal(plugin(**hook("accel_backend", lambda device: None)))
    assert "accel_backend" in said
    assert "device" in said


def test_a_plugin_without_hooks_is_refused():
    assert "implements none of the hooks accel_backend," in refusal(plugin())


def test_a_hook_that_raises_is_refused_with_its_traceback():
    def accel_backend():
        raise ZeroDivisionError("in the hook")

    (candidate,) = plugins.from_objects([plugin(accel_backend=accel.hookimpl(accel_backend))])
    assert "ZeroDivisionError: in the hook" in str(candidate.refusals[0])
    assert "line" in candidate.traceback


def test_an_unhashable_plugin_spoils_no_other():
    class Unhashable:
        ACCEL_API = "1.0"
        __hash__ = None
        accel_op_builders = accel.hookimpl(lambda self: [])

    first, second = plugins.from_objects([Unhashable(), testing.fake_backend("fine")])
    assert not first.refusals
    assert not second.refusals


# -- the version of the hooks ------------------------------------------------------------------


def never_asked():
    pytest.fail("a hook was called before the version was found to fit")


WRONG_API = {
    "absent": (None, 'needs ACCEL_API = "1.0" in the plugin, found ACCEL_API = None'),
    "older_major": ("0.9", "needs a plugin for accel's API 1.0, found one for 0.9"),
    "newer_major": ("2.0", "needs a plugin for accel's API 1.0, found one for 2.0"),
    "newer_minor": ("1.1", "needs a plugin for accel's API 1.0, found one for 1.1"),
    "one_number": ("1", "found ACCEL_API = '1'"),
    "three_numbers": ("1.0.0", "found ACCEL_API = '1.0.0'"),
    "words": ("one.zero", "found ACCEL_API = 'one.zero'"),
    "float": (1.0, "found ACCEL_API = 1.0"),
    "bytes": (b"1.0", "found ACCEL_API = b'1.0'"),
    "tuple": ((1, 0), "found ACCEL_API = (1, 0)"),
}


@pytest.mark.parametrize(("api", "says"), WRONG_API.values(), ids=WRONG_API)
def test_another_version_of_the_hooks_is_refused_in_one_sentence_before_any_is_asked(api, says):
    module = plugin(ACCEL_API=api, **hook("accel_backend", never_asked))
    (candidate,) = plugins.from_objects([module])
    (found,) = candidate.refusals
    assert found.code == "api"
    assert says in str(found)
    assert "\n" not in str(found)
    assert candidate.traceback is None


@pytest.mark.parametrize("api", ["1.0", "1.1", "1.2"])
def test_an_older_minor_version_of_the_hooks_is_accepted(monkeypatch, api):
    monkeypatch.setattr(plugins, "API", (1, 2))
    (candidate,) = plugins.from_objects([testing.fake_backend(api=api)])
    assert not candidate.refusals


# -- what is in a Backend ----------------------------------------------------------------------

WRONG_FIELDS = {
    "name": b"mine",
    "vendor": 7,
    "device_type": torch.device("meta"),
    "version": (1, 0),
    "rank": "1",
    "supersedes": "other",
    "expectations": 3,
    "host": "yes",
    "variables": ["ACCEL_X"],
    "caveat": None,
    "probe": [],
}


@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS.items(), ids=WRONG_FIELDS)
def test_a_backend_field_of_the_wrong_type_is_refused_by_name(field, value):
    backend = replace(testing.fake_backend().accel_backend(), **{field: value})
    said = refusal(plugin(**hook("accel_backend", lambda: backend)))
    assert f"Backend.{field} must be" in said


@pytest.mark.parametrize("accelerator", ["module", "a:b:c", ""])
def test_an_accelerator_that_is_no_module_and_class_is_refused(accelerator):
    said = refusal(testing.fake_backend(accelerator=accelerator))
    assert f'Backend.accelerator must be "module:Class", not {accelerator!r}' in said


def test_a_rank_of_true_is_no_number():
    assert "Backend.rank must be" in refusal(testing.fake_backend(rank=True))


# -- builders ----------------------------------------------------------------------------------

F32 = frozenset({torch.float32})


def impl(op="linear", id="mine.fast", dtypes=F32):
    return accel.Impl(op, id, dtypes, priority=1)


WRONG_BUILDERS = {
    "family": ("Builder", {}, "named after its family, one of LinearBuilder,"),
    "device": ("LinearBuilder", {"device_type": ""}, "device_type must name a torch device"),
    "no_impl": ("LinearBuilder", {"impls": ["linear"]}, "must hold accel.Impl objects, not 'lin"),
    "op": ("LinearBuilder", {"impls": [impl("linea")]}, "'linea', which is no op of this accel"),
    "id": ("LinearBuilder", {"impls": [impl(id="fast")]}, 'has the form "package.kind", not'),
    "twice": ("LinearBuilder", {"impls": [impl(), impl()]}, "lists mine.fast (linear) twice"),
    "no_dtype": ("LinearBuilder", {"impls": [impl(dtypes=frozenset())]}, "must list torch dtypes"),
    "dtype": ("LinearBuilder", {"impls": [impl(dtypes={"float32"})]}, "must list torch dtypes"),
}


@pytest.mark.parametrize(("name", "body", "says"), WRONG_BUILDERS.values(), ids=WRONG_BUILDERS)
def test_a_builder_of_the_wrong_form_is_refused(name, body, says):
    cls = type(name, (accel.OpBuilder,), {"device_type": "cpu", "impls": (impl(),), **body})
    assert says in refusal(testing.fake_backend(builders=[cls]))


def test_a_builder_that_cannot_be_made_is_refused_with_its_traceback():
    class LinearBuilder(accel.OpBuilder):
        device_type = "cpu"
        impls = (impl(),)

        def __init__(self):
            raise OSError("no driver")

    module = testing.fake_backend("fragile", builders=[LinearBuilder])
    (candidate,) = plugins.from_objects([module])
    assert "OSError: no driver" in plugins.why(candidate)
    assert "no driver" in candidate.traceback
    assert candidate.builders == []
