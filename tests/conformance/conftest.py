"""What the tests of the suite share: a right backend, and running the suite on it."""

import json

import conformance_host
import pytest
import report_of_a_broken_plugin
import torch

import accel_conformance
from accel import testing
from accel_conformance.suite import large


@pytest.fixture(autouse=True)
def _only_the_host():
    # One thread: these are many small calls, and threads that wait for each other are slow where
    # the processor is shared.
    torch.set_num_threads(1)
    with testing.installed(conformance_host.plugin()):
        yield


@pytest.fixture(autouse=True)
def _some_results(monkeypatch):
    """The host computes row by row: a million results would take it a minute."""
    monkeypatch.setattr(large, "RESULTS", 10_000)
    monkeypatch.setattr(large, "SEQUENCES", ((40, 40), (1, 1), (17, 24)))


@pytest.fixture
def conform(tmp_path, capsys):
    """``conform(**options)``: the exit status and the report of a quiet run on the host, or another
    backend."""

    def run(backend="host", **options):
        folder = tmp_path / "report"
        status = accel_conformance.run(backend, report=folder, quiet=True, **options)
        capsys.readouterr()
        return status, json.loads((folder / "report.json").read_text())

    return run


@pytest.fixture(scope="session")
def broken_report(tmp_path_factory):
    """A folder with the report of a plugin that is broken, and what its report.json says."""
    folder = tmp_path_factory.mktemp("broken")
    return folder, report_of_a_broken_plugin.write(folder)
