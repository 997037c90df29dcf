"""A check of an ability the device does not claim declines, with the device's reason: it does not
pass. That using such an ability raises is checked in abilities.py."""

from __future__ import annotations

from accel.accelerator import Accelerator
from accel_conformance.case import Evidence

_ALWAYS_ON_SYNCHRONOUS = frozenset({"streams", "events", "event_timing"})


def lacks(acc: Accelerator, capability: str, seen: Evidence) -> bool:
    """True, and written down why, if the device does not have it."""
    refused = acc.refusal(capability)
    if refused is None or always_there(acc, capability):
        return False
    seen.refused([refused])
    return True


def always_there(acc: Accelerator, capability: str) -> bool:
    """A synchronous device has streams and events whatever it claims: they complete at once."""
    return acc.is_synchronized_device() and capability in _ALWAYS_ON_SYNCHRONOUS
