"""The cache of built libraries.

    <cache>/<name>-<key>/<file>         a built library, with manifest.json beside it
    <cache>/<name>-<key>.lock           held while it is built
    <cache>/<name>-<key>.tmp-<pid>-*/   a build under way, or the remains of one that was killed

An entry appears whole by a rename, so it is never seen half-built. The lock is the kernel's and
ends with its holder, so a killed build leaves nothing to wait for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import filelock
import platformdirs

from accel import environment
from accel.errors import BuildTimeoutError, CacheError
from accel.refusal import Refusal

MANIFEST = "manifest.json"
TIMEOUT = 600.0  # seconds; accel_cpu's takes 40 on two cores


def folder() -> Path:
    """The cache's folder: ``ACCEL_CACHE_DIR``, or ``native`` in the user's cache of accel."""
    named = environment.read("ACCEL_CACHE_DIR")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("accel") / "native"


def refusals() -> list[Refusal]:
    """Why nothing can be built into the cache; empty if its folder is, or can be made, writable."""
    place = folder().absolute()
    while not os.path.lexists(place):
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    have = f"{place}, which cannot be written to"
    remedy = "set ACCEL_CACHE_DIR to a folder you can write to"
    return [Refusal("cache", f"a build cache at {folder()}", have, remedy)]


def key(parts: Iterable[bytes | str]) -> str:
    """A short hash of what a library is built from."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


class Entry:
    """One library's place in the cache."""

    def __init__(self, name: str, key: str, file: str) -> None:
        self.stem = f"{name}-{key}"
        self.name = name
        self.file = file

    @property
    def folder(self) -> Path:
        return folder() / self.stem

    @property
    def path(self) -> Path:
        return self.folder / self.file

    def is_sound(self) -> bool:
        """True if the library is there and is byte for byte what was published."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
            return bool(manifest["sha256"] == _hash(self.path))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def ensure(self, make: Callable[[Path], None]) -> Path:
        """The library's path; ``make(folder)`` builds it first where it is not there.

        Of several processes one builds and the others wait, at most ``ACCEL_BUILD_TIMEOUT``
        seconds. BuildTimeoutError or CacheError say which file is in the way.
        """
        if self.is_sound():
            return self.path
        timeout = environment.seconds("ACCEL_BUILD_TIMEOUT", TIMEOUT)
        lock = self.folder.with_name(self.stem + ".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(lock, timeout=0):
                return self._build(make)
        except filelock.Timeout:
            _say(f"waiting for another process that builds {self.name} ({lock})")
        except OSError as error:
            raise _unusable(error) from error
        try:
            with filelock.FileLock(lock, timeout=timeout):
                return self._build(make)
        except filelock.Timeout:
            raise BuildTimeoutError(
                f"another process has been building {self.name} for more than {timeout:g} s; "
                f"it holds {lock}; end it, or raise ACCEL_BUILD_TIMEOUT"
            ) from None
        except OSError as error:
            raise _unusable(error) from error

    def _build(self, make: Callable[[Path], None]) -> Path:
        if self.is_sound():  # built by the process we waited for
            return self.path
        self._sweep()
        temporary = Path(tempfile.mkdtemp(prefix=f"{self.stem}.tmp-{os.getpid()}-", dir=folder()))
        try:
            make(temporary)
            manifest = {
                "name": self.name,
                "file": self.file,
                "sha256": _hash(temporary / self.file),
            }
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
            temporary.rename(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return self.path

    def _sweep(self) -> None:
        """Remove what killed builds left, and an entry that is no longer sound."""
        if self.folder.exists():
            _say(f"{self.folder} is damaged; building {self.name} again")
            shutil.rmtree(self.folder)
        for remains in folder().glob(f"{self.stem}.tmp-*"):
            shutil.rmtree(remains, ignore_errors=True)


def clean() -> list[Path]:
    """Remove every entry and all remains that no process is building; returns what was removed.

    Lock files stay: removing one that somebody waits for would let two builds in.
    """
    removed = []
    for lock in sorted(folder().glob("*.lock")):
        try:
            with filelock.FileLock(lock, timeout=0):
                for place in folder().glob(lock.stem + "*"):
                    if place.is_dir():
                        shutil.rmtree(place)
                        removed.append(place)
        except filelock.Timeout:
            _say(f"{lock} is held by a build under way; left alone")
        except OSError as error:
            raise _unusable(error) from error
    return removed


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unusable(error: OSError) -> CacheError:
    return CacheError(
        f"the build cache {folder()} cannot be used: {error}; "
        "set ACCEL_CACHE_DIR to a folder you can write to"
    )


def _say(text: str) -> None:
    print(f"accel: {text}", file=sys.stderr, flush=True)
