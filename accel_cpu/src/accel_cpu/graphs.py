"""Graphs of the host processor: torch operations recorded while they run, and called again from
C++ (csrc/graph.cpp).

A device saves launches by a graph, a processor the Python between its operations: of a decode step
of 16 narrow layers 8.4 ms become 2.8 (2 Zen 3 cores).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from accel import NativeLibrary, Source

_CSRC = Path(__file__).parent / "csrc"

LIBRARY = NativeLibrary(
    "accel_cpu_graphs",
    # Without NDEBUG torch's record of a call has another layout than in its own build.
    [Source(_CSRC / "graph.cpp", ("-O1", "-DNDEBUG"), torch=True)],
    headers=[_CSRC / "graph_operation.h", _CSRC / "team.h"],
    libraries=("c10", "torch_cpu"),
)


class Graph:
    """What :func:`capture` recorded; empty until then."""

    def __init__(self) -> None:
        LIBRARY.load()
        self._number = torch.ops.accel_cpu_graphs.create()
        weakref.finalize(self, torch.ops.accel_cpu_graphs.drop, self._number)

    def replay(self) -> None:
        """Call the recorded operations again, on what their arguments hold now; results that were
        still held when the recording ended get the new values. Records no gradient."""
        torch.ops.accel_cpu_graphs.replay(self._number)


@contextmanager
def capture(graph: Graph, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """Record what this thread calls, which also runs. ``pool`` and ``stream`` are for devices.

    RuntimeError at the end if an operation gave Python a tensor's values (``item``,
    ``if x.any()``), since what follows would depend on them; the graph is then empty, as after any
    exception.
    """
    operations = torch.ops.accel_cpu_graphs
    operations.begin(graph._number)
    whole = False
    try:
        yield
        whole = True
    finally:
        operations.end(whole)
