"""TuningTable: what autotuning found, kept in a JSON file by device and by shape::

    {"AMD EPYC 9R14, cpu 0.1.0": {"linear accel_x.fast float32 34x64 192x64": {"grain": 4}}}

The file is ``tuning.json`` in the folder of compiled kernels, or the one ``ACCEL_TUNING_TABLE``
names. It is replaced whole, under a lock that the kernel frees with its holder.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from accel import environment
from accel import registry as _registry
from accel.errors import AccelWarning
from accel.native import cache

Settings = Mapping[str, int]

LOCK_TIMEOUT = 10.0  # seconds; a table is written in milliseconds
MOUNTS = Path("/proc/mounts")
# Where a lock may never be answered. 9p is not among them: virtual machines mount their host by it.
NETWORKS = frozenset({
    "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs", "lustre",
    "nfs", "nfs4", "orangefs", "pvfs2", "smb3", "smbfs", "wekafs",
})  # fmt: skip


class TuningTable:
    """The settings found on one device, by name. ``file`` is None where they cannot be kept."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.file = _file()
        self.settings: dict[str, Settings] = {}
        if self.file:
            self.settings |= _read(self.file).get(device, {})

    def add(self, found: Mapping[str, Settings]) -> None:
        """Keep what was found, beside what other processes have kept meanwhile."""
        self.settings |= found
        if not (found and self.file):
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{self.file}.lock", timeout=LOCK_TIMEOUT):
                whole = _read(self.file)
                whole[self.device] = {**whole.get(self.device, {}), **found}
                _replace(self.file, json.dumps(whole, indent=1, sort_keys=True))
        except (OSError, filelock.Timeout) as error:
            _warn(f"the tuning table {self.file} cannot be written: {error}; what was found is "
                  "kept in memory; ACCEL_TUNING_TABLE names another file")  # fmt: skip
            self.file = None


def _file() -> Path | None:
    """The table's file; None where that would lie on a network by default."""
    named = environment.read("ACCEL_TUNING_TABLE")
    if named:
        return Path(named).expanduser()
    file = cache.folder() / "tuning.json"
    network = network_of(file)
    if network is None:
        return file
    _warn(f"{file} lies on a network file system ({network}), where locks may hang: tuned settings "
          "are kept in memory; ACCEL_TUNING_TABLE names a file to keep them in")  # fmt: skip
    return None


def network_of(path: Path) -> str | None:
    """The type of the network file system a path lies on; None for another one, and where the
    system does not say."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return None
    place = path.resolve()
    over = [m for m in mounts if place.is_relative_to(m[0].replace("\\040", " "))]
    # The innermost, and of several at one place the last.
    kind = max(enumerate(over), key=lambda m: (len(m[1][0]), m[0]))[1][1] if over else None
    return kind if kind in NETWORKS else None


def _read(file: Path) -> dict[str, dict[str, Settings]]:
    """What a file holds; nothing, with a warning, where it is damaged."""
    try:
        whole = json.loads(file.read_text("utf-8"))
        if not _is_table(whole, 3):
            raise ValueError("it is no table of devices, shapes and settings")
        return whole  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        _warn(f"the tuning table {file} cannot be read, and is made anew: {error}")
        return {}


def _is_table(value: Any, depth: int) -> bool:
    """Whether it is a dict of dicts, ``depth`` of them deep."""
    return isinstance(value, dict) and (
        depth == 1 or all(_is_table(below, depth - 1) for below in value.values())
    )


def _replace(file: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one whole."""
    handle, temporary = tempfile.mkstemp(prefix=file.name, suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _warn(text: str) -> None:
    _registry.registry().warn_once(("tuning", text), text, AccelWarning)
