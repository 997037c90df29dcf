"""Random number state: it round trips, and seeding reproduces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from accel.accelerator import Accelerator
from accel_conformance.case import Evidence
from accel_conformance.suite.accelerator.lacking import lacks

LONG_SEED = 2**40 + 7  # more than 32 bits of a seed count


def state_round_trips(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "rng_state", seen):
        return
    for index in (None, acc.current_device()):
        torch.randn(1, device=acc.device())  # normal numbers are made in pairs: one is left over
        state = acc.get_rng_state(index)
        right = isinstance(state, torch.Tensor) and state.dtype is torch.uint8
        seen.expect("types", right, f"get_rng_state({index}) is {state!r:.80}, no ByteTensor")
        once = _draw(acc)
        other = _draw(acc)
        acc.get_rng_state(index)  # which leaves a state that was given out as it is
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
        for value in (8, LONG_SEED):
            seed(value)
            found = acc.initial_seed()
            says = f"after {name}({value}) initial_seed() is {found!r}"
            seen.expect("random", found == value, says)


def states_are_the_devices_own(acc: Accelerator, seen: Evidence) -> None:
    """What is drawn, seeded or set on one device is of no other, whichever is current."""
    if lacks(acc, "rng_state", seen):
        return
    indices = range(acc.device_count())
    for index, other in zip(indices, reversed(indices)):
        with _on(acc, index):
            states = _states(acc)
            acc.manual_seed(100 + index)
            _only(seen, acc, states, index, "manual_seed()")
            states = _states(acc)
            _draw(acc)
            _only(seen, acc, states, index, "a draw")
            acc.set_rng_state(states[index], other)
            same = torch.equal(acc.get_rng_state(other), states[index])
            says = f"set_rng_state(state, {other}) with {index} current sets another"
            seen.expect("independent", same, says)
    for index in indices:
        with _on(acc, index):
            acc.manual_seed(100 + index)
    for index in indices:
        with _on(acc, index):
            found = acc.initial_seed()
            says = f"device {index} was seeded with {100 + index}; initial_seed() is {found!r}"
            seen.expect("independent", found == 100 + index, says)
    acc.manual_seed_all(7)
    alike = {bytes(state.numpy()) for state in _states(acc)}
    seen.expect("independent", len(alike) == 1, "manual_seed_all() seeds some devices only")


def _only(
    seen: Evidence, acc: Accelerator, before: list[torch.Tensor], index: int, what: str
) -> None:
    """Of all states the one at ``index`` has changed since."""
    now = _states(acc)
    moved = [i for i, (one, other) in enumerate(zip(before, now)) if not torch.equal(one, other)]
    says = f"{what} on device {index} moves the state of {moved}"
    seen.expect("independent", moved == [index], says)


def _states(acc: Accelerator) -> list[torch.Tensor]:
    return [acc.get_rng_state(index).clone() for index in range(acc.device_count())]


@contextmanager
def _on(acc: Accelerator, index: int) -> Iterator[None]:
    before = acc.current_device()
    acc.set_device(index)
    try:
        yield
    finally:
        acc.set_device(before)


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
    again = _draw(acc, generator)
    seen.expect("random", torch.equal(once, again), "it does not drive torch.rand on the device")
    own = generator.device.type == acc.device_type
    seen.expect("random", own, f"it is on {generator.device}")


def random_is_torchs(acc: Accelerator, seen: Evidence) -> None:
    found = acc.random()
    seen.expect("types", found is torch.random, f"random() is {found!r:.80}, not torch.random")


def _draw(acc: Accelerator, generator: torch.Generator | None = None) -> torch.Tensor:
    normal = torch.randn(1, device=acc.device(), generator=generator)
    return torch.cat([normal, torch.rand(100, device=acc.device(), generator=generator)])


CHECKS = (
    state_round_trips,
    seeding_reproduces,
    states_are_the_devices_own,
    generator_is_the_devices_own,
    random_is_torchs,
)
