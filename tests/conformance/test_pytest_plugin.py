"""The pytest plugin, as pytest loads it: in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# The backend these runs test is installed as any other: by an entry point.
PLUGIN = """
import conformance_host
ACCEL_API = "1.0"
accel_backend = conformance_host.plugin().accel_backend
accel_op_builders = conformance_host.plugin().accel_op_builders
"""


@pytest.fixture
def site(tmp_path):
    """A folder like site-packages with the backend in it."""
    (tmp_path / "tested_host.py").write_text(PLUGIN)
    info = tmp_path / "tested_host-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tested-host\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accel.backends]\nhost = tested_host\n")
    return tmp_path


@pytest.fixture
def run_pytest(site):
    """``run_pytest(*arguments)``: status and output of pytest in a process of its own."""

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        path = os.pathsep.join([str(site), str(HERE), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, cwd=site, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "160"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def test_without_a_backend_it_is_cheap_and_harmless(run_pytest, site):
    (site / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    assert 'accel_conformance.plugin' in sys.modules\n"
        "    assert not {'torch', 'numpy', 'accel', 'rich', 'jinja2'} & set(sys.modules)\n"
    )
    status, out = run_pytest("-p", "no:hypothesispytest", "test_other.py")
    assert (status, "1 passed" in out) == (0, True), out


def test_the_suite_needs_a_backend_and_says_which_there_are(run_pytest):
    status, out = run_pytest("--pyargs", "accel_conformance")
    assert status != 0
    assert "name a backend: --accel-backend NAME (installed: " in out
    assert "host" in out


def test_it_runs_the_cases_and_writes_the_report(run_pytest, site):
    status, out = run_pytest(
        "--pyargs", "accel_conformance", "--accel-backend", "host", "--accel-ops", "rms_norm",
        "--accel-dtypes", "float32,bfloat16", "--accel-impl", "host.norm",
        "--accel-report", "out", "-v",
    )  # fmt: skip
    assert status == 0, out
    assert "[ops/rms_norm/host.norm/bfloat16/layout_sliced] PASSED" in out
    report = json.loads((site / "out" / "report.json").read_text())
    assert report["selection"]["dtypes"] == ["float32", "bfloat16"]
    assert f"{report['totals']['passed']} passed" in out
    assert (site / "out" / "report.html").exists()


def test_outcomes_are_pytests(run_pytest, site):
    (site / "expected.toml").write_text(
        '[[expect]]\nid = "accelerator/is_available"\noutcome = "fail"\nreason = "r"\n'
        'expires = 2999-01-01\n[[expect]]\nid = "nothing"\noutcome = "skip"\nreason = "stale"\n'
        "expires = 2999-01-01\n"
    )
    status, out = run_pytest(
        "--pyargs", "accel_conformance", "--accel-backend", "host", "-rA",
        "--accel-expectations", "expected.toml",
        "--accel-cases", "accelerator/is_available,accelerator/cache_empties",
    )  # fmt: skip
    assert status == 1
    assert "1 failed, 1 skipped" in out
    assert "was expected to fail (r) and did not" in out
    assert "refused: [memory_stats]" in out
    assert "EXPECTATION expected.toml: 'nothing' matches no case (stale)" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--accel-backend", "hots"), "ERROR: backend 'hots' is not installed"),
        (("--accel-backend", "host", "--accel-ops", "liner"), "did you mean 'linear'"),
        (
            ("--accel-backend", "host", "--accel-ops", "rms_norm", "--accel-impl", "host.linear"),
            "nothing to test",
        ),
        (
            ("--accel-backend", "host", "--accel-seed", "x"),
            "--accel-seed must be a whole number from 0 on; found 'x'",
        ),
    ],
)
def test_what_cannot_be_run_is_a_usage_error(run_pytest, arguments, says):
    status, out = run_pytest("--pyargs", "accel_conformance", *arguments)
    assert status == 4
    assert says in out
