"""OpBuilder: what a backend offers for a family of ops, and why it would refuse a request.

A builder lists implementations; refuses requests by their metadata alone; and loads a kernel when
it was chosen. Nothing here runs per op call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from accel.errors import PluginError
from accel.refusal import Refusal

if TYPE_CHECKING:
    from accel.bench.offers import Peer

# Builder class names a backend may offer, and what each is for.
FAMILIES = {
    "LinearBuilder": "products with a weight: linear, gated_linear, ...",
    "TransformerBuilder": "norms, attention, rotary, the fused layer, ...",
    "TilingBuilder": "products over tiles of a weight or of the tokens",
}

_ID = re.compile(r"[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*")


@dataclass(frozen=True)
class Impl:
    """One implementation of one op.

    ``op``              the contract's name
    ``id``              ``"package.kind"``; the torch op is named ``package::op_kind``
    ``dtypes``          dtypes of the arguments it computes in
    ``priority``        among those that accept, the highest serves
    ``shape_invariant`` row i of the result depends bitwise on row i of the input alone, and of a
                        product an output feature on its own row of the weight alone
    ``differentiable``  the gradient made from the contract is right for it; if the kernel brings
                        one of its own (:class:`Kernel`), that too
    ``reads_shapes``    :meth:`OpBuilder.reasons` looks at shapes and strides; requests carry them
                        only to those that say so, since they are resolved anew for each shape
    """

    op: str
    id: str
    dtypes: frozenset[torch.dtype]
    priority: int
    shape_invariant: bool = False
    differentiable: bool = True
    reads_shapes: bool = False

    def __str__(self) -> str:
        return f"{self.id} ({self.op})"


@dataclass(frozen=True)
class Knob:
    """Something about an implementation that makes it faster or slower on a shape.

    ``values`` are what it can be set to, first what it is unless it was tuned. None of them changes
    a result in any bit: autotuning checks that, and refuses the knob otherwise.
    """

    name: str
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise PluginError(f"the knob {self.name!r} needs a value it has until it is tuned")


@dataclass(frozen=True)
class Kernel:
    """A kernel with abilities beside being called, as :meth:`OpBuilder.load` may return.

    ``run``      what a plain kernel is: called with the arguments of the op's schema
    ``forward``  a gradient of its own: called with the same arguments where autograd records.
                 Returns the same result or results, bit for bit; the tensors to keep beside the
                 arguments, which may be results; and ``backward(grad, needs, *args, kept=...)``,
                 which is called as the contract's is, with those tensors, and returns one gradient
                 or None per argument. None in its place: the contract's serves this call
    ``backward`` a gradient of its own that is made of the arguments alone: called as the
                 contract's is, ``(grad, needs, *args)``; or NotImplemented, and the contract's
                 serves
    ``into``     writes the result to a place: called with the op's tensors and ``out``, which has
                 the result's shape and rows at equal distances, in the dtype that is asked for

    A kernel has one of the two gradients at most. It serves eager ``backward()`` and
    ``torch.autograd.grad``. Where it is itself recorded (``create_graph``), transformed or traced,
    the contract's serves, so both must agree.
    ``backward`` holds no tensor itself: those it is given autograd has kept, and has freed them,
    let hooks move them and noticed if they were changed in place.
    Which arguments want a gradient ``forward`` sees by their ``requires_grad``; of the contract's
    ``unread`` ones ``backward`` gets stand-ins.
    """

    run: Callable[..., Any]
    forward: Callable[..., tuple[Any, Sequence[torch.Tensor], Callable[..., Any] | None]] | None = (
        None
    )
    into: Callable[..., Any] | None = None
    backward: Callable[..., tuple[torch.Tensor | None, ...]] | None = None

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


Shapes = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True)
class Request:
    """What an op is asked to serve: metadata only, never values.

    ``options`` holds by name the values of the contract's ``options``, and of the tensors in its
    ``presence`` whether they are there: ``{"window": None, "mask": True}``; and its ``sizes``,
    None where they are unknown: ``{"head_size": 64}``.
    ``shapes`` and ``strides`` are those of the tensor arguments in order (None for an absent
    one), or empty where they are unknown, as under ``torch.compile``.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    grad: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    shapes: Shapes = ()
    strides: Shapes = ()

    def __str__(self) -> str:
        given = [f"{key}={value}" for key, value in self.options.items() if value is not None]
        shapes = [list(shape) for shape in self.shapes if shape is not None]
        parts = [str(self.device), str(self.dtype).removeprefix("torch."), *given]
        parts += [f"shapes={shapes}"] if shapes else []
        return f"{self.op}({', '.join(parts)}{', recording gradients' if self.grad else ''})"


class OpBuilder:
    """A family of ops for one device. A complete one::

        class LinearBuilder(accel.OpBuilder):
            device_type = "toy"
            impls = (Impl("linear", "accel_toy.plain", frozenset({torch.float32}), priority=50),)

            def load(self, impl):
                return kernels.linear           # called with the arguments of the op's schema

    The class name says the family. The shapes and dtypes of a kernel's
    arguments have been checked; it raises where their devices differ.
    """

    device_type: str = ""
    impls: tuple[Impl, ...] = ()

    def reasons(self, impl: Impl, request: Request) -> list[Refusal]:
        """Why ``impl`` cannot serve ``request``; empty if it can.

        Judges by metadata and by what is installed. Must not build, run kernels or depend on
        environment switches. Device, dtype and gradient are checked before this is asked.
        """
        return []

    def load(self, impl: Impl) -> Callable[..., Any]:
        """The kernel, taking the arguments of the op's schema in order. May build it first.

        It can do more than be called if it is a :class:`Kernel`.
        """
        raise NotImplementedError(f"{type(self).__name__} lists {impl} but cannot load it")

    def knobs(self, impl: Impl) -> tuple[Knob, ...]:
        """What autotuning may turn about ``impl``; nothing by default."""
        return ()

    def turn(
        self, impl: Impl, dtype: torch.dtype, shapes: Shapes, settings: Mapping[str, int]
    ) -> None:
        """From now on ``impl`` runs with these values of its :meth:`knobs`, by name, where its
        tensors have this dtype and these shapes."""
        raise NotImplementedError(f"{type(self).__name__} lists {impl} but cannot turn its knobs")

    def peers(self) -> Sequence[Peer]:
        """Other libraries on this device that ``accel bench`` holds implementations beside, those
        that may not be installed too; nothing by default."""
        return ()

    def needs_build(self) -> bool:
        """True if :meth:`load` would have to compile something first."""
        return False

    def build(self) -> None:
        """Compile ahead of time what :meth:`load` would compile; nothing by default."""

    @classmethod
    def family(cls) -> str:
        """The family's name, one of :data:`FAMILIES`: the class's own or a base's."""
        for base in cls.__mro__:
            if base.__name__ in FAMILIES:
                return base.__name__
        raise PluginError(
            f"an op builder's class is named after its family, one of {', '.join(FAMILIES)}; "
            f"found {cls.__name__}"
        )

    @classmethod
    def check_definition(cls) -> None:
        """Raise PluginError unless the class attributes are of the right form."""
        from accel.contracts import CONTRACTS

        cls.family()
        if not isinstance(cls.device_type, str) or not cls.device_type:
            raise PluginError(f"{cls.__name__}.device_type must name a torch device type")
        _check_impls(cls.__name__, cls.impls, CONTRACTS)


def _check_impls(owner: str, impls: Iterable[object], contracts: Mapping[str, Any]) -> None:
    seen = set()
    for impl in impls:
        if not isinstance(impl, Impl):
            raise PluginError(f"{owner}.impls must hold accel.Impl objects, not {impl!r:.120}")
        if impl.op not in contracts:
            raise PluginError(f"{owner} implements {impl.op!r}, which is no op of this accel")
        if not _ID.fullmatch(impl.id):
            raise PluginError(f'{owner}: an id has the form "package.kind", not {impl.id!r}')
        if (impl.op, impl.id) in seen:
            raise PluginError(f"{owner} lists {impl} twice")
        if not impl.dtypes or not all(isinstance(d, torch.dtype) for d in impl.dtypes):
            raise PluginError(f"{owner}: {impl} must list torch dtypes, not {impl.dtypes!r:.120}")
        seen.add((impl.op, impl.id))
