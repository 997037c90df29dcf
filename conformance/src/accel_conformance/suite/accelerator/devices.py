"""Identity, indices, names and facts of the devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from accel.accelerator import Accelerator, DeviceProperties
from accel.testing import HOST
from accel_conformance.case import Evidence


def names_are_the_backends(acc: Accelerator, seen: Evidence) -> None:
    seen.expect("identity", acc.name == acc.backend.name, f"name is {acc.name!r}")
    same = acc.device_type == acc.backend.device_type
    seen.expect("identity", same, f"device_type is {acc.device_type!r}")
    says = f"device() is of type {acc.device().type!r}, not {acc.device_type!r}"
    seen.expect("identity", acc.device().type == acc.device_type, says)
    seen.expect("identity", acc.name in repr(acc), f"{acc!r} does not say its name")


def is_available(acc: Accelerator, seen: Evidence) -> None:
    available = acc.is_available()
    seen.expect("types", available is True, f"is_available() is {available!r} on a device in use")


def indices_are_ints(acc: Accelerator, seen: Evidence) -> None:
    count, current = acc.device_count(), acc.current_device()
    seen.expect("types", type(count) is int and count > 0, f"device_count() is {count!r}")
    seen.expect("types", type(current) is int, f"current_device() is {current!r}, not an int")
    says = f"current_device() is {current!r} of {count!r}"
    seen.expect("identity", current in range(count), says)


def devices_are_what_tensors_report(acc: Accelerator, seen: Evidence) -> None:
    for index in (None, *range(acc.device_count())):
        device = acc.device(index)
        kind = isinstance(device, torch.device)
        if seen.expect("types", kind, f"device({index}) is {device!r}, not a torch.device"):
            reported = torch.empty(1, device=device).device
            says = f"device({index}) is {device}, its tensors say {reported}"
            seen.expect("identity", reported == device, says)


def names_round_trip(acc: Accelerator, seen: Evidence) -> None:
    for index in range(acc.device_count()):
        name, device = acc.device_name(index), acc.device(index)
        says = f"device_name({index}) is {name!r}, which torch reads as another than {device}"
        seen.expect("identity", torch.device(name) == device, says)
    bare = acc.device_name()
    seen.expect("identity", bare == acc.device_type, f"device_name() is {bare!r}")
    current = acc.current_device_name()
    says = f"current_device_name() is {current!r}, device() is {acc.device()}"
    seen.expect("identity", torch.device(current) == acc.device(), says)


def set_device_moves_the_current_one(acc: Accelerator, seen: Evidence) -> None:
    with _restored(acc):
        for index in range(acc.device_count()):
            acc.set_device(index)
            found = acc.current_device()
            says = f"after set_device({index}) current_device() is {found}"
            seen.expect("identity", found == index, says)


def set_device_refuses_what_is_not_there(acc: Accelerator, seen: Evidence) -> None:
    beyond = acc.device_count()
    with _restored(acc):
        before = acc.current_device()
        try:
            acc.set_device(beyond)
        except Exception:
            same = acc.current_device() == before
            seen.expect("identity", same, f"set_device({beyond}) raised, and moved the device")
        else:
            says = f"set_device({beyond}) is accepted with {beyond} device(s)"
            seen.expect("identity", False, says)


def on_accelerator_tells_where_a_tensor_is(acc: Accelerator, seen: Evidence) -> None:
    here = acc.on_accelerator(torch.empty(1, device=acc.device()))
    seen.expect("types", here is True, f"on_accelerator() of its own tensor is {here!r}")
    nowhere = acc.on_accelerator(torch.empty(1, device="meta"))
    seen.expect("types", nowhere is False, f"on_accelerator() of a meta tensor is {nowhere!r}")
    on_host = acc.on_accelerator(torch.empty(1, device=HOST))
    wanted = acc.device_type == HOST
    seen.expect("types", on_host is wanted, f"on_accelerator() of a host tensor is {on_host!r}")


def properties_are_facts(acc: Accelerator, seen: Evidence) -> None:
    for index in (None, *range(acc.device_count())):
        facts = acc.properties(index)
        if not seen.expect("types", isinstance(facts, DeviceProperties), f"{facts!r:.80}"):
            continue
        name, memory, units = facts.name, facts.total_memory, facts.compute_units
        seen.expect("types", isinstance(name, str) and bool(name.strip()), f"name is {name!r}")
        seen.expect("types", type(memory) is int and memory > 0, f"total_memory is {memory!r}")
        seen.expect("types", type(units) is int and units > 0, f"compute_units is {units!r}")
        named = isinstance(facts.details, dict) and all(isinstance(k, str) for k in facts.details)
        seen.expect("types", named, f"details is {facts.details!r:.80}")


@contextmanager
def _restored(acc: Accelerator) -> Iterator[None]:
    before = acc.current_device()
    try:
        yield
    finally:
        acc.set_device(before)


CHECKS = (
    names_are_the_backends,
    is_available,
    indices_are_ints,
    devices_are_what_tensors_report,
    names_round_trip,
    set_device_moves_the_current_one,
    set_device_refuses_what_is_not_there,
    on_accelerator_tells_where_a_tensor_is,
    properties_are_facts,
)
