"""Libraries that are compiled and kept as others do it: what a kill and a race then show."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from accel.errors import BuildTimeoutError
from accel.native import NativeLibrary
from accel_conformance.faults.planting import faults_of

fault = faults_of("build")("cached", "builders/cached/*", op="rms_norm", role="library")


class _Unlocked(NativeLibrary):
    """That the file is there is all that is asked of it."""

    def is_built(self) -> bool:
        return self.entry.path.exists()

    def build(self) -> Path:
        if not self.is_built():
            self.entry.folder.mkdir(parents=True, exist_ok=True)
            self.make()
        return self.entry.path

    def make(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._make(Path(folder))
            Path(folder, self.entry.file).replace(self.entry.path)


class _InItsPlace(_Unlocked):
    def make(self) -> None:
        self._make(self.entry.folder)


class _Unswept(NativeLibrary):
    def build(self) -> Path:
        vars(self.entry)["_sweep"] = lambda: None
        return super().build()


class _LockedByAFile(NativeLibrary):
    def build(self) -> Path:
        lock = self.entry.folder.with_name("lock")
        lock.parent.mkdir(exist_ok=True)
        for _ in range(50):
            try:
                lock.touch(exist_ok=False)
            except FileExistsError:
                time.sleep(0.01)
                continue
            try:
                return super().build()
            finally:
                lock.unlink()
        raise BuildTimeoutError(f"another process holds {lock}")


def _as(kind: type[NativeLibrary], right: NativeLibrary) -> NativeLibrary:
    return kind(right.name, right.sources, flags=right.flags, libraries=right.libraries)


@fault
def half_a_library_passes(right: NativeLibrary) -> NativeLibrary:
    """A library is linked in its place, and taken for whole when it is there."""
    return _as(_InItsPlace, right)


@fault
def each_builds_for_itself(right: NativeLibrary) -> NativeLibrary:
    """No lock is held: of two processes both build."""
    return _as(_Unlocked, right)


@fault
def lock_outlives_its_holder(right: NativeLibrary) -> NativeLibrary:
    """A lock is a file, which nobody removes when the build is killed."""
    return _as(_LockedByAFile, right)


@fault
def remains_are_kept(right: NativeLibrary) -> NativeLibrary:
    """What a killed build had written stays in the cache."""
    return _as(_Unswept, right)
