"""Autotuning: which values of a builder's knobs are fastest on the shapes that a model will meet.

What can be turned about a kernel is its plugin's to say (:meth:`accel.OpBuilder.knobs`). A value
whose result is not the default's, bit for bit, is an error: tuning may change the time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from accel import ops
from accel.accelerator import Accelerator
from accel.contracts import CONTRACTS
from accel.contracts.checks import name_of
from accel.errors import PluginError, UnsupportedCapability
from accel.layers.inference.tuning_table import Settings, TuningTable
from accel.op_builder import Knob, Shapes
from accel.ops import policy as _policy
from accel.ops.catalog import Entry
from accel.ops.resolution import unserved
from accel.selection import get_accelerator

# A value's time is the least of so many rounds of at least so many seconds.
_ROUNDS, _ROUND = 5, 1e-3


@dataclass(frozen=True)
class Tuned:
    """What autotuning did: the implementation, its settings by the shapes of its tensors, and a
    sentence about it."""

    impl: str
    settings: Mapping[Shapes, Settings]
    said: str

    def __str__(self) -> str:
        return self.said


def tune(op: str, cases: Iterable[tuple[Any, ...]]) -> Tuned:
    """Turn the knobs of what serves ``op`` to the fastest values, for the shapes of each case.

    ``cases`` are arguments of the op, on the accelerator, all of one dtype. What the table of
    earlier runs has is taken from there (:mod:`accel.layers.inference.tuning_table`), the rest
    measured. PluginError names a knob that changes a result; it then stands as before.
    """
    contract = CONTRACTS[op]
    cases = [contract.bind(args) for args in cases]
    key = contract.key(cases[0])
    decision = ops.explain(op, device=key.device, dtype=key.dtype)
    if decision.chosen is None:
        raise unserved(decision, _policy.current().order(op))
    tuning = _Tuning(decision.chosen, key.dtype, get_accelerator())
    if not tuning.knobs:
        return Tuned(tuning.entry.impl.id, {}, f"{tuning.entry.impl} has no knobs to tune")
    table = TuningTable(tuning.device)
    chosen: dict[Shapes, Settings] = {}
    found: dict[str, Settings] = {}
    for args in cases:
        shapes = tuple(None if t is None else tuple(t.shape)
                       for t in args[: contract.tensor_count])  # fmt: skip
        name = tuning.name(shapes)
        settings = table.settings.get(name)
        if settings is None or not tuning.knows(settings):
            settings = found[name] = tuning.fastest(args, shapes)
        tuning.turn(shapes, settings)
        chosen[shapes] = settings
    table.add(found)
    return Tuned(
        tuning.entry.impl.id, chosen,
        f"{tuning.entry.impl} was tuned on {tuning.device}: {len(found)} of {len(chosen)} shapes "
        f"were measured, the others known; kept in {table.file or 'memory'}",
    )  # fmt: skip


class _Tuning:
    """The knobs of one implementation, for one dtype, on one device."""

    def __init__(self, entry: Entry, dtype: torch.dtype, accelerator: Accelerator) -> None:
        self.entry = entry
        self.dtype = dtype
        self.accelerator = accelerator
        self.knobs: tuple[Knob, ...] = entry.builder.knobs(entry.impl)
        self.defaults = {knob.name: knob.values[0] for knob in self.knobs}

    @property
    def device(self) -> str:
        """The device's name and the plugin's, whose next version may have other kernels."""
        backend = self.accelerator.backend
        try:
            name = self.accelerator.properties().name
        except UnsupportedCapability:
            name = f"{backend.vendor} {backend.device_type}"
        return f"{name}, {backend.name} {backend.version}"

    def name(self, shapes: Shapes) -> str:
        given = ("-" if shape is None else "x".join(map(str, shape)) for shape in shapes)
        impl = self.entry.impl
        return " ".join((impl.op, impl.id, name_of(self.dtype), *given))

    def knows(self, settings: Settings) -> bool:
        """Whether they are values of today's knobs."""
        return settings.keys() == self.defaults.keys() and all(
            settings[knob.name] in knob.values for knob in self.knobs
        )

    def turn(self, shapes: Shapes, settings: Settings) -> None:
        self.entry.builder.turn(self.entry.impl, self.dtype, shapes, settings)

    def fastest(self, args: tuple[Any, ...], shapes: Shapes) -> Settings:
        """Knob after knob the fastest value, beside the best of those before and the defaults of
        those after it."""
        kernel = self.entry.builder.load(self.entry.impl)
        best = dict(self.defaults)
        try:
            self.turn(shapes, best)
            want = kernel(*args)
            for knob in self.knobs:
                times = {}
                for value in knob.values:
                    self.turn(shapes, best | {knob.name: value})
                    self._require_same(knob, value, shapes, kernel(*args), want)
                    times[value] = self._seconds(lambda: kernel(*args))
                best[knob.name] = min(times, key=times.__getitem__)
        finally:
            self.turn(shapes, self.defaults)
        return best

    def _require_same(
        self, knob: Knob, value: int, shapes: Shapes, got: Tensor, want: Tensor
    ) -> None:
        bits, wanted = (t.contiguous().view(torch.uint8) for t in (got, want))
        if not torch.equal(bits, wanted):
            raise PluginError(
                f"{type(self.entry.builder).__name__}: the knob {knob.name!r} of {self.entry.impl} "
                f"changes results: with {value} those of {self.name(shapes)} are not the default's,"
                f" {knob.values[0]}; a knob may change the time alone"
            )

    def _seconds(self, run: Callable[[], object]) -> float:
        """The time of one call."""
        count, elapsed = 1, self._round(run, 1)
        while elapsed < _ROUND:
            count *= 2
            elapsed = self._round(run, count)
        return min(elapsed, *(self._round(run, count) for _ in range(_ROUNDS - 1))) / count

    def _round(self, run: Callable[[], object], count: int) -> float:
        self.accelerator.synchronize()
        start = perf_counter()
        for _ in range(count):
            run()
        self.accelerator.synchronize()
        return perf_counter() - start
