"""Bytes of host memory that live tensors hold, counted where torch allocates them.

torch has no such figures for the host. The counter is a torch allocator around torch's own, in
C++ (csrc/memory_counter.cpp), compiled in half a second. Once it counts it does so for the life
of the process: taking it away would leave blocks behind that it counted.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from accel import NativeLibrary, Refusal, Source
from accel.errors import AccelWarning, BuildError, BuildTimeoutError, UnsupportedCapability

NOT_SEEN = (
    "numpy's own memory, tensors moved by share_memory_(), scratch memory inside oneDNN and MKL, "
    "and tensors made before counting started"
)

_WANT = "the allocation counter, a C++ library"


@dataclass(frozen=True)
class Figure:
    """A quantity now, at its highest since start or the last reset, and the sum of its rises."""

    current: int
    peak: int
    allocated: int

    def as_stats(self, name: str) -> dict[str, int]:
        """Under torch's names: ``name.all.current``, ``.peak``, ``.allocated``, ``.freed``."""
        return {
            f"{name}.all.current": self.current,
            f"{name}.all.peak": self.peak,
            f"{name}.all.allocated": self.allocated,
            f"{name}.all.freed": self.allocated - self.current,
        }


class MemoryCounter:
    """Counts from :meth:`start_if_built` on, or else from the first use of a figure.

    Threads may use it at once; a forked child goes on from its parent's figures, since it holds
    copies of its parent's tensors.
    """

    def __init__(self) -> None:
        self.library = NativeLibrary(
            "accel_cpu_memory",
            [Source(Path(__file__).parent / "csrc/memory_counter.cpp", torch=True)],
            flags=("-O2",),
        )
        self._api: ctypes.CDLL | None = None
        self._failure: Refusal | None = None
        self._lock = threading.Lock()

    def refusal(self) -> Refusal | None:
        """Why there are no figures; None if it counts or can be compiled to count."""
        if self._api is not None:
            return None
        if self._failure is not None:
            return self._failure
        missing = self.library.refusals()
        return missing[0] if missing else None

    def start_if_built(self) -> None:
        """Count from now on if the library lies in the cache; compiles nothing, raises nothing.

        Forgets an earlier failure, so that a new accelerator tries again.
        """
        with self._lock:
            self._failure = None
            if self._api is None and self.library.is_built():
                self._try_to_start()

    def read(self) -> tuple[Figure, Figure]:
        """(bytes, blocks). The first use compiles the counter, where that was not done before.

        Raises UnsupportedCapability with the reason if it cannot count.
        """
        api = self._started()
        numbers = (ctypes.c_int64 * 6)()
        if not api.accel_cpu_memory_read(numbers):
            raise UnsupportedCapability(
                "the host's memory figures are lost: another CPU allocator was installed in "
                "torch after accel's counter; install it before the accelerator is made"
            )
        return Figure(*numbers[:3]), Figure(*numbers[3:])

    def reset_peak(self) -> None:
        """Set the peaks to what is held now; starts like :meth:`read`."""
        self._started().accel_cpu_memory_reset_peak()

    def _started(self) -> ctypes.CDLL:
        if self._api is not None:  # without the lock, which a forked child may find held
            return self._api
        with self._lock:
            if self._api is not None:
                return self._api
            refused = self.refusal()
            if refused is None:
                self._try_to_start()
                refused = self._failure
            if refused is not None:
                raise UnsupportedCapability(f"no memory figures of the host: {refused}")
        # Level 4: the caller of the accelerator's method, over read or reset_peak, and _started.
        warnings.warn(
            "accel counts host memory from now on; tensors made before are not in its figures "
            "(`accel build` ahead of time makes it count from the start)",
            AccelWarning,
            stacklevel=4,
        )
        assert self._api is not None
        return self._api

    def _try_to_start(self) -> None:
        """Set ``_api``, or ``_failure`` to the reason; another process's build may time out."""
        try:
            api = self.library.load()
        except BuildTimeoutError:
            raise  # the next try may succeed
        except BuildError as error:
            have = f"a build that failed: {error}"
            self._failure = Refusal("compiler", _WANT, have, "mend that, and run `accel build`")
            return
        except ImportError as error:
            self._failure = Refusal("load", _WANT, str(error), "run `accel build --clean`")
            return
        if api.accel_cpu_memory_start():
            self._api = api
        else:
            have = "a CPU allocator in torch that hides the blocks it hands out"
            want, remedy = (
                "torch's own CPU allocator",
                "do without that one, or the figures",
            )
            self._failure = Refusal("allocator", want, have, remedy)


# One for the process, as is torch's allocator.
COUNTER = MemoryCounter()
