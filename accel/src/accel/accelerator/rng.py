"""Random number state of an accelerator."""

from __future__ import annotations

from types import ModuleType

import torch

from accel.accelerator.capabilities import Capable


class Rng(Capable):
    """Each device has a generator of its own; ``device_index`` None means the current one."""

    def random(self) -> ModuleType:
        """``torch.random``, for ``fork_rng`` and friends."""
        return torch.random

    def manual_seed(self, seed: int) -> None:
        """Seed the current device's generator."""
        self._ask("manual_seed", seed, capability="rng_state")

    def manual_seed_all(self, seed: int) -> None:
        """Seed the generators of all devices of this type."""
        self._ask("manual_seed_all", seed, capability="rng_state")

    def initial_seed(self) -> int:
        """The seed the current device's generator started from."""
        return int(self._ask("initial_seed", capability="rng_state"))

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        """The generator's state, a ByteTensor on the host."""
        return self._ask("get_rng_state", *_given(device_index), capability="rng_state")  # type: ignore[no-any-return]

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        """Continue from a state that :meth:`get_rng_state` gave."""
        self._ask("set_rng_state", new_state, *_given(device_index), capability="rng_state")

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        """The device's own :class:`torch.Generator`."""
        self.require("generator")
        index = self._ask("current_device") if device_index is None else device_index
        return self.module.default_generators[index]  # type: ignore[no-any-return]


def _given(device_index: int | None) -> tuple[int, ...]:
    # torch's device modules differ in the type and default of this argument, not in the int.
    return () if device_index is None else (device_index,)
