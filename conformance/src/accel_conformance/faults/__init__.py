"""Faults that the suite must catch, each for its own reason.

    with plant(FAULTS["dropped_k_tail"], "accel_cpu.native") as id:
        accel_conformance.run("cpu", ops=["linear"], impls=[id])      # 1

values.py       wrong results of linear          products.py     of its kin
norms.py        of norms and what is like them   heads.py        of attention and logprob
gradients.py    wrong gradients                  memory.py       memory not the kernel's
company.py      rows, threads, order             promises.py     claims, refusals, definitions
tiers.py        small errors, unusual inputs     scale.py        what large calls show
traces.py       what torch takes from an op      engine.py       what only the engine shows
streams.py      streams and events               randomness.py   seeds and states
figures.py      memory figures and times         facts.py        what a device says of itself
builds.py       libraries half made, made twice
planting.py     what a fault is                  host.py, device/   what they are planted in
"""

from __future__ import annotations

from accel_conformance.faults import (  # noqa: F401 (they register)
    builds,
    company,
    engine,
    facts,
    figures,
    gradients,
    heads,
    memory,
    norms,
    products,
    promises,
    randomness,
    scale,
    streams,
    tiers,
    traces,
    values,
)
from accel_conformance.faults.planting import FAULTS, NOTHING, Fault, plant

__all__ = ["FAULTS", "NOTHING", "Fault", "plant"]
