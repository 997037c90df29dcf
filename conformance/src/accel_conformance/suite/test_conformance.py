"""The suite as pytest sees it: one test per case; see accel_conformance.plugin."""

from __future__ import annotations

from accel_conformance.case import Case
from accel_conformance.plugin import run_case
from accel_conformance.session import Session


def test(conformance_session: Session, conformance_case: Case) -> None:
    run_case(conformance_session, conformance_case)
