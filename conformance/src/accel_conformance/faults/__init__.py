"""Wrong implementations that the suite must catch, each for its own reason.

    with plant(FAULTS["dropped_k_tail"], "accel_cpu.native") as id:
        accel_conformance.run("cpu", ops=["linear"], impls=[id])      # 1

values.py    wrong results           memory.py     memory that is not the kernel's
company.py   rows, threads, order    promises.py   claims, refusals, gradients
traces.py    torch's watchers        engine.py     what only the hybrid engine shows
scale.py     what large calls show
tiers.py     small errors, unusual inputs
"""

from __future__ import annotations

from accel_conformance.faults import (  # noqa: F401 (they register)
    company,
    engine,
    memory,
    promises,
    scale,
    tiers,
    traces,
    values,
)
from accel_conformance.faults.planting import FAULTS, Fault, plant

__all__ = ["FAULTS", "Fault", "plant"]
