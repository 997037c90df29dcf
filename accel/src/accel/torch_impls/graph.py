"""torch's own gradient of a computation, for a kernel that brings its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks


@dataclass(frozen=True)
class Graph:
    """What autograd recorded of ``function(*inputs)``, without the tensors in it.

    Its nodes have numbers in the place of their tensors, so that these can be kept, freed and
    watched by whoever records the whole.

    ``inputs``, ``result``  where gradients leave and enter
    ``places``              of the nodes' tensors, among inputs, result, and what else is kept
    ``tensors``             the nodes' tensors while gradients are computed. It is all that can be
                            reached from the nodes: a way back to them would be a cycle that Python
                            does not see
    """

    inputs: Sequence[GradientEdge]
    result: GradientEdge
    places: Sequence[int]
    tensors: list[Tensor]

    @classmethod
    def record(
        cls, function: Callable[..., Tensor], *inputs: Tensor
    ) -> tuple[Tensor, list[Tensor], Graph]:
        """The result, what is to be kept beside it and the inputs, and the graph."""
        tensors: list[Tensor] = []
        with torch.enable_grad(), saved_tensors_hooks(_append_to(tensors), tensors.__getitem__):
            start = torch.empty(0, requires_grad=True)
            leaves = _Inputs.apply(start, *inputs)  # type: ignore[no-untyped-call]
            result = function(*leaves)
        edges = [get_gradient_edge(leaf) for leaf in leaves]
        known = (*inputs, result.detach())
        kept: list[Tensor] = []
        places = []
        for tensor in tensors:
            place = _find(tensor, known)
            if place is None:
                place = len(known) + len(kept)
                kept.append(tensor)
            places.append(place)
        tensors.clear()
        return known[-1], kept, cls(edges, get_gradient_edge(result), places, tensors)

    def gradients(
        self, grad: Tensor, needs: Sequence[bool], tensors: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Those of the inputs, None where ``needs`` has False; ``tensors`` are the inputs, the
        result, and what was to be kept."""
        wanted = [edge for edge, need in zip(self.inputs, needs) if need]
        self.tensors[:] = [tensors[place] for place in self.places]
        try:
            found = iter(torch.autograd.grad([self.result], wanted, [grad], retain_graph=True))
        finally:
            self.tensors.clear()
        return [next(found) if need else None for need in needs]


class _Inputs(torch.autograd.Function):
    """Where a graph begins. Leaves would hold their tensors as long as there is the graph."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.detach() for t in inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise AssertionError("gradients are taken of the inputs, not of what is before them")


def _append_to(tensors: list[Tensor]) -> Callable[[Tensor], int]:
    def append(tensor: Tensor) -> int:
        tensors.append(tensor)
        return len(tensors) - 1

    return append


def _find(tensor: Tensor, known: Sequence[Tensor]) -> int | None:
    """Which of the known is the same view of the same memory."""
    for i, other in enumerate(known):
        if (
            tensor.data_ptr() == other.data_ptr()
            and tensor.dtype is other.dtype
            and tensor.shape == other.shape
            and tensor.stride() == other.stride()
            and tensor.device == other.device
        ):
            return i
    return None
