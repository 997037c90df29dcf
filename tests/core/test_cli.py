"""The command line: what it shows, as tables and as JSON, and exit codes that tell the truth."""

import json
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import accel
from accel import cli, testing
from accel.errors import AccelWarning

ABSENT = accel.Refusal("device", "a device", "none", "plug it in")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line; returns its exit status, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["accel", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        printed = capsys.readouterr()
        return SimpleNamespace(
            status=exited.value.code or 0,
            out=printed.out,
            err=printed.err,
            json=lambda: json.loads(printed.out),
        )

    return run


def builder(kernel=None, **impl):
    return testing.fake_builder({"linear": kernel or testing.fake_kernel("linear")}, **impl)


@pytest.fixture
def one():
    with testing.installed(testing.fake_backend("solo", builders=[builder()])):
        yield


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--help"], ["conform", "--help"]])
def test_help_is_shown(run, arguments):
    done = run(*arguments)
    assert done.status == 0
    assert "Usage:" in done.out


# -- info --------------------------------------------------------------------------------------


def test_info_shows_the_choice_its_reason_and_the_ops(run, one):
    done = run("info")
    assert done.status == 0
    assert "accelerator: solo (the only backend installed)" in done.out
    assert torch.__version__ in done.out
    assert re.search(r"linear .* passed .* passed", done.out)


def test_info_as_json_has_the_same(run, one):
    facts = run("info", "--json").json()
    assert facts["accelerator"] == {"chosen": "solo", "reason": "the only backend installed"}
    assert facts["versions"]["accel"] == accel.__version__
    (plugin,) = facts["backends"]
    assert (plugin["state"], plugin["broken"], plugin["kind"]) == ("chosen", False, "backend")
    states = {(row["op"], row["implementation"]): row["state"] for row in facts["ops"]}
    assert states["linear", "fake.kernel"] == "self-test passed"
    assert states["rms_norm", "reference"] == "self-test passed"


def test_info_fails_a_kernel_that_computes_wrongly(run):
    wrong = builder(lambda x, w, b, act, out: x @ w.t() + 1, id="fake.wrong")
    with testing.installed(testing.fake_backend(builders=[wrong])):
        done = run("info", "--json")
    assert done.status == 1
    (row,) = [row for row in done.json()["ops"] if row["implementation"] == "fake.wrong"]
    assert row["state"] == "self-test failed"
    assert "of the result's RMS, allowed" in row["reasons"][0]


def raises(*args):
    raise OSError("no such device")


@pytest.mark.parametrize("kernel", [raises, lambda *args: torch.full((16, 32), float("nan"))])
def test_info_fails_a_kernel_that_raises_or_gives_no_number(run, kernel):
    with testing.installed(testing.fake_backend(builders=[builder(kernel)])):
        assert run("info", "--json").status == 1


def test_info_fails_a_builder_that_cannot_judge(run):
    torn = builder()
    torn.reasons = raises
    with testing.installed(testing.fake_backend(builders=[torn])):
        done = run("info", "--json")
    assert done.status == 1
    (row,) = [r for r in done.json()["ops"] if r["implementation"] == "fake.kernel"]
    assert row["reasons"] == ["OSError: no such device"]


def test_info_shows_what_is_unavailable_and_why_and_is_content(run):
    gone = testing.fake_backend("gone", refusals=[ABSENT], rank=-1, caveat="never ran")
    with testing.installed(gone, testing.fake_backend("here")):
        done, data = run("info"), run("info", "--json").json()
    assert done.status == 0
    assert "needs a device, found none" in done.out
    assert "plug it in" in done.out
    assert "never ran" in done.out
    assert {b["name"]: b["state"] for b in data["backends"]} == {
        "gone": "refused",
        "here": "chosen",
    }


@pytest.mark.filterwarnings("ignore::accel.errors.AccelWarning")
def test_info_without_a_backend_says_so_and_fails(run):
    with testing.installed():
        done = run("info")
    assert done.status == 1
    assert "accelerator: none" in done.out
    assert "NoBackendError" in done.out


def test_info_with_an_accelerator_that_cannot_be_imported_says_so(run):
    with testing.installed(testing.fake_backend("torn", accelerator="nobody_has_this:X")):
        done = run("info", "--json")
    assert done.status == 1
    assert "nobody_has_this:X cannot be imported" in done.json()["accelerator"]["reason"]


def test_a_broken_plugin_is_shown_with_its_traceback(fresh, site, plugin_code):
    site.install("accel-torn", "def f():\n    raise OSError('no libtorn.so')\nf()", entry="torn")
    site.install("accel-whole", plugin_code("whole"), entry="whole")
    code = "from accel.cli import main; import sys; sys.argv = ['accel', 'info']; main()"
    environment = {"PYTHONPATH": str(site.folder), "ACCEL_BACKEND": "whole", "COLUMNS": "200"}
    done = fresh(code, status=1, **environment)
    assert "Traceback (most recent call last)" in done.stdout
    assert "accel_torn.py" in done.stdout
    assert "OSError: no libtorn.so" in done.stdout
    assert "accelerator: whole (chosen by ACCEL_BACKEND=whole)" in done.stdout
    assert done.stderr.startswith("AccelWarning: plugin 'torn' of accel-torn 1.0 is not used")


# -- explain -----------------------------------------------------------------------------------


def test_explain_prints_the_decision(run, one):
    done = run("explain", "linear", "--dtype", "float64", "--shape", "8x128", "--shape", "4x128")
    assert done.status == 0
    assert done.out.startswith("linear(")
    assert "shapes=[[8, 128], [4, 128]]" in done.out
    assert "[dtype] needs float32, found float64" in done.out


def test_explain_as_json_has_the_same(run, one):
    data = run("explain", "linear", "--option", "act=silu", "--json").json()
    assert data["chosen"] == "fake.kernel"
    assert "act=silu" in data["request"]


def test_explain_tells_of_each_op_of_a_layer(run, one):
    assert run("explain", "TiledCrossEntropy").out.count("torch") >= 2
    assert set(run("explain", "TiledCrossEntropy", "--json").json()) == {"linear", "logprob"}


def test_explain_fails_where_nothing_serves(run, one, monkeypatch):
    monkeypatch.setenv("ACCEL_OPS", "linear=fake.kernel")
    with testing.installed(testing.fake_backend(builders=[builder()])):
        assert run("explain", "linear", "--dtype", "float64").status == 1
        assert run("explain", "linear").status == 0


MISUSED = {
    "op": (["explain", "linaer"], "UnknownOpError: unknown op 'linaer'; did you mean 'linear'"),
    "layer_shape": (["explain", "TiledCrossEntropy", "--shape", "3"], "--shape and --option are"),
    "dtype": (["explain", "linear", "--dtype", "float31"], "'float31' is no torch dtype"),
    "shape": (["explain", "linear", "--shape", "8,128"], "cannot read the shape '8,128'"),
    "option": (["explain", "linear", "--option", "act"], "cannot read the option 'act'"),
    "unknown_option": (["explain", "linear", "--option", "axt=1"], "linear has the options"),
    "device": (["explain", "linear", "--device", "warp"], "'warp' is no torch device"),
}


@pytest.mark.parametrize(("arguments", "says"), MISUSED.values(), ids=MISUSED)
def test_misuse_is_answered_with_a_sentence(run, one, arguments, says):
    done = run(*arguments)
    assert done.status == 2
    assert done.err.startswith("accel: ")
    assert says in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [["linaer"], ["explain"], ["explain", "linear", "--no"], []])
def test_a_command_line_that_cannot_be_read_is_misuse(run, one, arguments):
    assert run(*arguments).status == 2


def test_a_bad_variable_is_answered_with_a_sentence(run, one, monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "sole")
    done = run("explain", "linear")
    assert done.status == 2
    assert "ACCEL_BACKEND=sole: backend 'sole' is not installed" in done.err
    assert "did you mean 'solo'" in done.err


def test_warnings_are_one_line_on_stderr(run):
    old = testing.fake_backend("old", api="0.1")
    with pytest.warns(AccelWarning), testing.installed(old):
        pass
    gone = testing.fake_backend("gone", rank=9, refusals=[ABSENT])
    with testing.installed(gone, testing.fake_backend("house", host=True)):
        done = run("explain", "linear", "--json")
    assert done.err.startswith("AccelWarning: accel runs on 'house'")
    assert done.json()["chosen"], "stdout is JSON alone"


# -- build -------------------------------------------------------------------------------------


def compiling(action):
    made = builder()
    made.build = lambda self: action()
    return made


def test_build_builds_what_compiles_something(run):
    built = []
    with testing.installed(testing.fake_backend(builders=[compiling(lambda: built.append(1))])):
        done = run("build", "--json")
    assert (done.status, built) == (0, [1])
    assert done.json()["built"] == ["accel.testing.LinearBuilder"]
    assert done.json()["failed"] == {}


def test_build_says_what_failed_and_fails(run):
    def fail():
        raise accel.errors.BuildError("no header")

    with testing.installed(testing.fake_backend(builders=[compiling(fail)])):
        done = run("build")
    assert done.status == 1
    assert "could not build accel.testing.LinearBuilder: BuildError: no header" in done.out


def test_build_with_nothing_to_do_says_so(run, one):
    done = run("build")
    assert (done.status, done.out) == (0, "nothing to do\n")


def test_build_leaves_an_unavailable_device_alone(run):
    lazy = compiling(lambda: pytest.fail("built"))
    with testing.installed(testing.fake_backend(builders=[lazy], refusals=[ABSENT])):
        assert run("build", "--json").json()["built"] == []


def test_clean_empties_the_cache(run, one, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    (tmp_path / "lib-1").mkdir()
    (tmp_path / "lib-1.lock").touch()
    assert run("build", "--clean", "--json").json()["removed"] == [str(tmp_path / "lib-1")]
    assert run("build", "--clean").out == "nothing to do\n"


# -- conform -----------------------------------------------------------------------------------


@pytest.fixture
def suite(monkeypatch):
    """A conformance suite that writes down how it was asked."""
    asked = []
    module = ModuleType("accel_conformance")
    module.run = lambda backend, **options: asked.append((backend, options)) or 1
    monkeypatch.setitem(sys.modules, "accel_conformance", module)
    return asked


def test_conform_hands_over_to_the_suite_and_returns_its_status(run, suite, tmp_path):
    done = run("conform", "--backend", "solo", "--ops", "linear, rms_norm", "--dtypes", "float32",
               "--report", str(tmp_path), "--list", "--json")  # fmt: skip
    assert done.status == 1
    ((backend, options),) = suite
    assert backend == "solo"
    assert options["ops"] == ["linear", "rms_norm"]
    assert options["dtypes"] == ["float32"]
    assert options["impls"] is None
    assert (options["report"], options["list_only"], options["json"]) == (tmp_path, True, True)


def test_conform_without_the_suite_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "accel_conformance", None)
    done = run("conform", "--backend", "solo")
    assert done.status == 2
    assert done.err.endswith("pip install ./conformance\n")
