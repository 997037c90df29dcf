"""The control groups of this process, and the limits they set: Linux, both versions.

A limit of any group above the process binds it, so every value here is taken over its own group
and all groups that one lies in, as far as they are mounted. Elsewhere there are no groups, and so
no limits. ``root`` is the root of the file system, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class Group:
    """One control group: the version of its hierarchy and its folder."""

    version: int
    folder: Path

    def read(self, name: str) -> str | None:
        """The stripped text of one of its files; None if it has no such file."""
        try:
            return (self.folder / name).read_text().strip()
        except OSError:
            return None

    def integer(self, name: str) -> int | None:
        """A file that holds one number; None if absent or ``max``."""
        text = self.read(name)
        return None if text is None or text == "max" else int(text)

    def statistics(self) -> dict[str, int]:
        """``memory.stat``, name to bytes."""
        pairs = (line.split() for line in (self.read("memory.stat") or "").splitlines())
        return {name: int(value) for name, value in pairs}


def groups(controller: str, root: Path = ROOT) -> list[Group]:
    """The groups that bind this process for ``"memory"`` or ``"cpu"``, its own first."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    # Controller, or "" for the one hierarchy of version 2 -> path of our group in it.
    paths: dict[str, str] = {}
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    version = 1 if controller in paths else 2
    own = paths.get(controller) or paths.get("")
    found = next(filter(None, (_mount(line, version, controller) for line in mounts)), None)
    if own is None or found is None:
        return []
    return [Group(version, root / folder) for folder in _upwards(own, *found)]


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes the groups allow the process; None if they set no limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes the groups allow it to take on top of what is in use; None if they set no limit.

    Page cache counts as in use, but the kernel gives it up when memory runs short; it is left.
    """
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many processors' time the groups allow the process; None if they set no limit."""
    quotas = []
    for group in groups("cpu", root):
        if group.version == 2:
            text = group.read("cpu.max") or "max"  # "max 100000", or "<quota> <period>"
        else:
            text = f"{group.read('cpu.cfs_quota_us')} {group.read('cpu.cfs_period_us')}"
        if text[0].isdigit():  # else "max", "-1" or "None": no limit
            quota, period = text.split()
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of each group that has a limit."""
    found = []
    for group in groups("memory", root):
        new = group.version == 2
        limit = group.integer("memory.max" if new else "memory.limit_in_bytes")
        used = group.integer("memory.current" if new else "memory.usage_in_bytes")
        if limit is not None and used is not None:
            statistics = group.statistics()
            prefix = "" if new else "total_"  # the totals include the groups below, as does usage
            names = (f"{prefix}inactive_file", f"{prefix}active_file", "slab_reclaimable")
            found.append((limit, used - sum(statistics.get(name, 0) for name in names)))
    return found


def _mount(line: str, version: int, controller: str) -> tuple[Path, Path] | None:
    """(group of the hierarchy that is mounted, where) if a line of mountinfo is about it."""
    before, _, after = line.partition(" - ")
    kind, _, options = after.split(" ", 2)
    if version == 2:
        wanted = kind == "cgroup2"
    else:
        wanted = kind == "cgroup" and controller in options.split(",")
    mounted, mount = before.split(" ")[3:5]
    return (Path(mounted), Path(mount.lstrip("/"))) if wanted else None


def _upwards(own: str, mounted: Path, mount: Path) -> list[Path]:
    """Folders from our own group up to the mount, which shows the group ``mounted``."""
    path = Path(own)
    # Inside a container the path may be one of the host's that is not mounted here.
    below = path.is_relative_to(mounted) and ".." not in path.parts
    inside = path.relative_to(mounted) if below else Path()
    return [mount / inside, *(mount / above for above in inside.parents)]
