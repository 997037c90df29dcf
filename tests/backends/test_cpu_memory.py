"""The host's memory figures: exact, on every thread, and honest where they cannot be had."""

import ctypes
import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from accel.errors import UnsupportedCapability
from accel_cpu import plugin
from accel_cpu.accelerator import CpuAccelerator
from accel_cpu.memory_counter import COUNTER, MemoryCounter

_libc = ctypes.CDLL(None)
_libc.malloc_usable_size.argtypes = [ctypes.c_void_p]
_libc.malloc_usable_size.restype = ctypes.c_size_t


@pytest.fixture(scope="module")
def _built(build_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
        COUNTER.library.build()


@pytest.fixture
def acc(_built):
    return CpuAccelerator(plugin.accel_backend())


def block(tensor):
    """The size the C library says the tensor's memory has."""
    return _libc.malloc_usable_size(tensor.untyped_storage().data_ptr())


def figures(acc):
    stats = acc.memory_stats()
    return stats["allocated_bytes.all.current"], stats["allocation.all.current"]


@pytest.mark.parametrize("size", [1, 63, 1000, 2**20 + 1, 2**24])
def test_a_tensor_counts_its_block_and_nothing_else(acc, size):
    held, blocks = figures(acc)
    x = torch.empty(size, dtype=torch.uint8)
    assert figures(acc) == (held + block(x), blocks + 1)
    assert size <= block(x) <= size + 8192
    del x
    assert figures(acc) == (held, blocks)


def test_empty_tensors_and_views_count_nothing(acc):
    x = torch.empty(1000)
    before = figures(acc)
    kept = [torch.empty(0), x[3:], x.view(10, 100), x.detach(), x.untyped_storage()]
    assert figures(acc) == before
    del x
    assert figures(acc) == before, "a view keeps the block"
    kept.clear()
    assert figures(acc)[1] == before[1] - 1


def test_the_peak_is_the_highest_value_seen_or_not(acc):
    acc.reset_peak_memory_stats()
    held = acc.memory_allocated()
    assert acc.max_memory_allocated() == held
    x = torch.empty(10_000)
    y = torch.empty(20_000)
    peak = held + block(x) + block(y)
    del x
    z = torch.empty(100)
    assert acc.max_memory_allocated() == peak
    del y, z
    assert acc.memory_allocated() == held
    assert acc.max_memory_allocated() == acc.max_memory_reserved() == peak
    acc.reset_max_memory_allocated()
    assert acc.max_memory_allocated() == held


def test_temporaries_inside_an_operation_are_seen(acc):
    x = torch.ones(500, 500)
    acc.reset_peak_memory_stats()
    held = acc.memory_allocated()
    x.sort(dim=0)
    assert acc.memory_allocated() == held
    assert acc.max_memory_allocated() >= held + 2 * x.nbytes


def test_resizing_moves_the_figure_to_the_new_block(acc):
    held, blocks = figures(acc)
    x = torch.empty(100)
    x.resize_(100_000)
    assert figures(acc) == (held + block(x), blocks + 1)
    x.untyped_storage().resize_(0)
    assert figures(acc) == (held, blocks)


def test_what_is_not_seen_is_not_seen_and_said(acc):
    held = figures(acc)
    array = torch.from_numpy(np.ones(10_000))
    assert figures(acc) == held
    shared = torch.ones(10_000).share_memory_()
    assert figures(acc) == held
    del array, shared
    assert "numpy" in acc.memory_stats()["not_seen"]
    assert "share_memory_" in acc.memory_stats()["not_seen"]


def test_autograd_gives_back_what_it_kept(acc):
    layer = torch.nn.Linear(64, 64)
    layer(torch.ones(8, 64)).sum().backward()  # gradients exist from here on
    held, blocks = figures(acc)
    loss = layer(torch.ones(8, 64)).tanh().sum()
    assert acc.memory_allocated() >= held + 8 * 64 * 4, "tanh keeps its result for backward"
    loss.backward()
    del loss
    assert figures(acc) == (held, blocks)


def test_every_thread_is_counted(acc):
    before, stats = figures(acc), acc.memory_stats()
    acc.reset_peak_memory_stats()
    meeting = threading.Barrier(4)
    sizes = []

    def work():
        x = torch.empty(5000)
        sizes.append(block(x))
        meeting.wait()
        del x
        for _ in range(500):
            torch.empty(100)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = acc.memory_stats()
    assert figures(acc) == before
    assert after["allocated_bytes.all.peak"] >= before[0] + sum(sizes)
    made = after["allocation.all.allocated"] - stats["allocation.all.allocated"]
    assert made == 4 * 501
    assert after["allocation.all.freed"] - stats["allocation.all.freed"] == made


def test_stats_have_torchs_names_and_reserved_is_allocated(acc):
    gc.collect()  # what earlier tests left in cycles would go between two readings
    stats = acc.memory_stats()
    for figure in ("allocated_bytes", "reserved_bytes", "allocation"):
        values = [stats[f"{figure}.all.{x}"] for x in ("current", "peak", "allocated", "freed")]
        current, peak, allocated, freed = values
        assert all(type(value) is int for value in values)
        assert 0 <= current <= peak
        assert current == allocated - freed
    assert stats["reserved_bytes.all.peak"] == stats["allocated_bytes.all.peak"]
    assert "equal to allocated_bytes" in stats["reserved_means"]
    assert acc.memory_reserved() == acc.memory_allocated()


def test_a_device_other_than_0_is_refused(acc):
    for ask in (acc.memory_allocated, acc.memory_stats, acc.total_memory, acc.available_memory):
        ask(0)
        with pytest.raises(ValueError, match="one device 0, not 1"):
            ask(1)


def test_the_profiler_still_sees_memory(acc):
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.empty(12345)
    assert any(event.cpu_memory_usage for event in profile.events())


class TestAllocatorsOfOthers:
    """Other libraries may install a CPU allocator in torch too, before the counter or after."""

    def counter(self, **functions):
        counter = MemoryCounter()
        counter.library = SimpleNamespace(
            is_built=lambda: True, refusals=list, load=lambda: SimpleNamespace(**functions)
        )
        counter.start_if_built()
        return counter

    def test_one_before_that_hides_its_blocks_is_the_refusal(self):
        counter = self.counter(accel_cpu_memory_start=lambda: 0)
        assert counter.refusal().code == "allocator"
        with pytest.raises(UnsupportedCapability, match="hides the blocks it hands out"):
            counter.read()

    def test_one_after_makes_the_figures_an_error(self):
        counter = self.counter(
            accel_cpu_memory_start=lambda: 1, accel_cpu_memory_read=lambda figures: 0
        )
        assert counter.refusal() is None
        with pytest.raises(UnsupportedCapability, match="another CPU allocator was installed"):
            counter.read()

    def test_a_library_that_cannot_be_loaded_is_the_refusal(self):
        def load():
            raise ImportError("libx.so was built and cannot be loaded: wrong ELF class")

        counter = MemoryCounter()
        counter.library = SimpleNamespace(is_built=lambda: True, refusals=list, load=load)
        counter.start_if_built()
        assert counter.refusal().code == "load"
        with pytest.raises(UnsupportedCapability, match="wrong ELF class"):
            counter.reset_peak()


@pytest.mark.usefixtures("_built")
def test_making_the_accelerator_starts_no_process_and_a_fork_after_it_works(fresh):
    fresh("""
        import os, signal, sys, warnings

        import accel, torch

        started = []
        processes = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec",
                     "os.system", "os.spawn", "pty.spawn"}
        sys.addaudithook(lambda event, args: started.append(event) if event in processes else None)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that other backends, if installed, have no device
            accel.get_accelerator()  # asks the probes of all that are installed
        accel.set_accelerator("cpu")
        acc = accel.get_accelerator()
        acc.properties(), acc.capabilities, acc.supported_dtypes(), repr(acc)
        assert not started, started

        held = acc.memory_allocated()  # the library is built: counts already, without a warning
        x = torch.empty(100_000)
        assert acc.memory_allocated() - held >= 400_000
        assert not started, started

        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a deadlock ends the child, and the test
            try:
                ones = torch.ones(512, 512)
                assert float((ones @ ones).sum()) == 512.0**3  # on all cores
                inherited = acc.memory_allocated()
                y = torch.empty(100_000)
                assert acc.memory_allocated() - inherited >= 400_000
                del y
                assert acc.memory_allocated() == inherited
                os._exit(0)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert acc.memory_allocated() - held < 500_000, "the child's tensors are its own"
    """)


def test_without_a_built_library_the_first_figure_builds_warns_once_and_counts(fresh, tmp_path):
    done = fresh(
        """
        import warnings

        import accel, torch
        from accel_cpu.memory_counter import COUNTER

        acc = accel.get_accelerator()
        assert acc.needs_build()
        assert acc.supports("memory_stats") and acc.supports("peak_memory_stats")
        early = torch.ones(1_000_000)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert acc.memory_allocated() == 0, "early tensors are not seen"
            acc.reset_peak_memory_stats()
            late = torch.ones(1000)
            assert 4000 <= acc.max_memory_allocated() < 10_000
        (warning,) = [w for w in caught if w.category is accel.errors.AccelWarning]
        text = str(warning.message)
        assert "tensors made before" in text and "accel build" in text
        assert warning.filename == "<string>", warning.filename
        assert COUNTER.library.is_built()
        del early
        assert 4000 <= acc.memory_allocated() < 10_000, "an early block is not subtracted"
        accel.reset()
        assert accel.get_accelerator() is not acc
        assert 4000 <= accel.get_accelerator().memory_allocated() < 10_000, "counted once"
        """,
        ACCEL_BACKEND="cpu",
        ACCEL_CACHE_DIR=str(tmp_path),
    )
    assert "compiled accel_cpu_memory" in done.stderr


def test_what_prevents_a_build_is_the_refusal(fresh, tmp_path):
    fresh(
        """
        import os

        import accel, pytest, torch

        acc = accel.get_accelerator()
        path, cache = os.environ["PATH"], os.environ["ACCEL_CACHE_DIR"]

        def refused(reason, known_before=True, code="compiler"):
            assert acc.supports("memory_stats") is not known_before
            for use in (acc.memory_allocated, acc.memory_stats, acc.reset_peak_memory_stats):
                with pytest.raises(accel.errors.UnsupportedCapability, match=reason):
                    use()
            for capability in ("memory_stats", "peak_memory_stats"):
                assert capability not in acc.capabilities
                assert acc.refusal(capability).code == code
            with pytest.raises(accel.errors.UnsupportedCapability, match=reason):
                acc.require("memory_stats")

        os.environ["CXX"] = "no-such-compiler"
        refused("no program CXX='no-such-compiler'")
        del os.environ["CXX"]
        os.environ["PATH"] = ""
        refused(r"none of c\\+\\+, g\\+\\+, clang\\+\\+ on the PATH")
        os.environ["PATH"] = path
        os.environ["CXX"] = "false"
        refused("building libaccel_cpu_memory.so with .*false failed", known_before=False)

        # The failure is remembered, until a new accelerator is made.
        del os.environ["CXX"]
        assert not acc.supports("memory_stats")
        os.environ["ACCEL_CACHE_DIR"] = "/dev/null/cache"
        accel.reset()
        acc = accel.get_accelerator()
        refused("build cache at /dev/null/cache, found /dev/null", code="cache")

        os.environ["ACCEL_CACHE_DIR"] = cache
        accel.reset()
        acc = accel.get_accelerator()
        os.environ["CXX"] = "c++"
        acc.build()
        accel.reset()
        acc = accel.get_accelerator()
        x = torch.ones(1000)
        assert acc.memory_allocated() >= 4000
        """,
        ACCEL_BACKEND="cpu",
        ACCEL_CACHE_DIR=str(tmp_path),
    )
