"""Random number state: it round trips, and seeding reproduces."""

from __future__ import annotations

import torch

from accel.accelerator import Accelerator
from accel_conformance.case import Evidence
from accel_conformance.suite.accelerator.lacking import lacks


def state_round_trips(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "rng_state", seen):
        return
    for index in (None, acc.current_device()):
        state = acc.get_rng_state(index)
        right = isinstance(state, torch.Tensor) and state.dtype is torch.uint8
        seen.expect("types", right, f"get_rng_state({index}) is {state!r:.80}, no ByteTensor")
        once = _draw(acc)
        other = _draw(acc)
        acc.set_rng_state(state, index)
        again = _draw(acc)
        seen.expect("random", torch.equal(once, again), f"set_rng_state(state, {index}) does not")
        seen.expect("random", not torch.equal(once, other), "two draws are equal")


def seeding_reproduces(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "rng_state", seen):
        return
    for seed in (acc.manual_seed, acc.manual_seed_all):
        draws = []
        for value in (7, 7, 8):
            seed(value)
            draws.append(_draw(acc))
        name = seed.__name__
        seen.expect("random", torch.equal(draws[0], draws[1]), f"{name}(7) twice: other numbers")
        differ = not torch.equal(draws[0], draws[2])
        seen.expect("random", differ, f"{name}(7) and {name}(8) give the same numbers")
        found = acc.initial_seed()
        seen.expect("random", found == 8, f"after {name}(8) initial_seed() is {found!r}")


def generator_is_the_devices_own(acc: Accelerator, seen: Evidence) -> None:
    """Seeding it seeds what is drawn without naming a generator."""
    if lacks(acc, "generator", seen):
        return
    generator = acc.default_generator()
    if not seen.expect("types", isinstance(generator, torch.Generator), f"{generator!r:.80}"):
        return
    generator.manual_seed(7)
    once = _draw(acc)
    generator.manual_seed(7)
    again = torch.rand(100, device=acc.device(), generator=generator)
    seen.expect("random", torch.equal(once, again), "it does not drive torch.rand on the device")
    own = generator.device.type == acc.device_type
    seen.expect("random", own, f"it is on {generator.device}")


def random_is_torchs(acc: Accelerator, seen: Evidence) -> None:
    found = acc.random()
    seen.expect("types", found is torch.random, f"random() is {found!r:.80}, not torch.random")


def _draw(acc: Accelerator) -> torch.Tensor:
    return torch.rand(100, device=acc.device())


CHECKS = (state_round_trips, seeding_reproduces, generator_is_the_devices_own, random_is_torchs)
