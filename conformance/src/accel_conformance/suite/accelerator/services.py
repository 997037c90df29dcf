"""Profiling, compiling, launching: what surrounds the work on a device."""

from __future__ import annotations

import os

import torch

from accel.accelerator import Accelerator
from accel_conformance.case import Evidence
from accel_conformance.suite.accelerator.lacking import lacks


def ranges_open_and_close(acc: Accelerator, seen: Evidence) -> None:
    acc.range_push("outer")
    acc.range_push("inner", domain="accel", category="conformance")
    acc.range_pop(domain="accel")
    acc.range_pop()
    try:
        acc.range_pop()
        raised = False
    except RuntimeError:
        raised = True
    says = "range_pop() without a range_push() before it does nothing"
    seen.expect("profiling", raised, says)


def compile_backend_is_checked(acc: Accelerator, seen: Evidence) -> None:
    before = acc.get_compile_backend()
    known = torch._dynamo.list_backends(exclude_tags=())
    seen.expect("compile", before in known, f"get_compile_backend() is {before!r}, unknown")
    try:
        acc.set_compile_backend("no_such_backend")
        seen.expect("compile", False, "set_compile_backend('no_such_backend') is accepted")
    except ValueError:
        now = acc.get_compile_backend()
        seen.expect("compile", now == before, f"a refused one replaced {before!r} by {now!r}")
    try:
        acc.set_compile_backend("eager")
        now = acc.get_compile_backend()
        seen.expect("compile", now == "eager", f"after set_compile_backend('eager') it is {now!r}")
    finally:
        acc.set_compile_backend(before)


def launch_variables_are_named(acc: Accelerator, seen: Evidence) -> None:
    prefixes = acc.export_envs()
    named = isinstance(prefixes, list) and all(isinstance(p, str) for p in prefixes)
    seen.expect("types", named, f"export_envs() is {prefixes!r:.80}, not a list of str")


def visible_devices_go_where_asked(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "visible_devices", seen):
        return
    names = acc.visible_devices_envs()
    listed = isinstance(names, list) and bool(names) and all(isinstance(n, str) for n in names)
    seen.expect("types", listed, f"visible_devices_envs() is {names!r:.80}")
    before, env = dict(os.environ), {"KEPT": "1"}
    acc.set_visible_devices_envs(env, [1, 0])
    says = f"set_visible_devices_envs(env, [1, 0]) makes it {env}"
    seen.expect("environment", env == {"KEPT": "1", **dict.fromkeys(names, "1,0")}, says)
    seen.expect("environment", dict(os.environ) == before, "os.environ changed")
    os.environ.clear()
    os.environ.update(before)


def collectives_are_named(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "collectives", seen):
        return
    name = acc.communication_backend_name()
    there = isinstance(name, str) and torch.distributed.is_backend_available(name)
    seen.expect("types", there, f"communication_backend_name() is {name!r}, not to be had")


def preferences_are_bools(acc: Accelerator, seen: Evidence) -> None:
    triton, preferred = acc.is_triton_supported(), acc.prefer_triton_grouped_mm()
    same = triton is acc.supports("triton")
    seen.expect("types", same, f"is_triton_supported() is {triton!r}, supports() differs")
    seen.expect("types", isinstance(preferred, bool), f"prefer_triton_grouped_mm(): {preferred!r}")


CHECKS = (
    ranges_open_and_close,
    compile_backend_is_checked,
    launch_variables_are_named,
    visible_devices_go_where_asked,
    collectives_are_named,
    preferences_are_bools,
)
