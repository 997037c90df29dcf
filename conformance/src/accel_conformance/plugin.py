"""The pytest plugin: ``pytest --pyargs accel_conformance --accel-backend NAME``.

pytest loads this in every project where the package is installed, so it imports nothing but pytest
until a backend is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from accel_conformance.case import Case
    from accel_conformance.session import Session

OPTIONS = {
    "--accel-backend": ("NAME", "test this backend of accel"),
    "--accel-report": ("DIR", "write report.json and report.html there"),
    "--accel-ops": ("A,B", "only the cases of these ops"),
    "--accel-dtypes": ("A,B", "only the cases in these dtypes"),
    "--accel-impl": ("ID", "only the cases of this implementation"),
    "--accel-cases": ("A,B", "only the cases whose id matches one of these patterns (* ? [])"),
    "--accel-profile": ("NAME", "what it is for: inference, training or engine, which is all"),
    "--accel-level": ("NAME", "full, or smoke: of cases that differ in their input alone one"),
    "--accel-seed": ("N", "of the inputs that are drawn: others than those of 0"),
    "--accel-expectations": ("FILE", "expected outcomes, in place of the backend's own file"),
}

SESSION: pytest.StashKey[Session] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("accel", "conformance of accel backends")
    for option, (metavar, help) in OPTIONS.items():
        group.addoption(option, metavar=metavar, default=None, help=help)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be run before anything is collected."""
    if not config.getoption("--accel-backend"):
        return
    if config.getoption("--accel-report") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--accel-report is written by one process: leave out -n")
    config.stash[SESSION] = _prepared(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the one test function into one test per case, under the case's id."""
    if "conformance_case" in metafunc.fixturenames:
        cases = _session(metafunc.config).cases
        metafunc.parametrize("conformance_case", cases, ids=[case.id for case in cases])


@pytest.fixture
def conformance_session(request: pytest.FixtureRequest) -> Session:
    """The session that runs the cases and keeps their results."""
    return _session(request.config)


def run_case(session: Session, case: Case) -> None:
    """Run a case; its outcome becomes pytest's."""
    from accel_conformance.case import Outcome

    result = session.run(case)
    said = result.message()
    if result.outcome is Outcome.EXPECTED:
        pytest.xfail(said)
    if result.outcome is Outcome.SKIPPED:
        pytest.skip(said)
    if result.outcome is Outcome.REFUSED:
        pytest.skip(f"refused: {said}")
    if result.outcome.bad:
        pytest.fail(said, pytrace=False)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report; expectations that no longer hold fail the run, as does showing nothing."""
    ours = session.config.stash.get(SESSION, None)
    if ours is None or not ours.results:
        return
    folder = session.config.getoption("--accel-report")
    if folder:
        from accel_conformance import report

        report.write(report.content(ours), folder)
    if not ours.passed and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    ours = config.stash.get(SESSION, None)
    for problem in ours.problems if ours else ():
        terminalreporter.write_line(f"EXPECTATION {problem}", red=True)


def _session(config: pytest.Config) -> Session:
    if SESSION not in config.stash:
        from accel_conformance.session import names

        known = ", ".join(names()) or "none"
        pytest.fail(f"name a backend: --accel-backend NAME (installed: {known})", pytrace=False)
    return config.stash[SESSION]


def _prepared(config: pytest.Config) -> Session:
    """The session the options describe."""
    from accel_conformance.selection import Selection, UsageError
    from accel_conformance.session import prepare

    seed = config.getoption("--accel-seed") or "0"
    if not seed.isdecimal():
        raise pytest.UsageError(f"--accel-seed must be a whole number from 0 on; found {seed!r}")
    selection = Selection(
        *(_listed(config, f"--accel-{kind}") for kind in ("ops", "impl", "dtypes", "cases")),
        config.getoption("--accel-profile"),
        config.getoption("--accel-level") or "full",
        int(seed),
    )
    try:
        return prepare(
            config.getoption("--accel-backend"), selection,
            config.getoption("--accel-expectations"),
        )  # fmt: skip
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


def _listed(config: pytest.Config, option: str) -> list[str] | None:
    text = config.getoption(option)
    return [part.strip() for part in text.split(",") if part.strip()] if text else None
