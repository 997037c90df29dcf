"""Proves that a backend of accel does what the contracts say, on the device it is for.

    accel conform --backend NAME                                   the command
    pytest --pyargs accel_conformance --accel-backend NAME         the same cases under pytest
    accel_conformance.run("NAME", report="out")                    the same from Python

subject.py       what is tested: a backend's accelerator and the implementations that serve it
suite/           the checks, and the rule that makes cases of them
oracles/         what every op's result and gradients are, in numpy's float64, without torch
selection.py     which cases      expectations.py   which of them may fail, and until when
session.py       runs cases       command.py, plugin.py   from a call, from pytest
console.py, report/               show what came out
faults/          faults that the suite must catch, and what they are planted in
trials.py        plants them; kill_matrix.py   from a call to what is printed

Importing this imports no torch: pytest does so in every project where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

__version__ = "0.1.0"

__all__ = ["run", "self_test"]


def run(
    backend: str,
    *,
    report: str | PathLike[str] | None = None,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    impls: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    profile: str | None = None,
    level: str = "full",
    seed: int = 0,
    expectations: str | PathLike[str] | None = None,
    list_only: bool = False,
    json: bool = False,
    quiet: bool = False,
    plugins: Sequence[object] = (),
) -> int:
    """Test a backend and say what came out; returns the exit status.

    ``report``        folder to write ``report.json`` and ``report.html`` into
    ``ops``, ``dtypes``, ``impls``   only the cases of these, e.g. ``["linear"]``, ``["float32"]``,
                      ``["accel_cpu.native"]``; a case that has no op is left out by any of them
    ``cases``         only the cases whose id matches one of these patterns (``*``, ``?``, ``[]``)
    ``profile``       what the backend is for: ``"inference"``, ``"training"``, which includes it,
                      or ``"engine"``, which includes both and is all there is, as None is
    ``level``         ``"full"``, or ``"smoke"``: of cases that differ in their input alone one, and
                      none that takes long
    ``seed``          of the inputs that are drawn; of one seed they are the same every time
    ``expectations``  file of expected outcomes, in place of the one the backend names
    ``list_only``     print the ids of the cases and run none
    ``json``          print the report (or the list) as JSON, and nothing else
    ``quiet``         print failures and the verdict only
    ``plugins``       plugin objects to test with, beside what is installed

    0: every outcome is as expected. 1: one is not. 2: nothing could be run (the backend is unknown
    or refused, a name is misspelt, the selection is empty), with the reason on stderr.
    """
    from accel_conformance.command import Options, conform

    options = Options(
        backend,
        report,
        ops,
        dtypes,
        impls,
        cases,
        profile,
        level,
        seed,
        expectations,
        list_only,
        json,
        quiet,
        plugins,
    )
    return conform(options)


def self_test(
    faults: str | None = None,
    *,
    report: str | PathLike[str] | None = None,
    list_only: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Plant faults in a right backend, one at a time, and say which cases killed each; returns the
    exit status.

    ``faults``     only those whose name matches this pattern, or those of this kind
    ``report``     folder to write ``self-test.json`` into
    ``list_only``  name the faults and plant none
    ``json``       print the report (or the list) as JSON, and nothing else
    ``quiet``      print what is wrong and the verdict only

    0: every fault was killed by the cases that claim it, for its own reason, and without a fault
    everything passes. 1: not so. 2: there is no such fault.
    """
    from accel_conformance.kill_matrix import run as plant_all

    return plant_all(faults, report, list_only, json, quiet)
