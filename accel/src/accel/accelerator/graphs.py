"""Graphs of an accelerator: work captured once and replayed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

from accel.accelerator.capabilities import Capable


class Graphs(Capable):
    """Refused here; a backend that has graphs overrides :meth:`_graph_api`.

    ``captures_run``  True where work also runs while it is captured, and not at the first replay
    """

    captures_run: ClassVar[bool] = False

    def _graph_api(self) -> tuple[type[Any], Any]:
        """(graph class, capture context manager), such as the torch device module's."""
        self.require("graphs")
        raise AssertionError("a backend that claims graphs must override _graph_api")

    def create_graph(self) -> Any:
        """An empty graph object."""
        return self._graph_api()[0]()

    def capture_to_graph(
        self, graph: Any, pool: Any = None, stream: Any = None
    ) -> AbstractContextManager[Any]:
        """A context whose work is recorded into ``graph``, instead of being run unless
        :attr:`captures_run`. Tensors made in it keep their place, which each replay writes to."""
        return self._graph_api()[1](graph, pool=pool, stream=stream)  # type: ignore[no-any-return]

    def replay_graph(self, graph: Any) -> None:
        """Run what ``graph`` recorded."""
        self.require("graphs")
        graph.replay()
