"""The libraries that builders compile on first use: built once, whatever is killed or races."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from accel.native import NativeLibrary, toolchain
from accel.refusal import Refusal
from accel_conformance.case import Case, Evidence
from accel_conformance.rehearsal import rehearse
from accel_conformance.subject import Subject


def cases(subject: Subject) -> Iterator[Case]:
    builders = (target.builder for target in subject.targets)
    found = {id(library): library for b in builders if (library := getattr(b, "library", None))}
    for library in found.values():
        yield Case(f"builders/cached/{library.name}", partial(cached, library), long=True)
    if not found:
        yield Case("builders/cached", does_not_apply)


def cached(library: NativeLibrary, seen: Evidence) -> None:
    """Compiled anew, once, in a cache of its own: what is built already stays as it is."""
    seen.input = f"{library.name}: {len(library.sources)} files, in an empty cache"
    if refusals := toolchain.refusals():
        seen.refused(refusals)
        return
    problems = rehearse(library)
    seen.expect("cached", not problems, "; ".join(problems))


def does_not_apply(seen: Evidence) -> None:
    seen.refused([Refusal(
        "library", "a builder that compiles a NativeLibrary", "none: nothing is compiled here",
        "nothing to do; kernels that come compiled need no cache",
    )])  # fmt: skip
