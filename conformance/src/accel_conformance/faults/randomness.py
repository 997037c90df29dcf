"""Random number states and seeds that are not the device's own."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from accel_conformance.faults.device import runtime
from accel_conformance.faults.planting import Device, faults_of

fault = faults_of("rng")

ROUND_TRIPS, SEEDING = "accelerator/state_round_trips", "accelerator/seeding_reproduces"
OWN = "accelerator/states_are_the_devices_own"


@fault("random", ROUND_TRIPS, also="independent", role="accelerator")
def state_not_restored(right: Device) -> Device:
    """Setting a state does nothing."""

    class Faulty(right):
        def set_rng_state(self, new_state: Tensor, device_index: int | None = None) -> None:
            pass

    return Faulty


@fault("random", ROUND_TRIPS, also="independent", role="accelerator")
def state_of_the_host(right: Device) -> Device:
    """The state is that of the host's generator."""

    class Faulty(right):
        def get_rng_state(self, device_index: int | None = None) -> Tensor:
            return torch.default_generator.get_state()

    return Faulty


@fault("random", ROUND_TRIPS, role="accelerator")
def spare_normal_forgotten(right: Device) -> Device:
    """Of the pair that a normal number is made in, the one left over is not part of the state."""

    class Faulty(right):
        def get_rng_state(self, device_index: int | None = None) -> Tensor:
            state = super().get_rng_state(device_index)
            generator = torch.Generator()
            with_spare, without = (_after_normal(generator) for _ in range(2))
            told = with_spare != without
            state[told] = without[told]
            return state

    return Faulty


def _after_normal(generator: torch.Generator) -> Tensor:
    """The state after a normal number more."""
    torch.randn(1, generator=generator)
    return generator.get_state()


@fault("random", ROUND_TRIPS, role="accelerator")
def state_overwritten(right: Device) -> Device:
    """A state that was given out is overwritten when the next one is asked for."""
    kept: list[Tensor] = []

    class Faulty(right):
        def get_rng_state(self, device_index: int | None = None) -> Tensor:
            state = super().get_rng_state(device_index)
            if not kept:
                kept.append(state)
            return kept[0].copy_(state)

    return Faulty


@fault("random", SEEDING, also="independent", role="accelerator")
def seeded_with_the_time(right: Device) -> Device:
    """The seed is ignored."""

    class Faulty(right):
        def manual_seed(self, seed: int) -> None:
            super().manual_seed(time.perf_counter_ns())

    return Faulty


@fault("random", SEEDING, also="independent", role="accelerator")
def every_seed_the_same(right: Device) -> Device:
    """All seeds give the same numbers."""

    class Faulty(right):
        def manual_seed(self, seed: int) -> None:
            super().manual_seed(0)

    return Faulty


@fault("random", SEEDING, role="accelerator")
def seed_cut_short(right: Device) -> Device:
    """Of a seed 32 bits are kept."""

    class Faulty(right):
        def manual_seed(self, seed: int) -> None:
            super().manual_seed(seed & 0xFFFFFFFF)

    return Faulty


@fault("random", SEEDING, also="independent", role="accelerator")
def first_seed_for_good(right: Device) -> Device:
    """The seed that the generator started from is always said to be 0."""

    class Faulty(right):
        def initial_seed(self) -> int:
            return 0

    return Faulty


@fault("random", "accelerator/generator_is_the_devices_own", role="accelerator")
def generator_made_anew(right: Device) -> Device:
    """The default generator is a new one each time it is asked for."""

    class Faulty(right):
        def default_generator(self, device_index: int | None = None) -> torch.Generator:
            return torch.Generator()

    return Faulty


@fault("independent", OWN, role="accelerator")
def state_of_the_current_device(right: Device) -> Device:
    """Whichever device is named, the state is the current one's."""

    class Faulty(right):
        def get_rng_state(self, device_index: int | None = None) -> Tensor:
            return super().get_rng_state()

    return Faulty


@fault("independent", OWN, role="accelerator")
def state_set_on_the_current_device(right: Device) -> Device:
    """Whichever device is named, the state is set on the current one."""

    class Faulty(right):
        def set_rng_state(self, new_state: Tensor, device_index: int | None = None) -> None:
            super().set_rng_state(new_state)

    return Faulty


@fault("independent", OWN, role="accelerator")
def seeds_every_device(right: Device) -> Device:
    """Seeding the current device seeds the others too."""

    class Faulty(right):
        def manual_seed(self, seed: int) -> None:
            self.manual_seed_all(seed)

    return Faulty


@fault("independent", OWN, role="accelerator")
def seeds_the_current_device_alone(right: Device) -> Device:
    """Seeding all devices seeds the current one."""

    class Faulty(right):
        def manual_seed_all(self, seed: int) -> None:
            self.manual_seed(seed)

    return Faulty


@fault("independent", OWN, role="accelerator")
def seed_of_the_first_device(right: Device) -> Device:
    """Whichever device is current, the first one's seed is told."""

    class Faulty(right):
        def initial_seed(self) -> int:
            return runtime.default_generators[0].initial_seed()

    return Faulty
