"""What /proc, /sys and the control groups tell, read from trees written for the purpose."""

import os

import pytest

from accel_cpu import cgroup, host_memory, processor

MEMINFO = "MemTotal:       8388608 kB\nMemFree:  1000 kB\nMemAvailable:    4194304 kB\n"
GIB = 2**30

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def v2(**files):
    """A process in the group /job/step of version 2; files by path below the mount."""
    base = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/job/step\n",
        "proc/self/mountinfo": V2_MOUNT,
    }
    return base | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}


def test_without_groups_the_machine_decides(tree):
    root = tree({"proc/meminfo": MEMINFO})
    assert host_memory.free_and_total(root) == (4 * GIB, 8 * GIB)
    assert cgroup.cpu_quota(root) is None


def test_groups_without_limits_set_none(tree):
    root = tree(v2(**{"job/step/memory.max": "max", "job/step/memory.current": "5",
                      "job/step/cpu.max": "max 100000"}))  # fmt: skip
    assert host_memory.free_and_total(root) == (4 * GIB, 8 * GIB)
    assert cgroup.cpu_quota(root) is None


def test_the_lowest_limit_on_the_way_up_binds(tree):
    root = tree(v2(**{
        "job/step/memory.max": "max",
        "job/step/memory.current": str(GIB),
        "job/memory.max": str(3 * GIB),
        "job/memory.current": str(2 * GIB),
        "job/memory.stat": f"anon 5\nfile 77\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n"
                           f"slab_reclaimable 1024\nslab 9\n",
        "job/step/cpu.max": "400000 100000",
        "job/cpu.max": "150000 100000",
    }))  # fmt: skip
    # Used 2 GiB, of which the kernel gives up the file cache and some slab when asked.
    free = GIB + GIB // 2 + GIB // 4 + 1024
    assert host_memory.free_and_total(root) == (free, 3 * GIB)
    assert cgroup.cpu_quota(root) == 1.5


def test_a_group_over_its_limit_leaves_nothing(tree):
    root = tree(v2(**{"job/step/memory.max": "1000", "job/step/memory.current": "1500"}))
    assert host_memory.free_and_total(root) == (0, 1000)


def test_version_1_has_a_hierarchy_for_each_controller(tree):
    root = tree({
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:memory:/box\n3:cpu,cpuacct:/box/a\n1:name=systemd:/\n0::/\n",
        "proc/self/mountinfo": V1_MOUNTS,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(7 * GIB),
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(GIB),
        "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 4096\n",
        "sys/fs/cgroup/cpu,cpuacct/box/a/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/box/a/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert host_memory.free_and_total(root) == (GIB + 4096, 2 * GIB)
    assert cgroup.cpu_quota(root) == 0.5


@pytest.mark.parametrize(
    ("own", "mounted"),
    [
        ("/docker/abc", "/docker/abc"),  # the container's group, mounted as the top
        ("/docker/abc/sub", "/docker/abc"),  # a group inside it
        ("/elsewhere/x", "/docker/abc"),  # a path of the host's that is not mounted here
        ("/../outside", "/"),  # a namespace that begins below us
    ],
)
def test_in_a_container_only_what_is_mounted_counts(tree, own, mounted):
    root = tree({
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": f"0::{own}\n",
        "proc/self/mountinfo": f"31 23 0:28 {mounted} /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        "sys/fs/cgroup/memory.max": str(GIB),
        "sys/fs/cgroup/memory.current": "0",
    })  # fmt: skip
    assert host_memory.total(root) == GIB


def test_this_machines_figures_are_sound():
    free, total = host_memory.free_and_total()
    assert 0 < free <= total
    for group in cgroup.groups("memory"):
        assert group.folder.is_dir()


def test_a_system_without_proc_says_what_it_can(tree):
    root = tree({"readme": ""})
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host_memory.total(root) == physical
    assert host_memory.free_and_total(root) is None
    details = processor.details(root)
    assert details["usable_cores"] >= 1
    for fact in ("physical_cores", "cpu_quota", "numa_nodes", "isa", "caches"):
        assert details[fact] == "unknown", fact


def test_windows_tells_both_figures(tree, monkeypatch):
    def fill(status):
        status._obj.total, status._obj.available = 16 * GIB, 3 * GIB
        return 1

    class Windll:
        class kernel32:
            GlobalMemoryStatusEx = staticmethod(fill)

    monkeypatch.setattr(host_memory.ctypes, "windll", Windll, raising=False)
    monkeypatch.setattr(host_memory.sys, "platform", "win32")
    root = tree({"readme": ""})
    assert host_memory.free_and_total(root) == (3 * GIB, 16 * GIB)


def test_the_processor_is_described(tree):
    cpu = "sys/devices/system/cpu"
    root = tree({
        "proc/cpuinfo": "processor : 0\nmodel name\t: Fast One\nflags\t: fpu sse2 avx2 smep fma "
                        "avx512_bf16 amx_tile sme\n\nprocessor : 1\nmodel name : Other\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        f"{cpu}/cpu0/topology/thread_siblings_list": "0,2",
        f"{cpu}/cpu1/topology/thread_siblings_list": "1,3",
        f"{cpu}/cpu2/topology/thread_siblings_list": "0,2",
        f"{cpu}/cpu3/topology/thread_siblings_list": "1,3",
        f"{cpu}/cpu0/cache/index0/level": "1",
        f"{cpu}/cpu0/cache/index0/type": "Data",
        f"{cpu}/cpu0/cache/index0/size": "48K",
        f"{cpu}/cpu0/cache/index3/level": "3",
        f"{cpu}/cpu0/cache/index3/type": "Unified",
        f"{cpu}/cpu0/cache/index3/size": "32M",
        "sys/devices/system/node/node1/cpulist": "1,3\n",
        "sys/devices/system/node/node0/cpulist": "0,2\n",
    })  # fmt: skip
    assert processor.name(root) == "Fast One"
    details = processor.details(root)
    assert details["isa"] == ("avx2", "fma", "avx512_bf16", "amx_tile", "sme")
    assert details["physical_cores"] == 2
    assert details["numa_nodes"] == {0: "0,2", 1: "1,3"}
    assert details["caches"] == {"L1d": 48 * 1024, "L3": 32 * 2**20}
    assert details["cpu_quota"] == "none"


def test_an_arm_processor_without_a_model_name(tree, monkeypatch):
    monkeypatch.delenv("PROCESSOR_IDENTIFIER", raising=False)
    root = tree({"proc/cpuinfo": "processor : 0\nFeatures : fp asimd asimddp sve2 bf16 i8mm\n"})
    assert processor.name(root) == "unknown"
    assert processor.details(root)["isa"] == ("asimd", "asimddp", "sve2", "bf16", "i8mm")
