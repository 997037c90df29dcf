"""Memory figures and times that are those of something else."""

from __future__ import annotations

import os
import time
from typing import Any

from accel_conformance.faults.device import runtime
from accel_conformance.faults.planting import Device, faults_of
from accel_conformance.faults.streams import with_event

fault = faults_of("statistics")

MOVES, OWN = "accelerator/allocated_moves_with_tensors", "accelerator/allocated_is_of_this_device"
PEAK, TOTAL = "accelerator/peak_holds_and_resets", "accelerator/free_is_part_of_total"
STATS = "accelerator/stats_carry_torchs_names"
TIMES = "accelerator/events_tell_milliseconds"


@fault("memory", MOVES, OWN, PEAK, STATS, role="accelerator")
def memory_of_the_process(right: Device) -> Device:
    """Memory is what the process has in use of the host's."""

    class Faulty(right):
        def memory_allocated(self, device_index: int | None = None) -> int:
            with open("/proc/self/statm") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        memory_reserved = memory_allocated

    return Faulty


@fault("memory", MOVES, STATS, role="accelerator")
def memory_never_given_back(right: Device) -> Device:
    """What is allocated falls only when peaks are reset."""
    most = [0]

    class Faulty(right):
        def memory_allocated(self, device_index: int | None = None) -> int:
            most[0] = max(most[0], super().memory_allocated(device_index))
            return most[0]

        def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
            most[0] = 0
            super().reset_peak_memory_stats(device_index)

    return Faulty


@fault("memory", MOVES, PEAK, STATS, role="accelerator")
def memory_in_kibibytes(right: Device) -> Device:
    """Figures are in units of 1024 bytes."""

    class Faulty(right):
        def memory_allocated(self, device_index: int | None = None) -> int:
            return super().memory_allocated(device_index) // 1024

    return Faulty


@fault("memory", MOVES, role="accelerator")
def reserved_is_what_is_cached(right: Device) -> Device:
    """Reserved leaves out what tensors hold."""

    class Faulty(right):
        def memory_reserved(self, device_index: int | None = None) -> int:
            return 0

    return Faulty


@fault("memory", OWN, role="accelerator")
def memory_of_all_devices(right: Device) -> Device:
    """Figures are those of the current device, whichever is named."""

    class Faulty(right):
        def memory_allocated(self, device_index: int | None = None) -> int:
            return super().memory_allocated()

    return Faulty


@fault("types", "accelerator/figures_are_bytes", role="accelerator")
def memory_in_fractions(right: Device) -> Device:
    """Figures are floating point numbers."""

    class Faulty(right):
        def memory_reserved(self, device_index: int | None = None) -> Any:
            return float(super().memory_reserved(device_index))

    return Faulty


@fault("memory", PEAK, role="accelerator")
def peak_never_resets(right: Device) -> Device:
    """Resetting the peak does nothing."""

    class Faulty(right):
        def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
            pass

    return Faulty


@fault("memory", PEAK, role="accelerator")
def peak_reset_to_nothing(right: Device) -> Device:
    """Resetting the peak makes it 0, whatever is held."""

    class Faulty(right):
        def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
            runtime._state.peaks[self.current_device()] = 0

    return Faulty


@fault("memory", PEAK, STATS, role="accelerator")
def peak_is_what_is_held(right: Device) -> Device:
    """The peak is what is allocated now."""

    class Faulty(right):
        def max_memory_allocated(self, device_index: int | None = None) -> int:
            return self.memory_allocated(device_index)

    return Faulty


@fault("memory", TOTAL, role="accelerator")
def more_free_than_there_is(right: Device) -> Device:
    """What is free is more than the whole."""

    class Faulty(right):
        def available_memory(self, device_index: int | None = None) -> int:
            return 2 * self.total_memory(device_index)

    return Faulty


@fault("memory", TOTAL, role="accelerator")
def total_of_the_host(right: Device) -> Device:
    """The whole is more than the device has."""

    class Faulty(right):
        def total_memory(self, device_index: int | None = None) -> int:
            return 1 << 40

    return Faulty


@fault("memory", STATS, role="accelerator")
def names_of_its_own(right: Device) -> Device:
    """Counters have other names than torch's."""

    class Faulty(right):
        def memory_stats(self, device_index: int | None = None) -> dict[str, Any]:
            return {"allocated": self.memory_allocated(device_index)}

    return Faulty


@fault("memory", STATS, role="accelerator")
def counters_of_the_start(right: Device) -> Device:
    """Counters are those of the first time they were asked for."""
    first: list[dict[str, Any]] = []

    class Faulty(right):
        def memory_stats(self, device_index: int | None = None) -> dict[str, Any]:
            first.append(super().memory_stats(device_index))
            return first[0]

    return Faulty


@fault("memory", STATS, role="accelerator")
def peak_counter_never_resets(right: Device) -> Device:
    """Resetting the peak resets the figure that has a name, and not the counter."""
    most = [0]

    class Faulty(right):
        def memory_stats(self, device_index: int | None = None) -> dict[str, Any]:
            stats = super().memory_stats(device_index)
            most[0] = max(most[0], stats["allocated_bytes.all.peak"])
            return {**stats, "allocated_bytes.all.peak": most[0]}

    return Faulty


@fault("events", TIMES, role="accelerator")
def seconds_for_milliseconds(right: Device) -> Device:
    """Times between events are in seconds."""
    return _timed(right, lambda ms: ms / 1000)


@fault("events", TIMES, role="accelerator")
def microseconds_for_milliseconds(right: Device) -> Device:
    """Times between events are in microseconds."""
    return _timed(right, lambda ms: ms * 1000)


@fault("events", TIMES, role="accelerator")
def time_backwards(right: Device) -> Device:
    """Times between events are from the later one to the earlier."""
    return _timed(right, lambda ms: -ms)


@fault("events", TIMES, role="accelerator")
def time_of_the_record(right: Device) -> Device:
    """Events are stamped when they are made, not when they happen."""

    def made(self: runtime.Event, enable_timing: bool = False, blocking: bool = False) -> None:
        runtime.Event.__init__(self, enable_timing, blocking)
        self._stamp()

    return with_event(right, __init__=made, record=_without_stamp)


@fault("events", TIMES, role="accelerator")
def time_of_the_first_record(right: Device) -> Device:
    """An event that is recorded again keeps its time."""

    def stamp(self: runtime.Event) -> None:
        self.seconds = self.seconds or time.perf_counter()

    return with_event(right, _stamp=stamp)


def _without_stamp(event: runtime.Event, stream: Any = None) -> None:
    at = event.seconds
    runtime.Event.record(event, stream)
    runtime.current_stream().submit(lambda: setattr(event, "seconds", at))


def _timed(right: Device, unit: Any) -> Device:
    def elapsed_time(self: runtime.Event, end: runtime.Event) -> float:
        return unit(runtime.Event.elapsed_time(self, end))  # type: ignore[no-any-return]

    return with_event(right, elapsed_time=elapsed_time)
