"""Call: what all parts of the model must know of the forward they are part of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from accel import ops
from accel import registry as _registry
from accel.engine.cache import KVCache
from accel.engine.sequences import Sequences
from accel.errors import IgnoredWarning, UnsupportedModelError

if TYPE_CHECKING:
    from accel.engine.modules.lora import FusedWeights
    from accel.engine.modules.quantized import QuantizedWeights
    from accel.engine.parallel.share import Share

ACTIVE = "active"


@dataclass(frozen=True, eq=False)
class Call:
    """One forward of the model.

    ``exact``      only shape-invariant implementations may serve
    ``dropout``    whether dropout acts where a module is in training mode
    ``adapter``    LoRA adapter by name, ``"active"`` for the one that is, None for none
    ``cache``      keeps and gives the keys and values of earlier tokens
    ``fused``      weights with the adapters added to them, which stand for both
    ``quantized``  copies of weights, which are read in their place
    ``share``      what of each product this process computes, where several do it together
    """

    exact: bool = True
    dropout: bool = True
    adapter: str | None = ACTIVE
    cache: KVCache | None = None
    fused: FusedWeights | None = None
    quantized: QuantizedWeights | None = None
    share: Share | None = None
    gives: ClassVar[type] = object

    def ask(self, model: nn.Module, *args: Any, **inputs: Any) -> Any:
        """:meth:`result` of the model's forward, which may be wrapped in another.

        UnsupportedModelError if that other did not hand the call on to the engine's.
        """
        found = model(*args, call=self, **inputs)
        if not isinstance(found, self.gives):
            raise UnsupportedModelError(
                f"the model's forward was replaced since accel.hybridize by {model.forward!r:.90}, "
                f"which gave a {type(found).__name__} where the engine's gives a "
                f"{self.gives.__name__}: let it call the forward it found with all it is given, or "
                "take it away and call accel.hybridize(model) again"
            )
        return found

    def result(self, head: nn.Module, hidden: Tensor, sequences: Sequences) -> Any:
        """What the model returns, from its last hidden state ``[B, S, H]``."""
        raise NotImplementedError(f"{type(self).__name__} must say what the model returns")

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Where parts of the model run for this call: also in a recomputation during backward."""
        outer = _current.get()
        # A trainer's wrapper around the model's forward may have entered autocast since.
        if outer is self and not torch.is_autocast_enabled(device.type):
            yield
            return
        _say_if_autocast(device.type)
        try:
            _current.set(self)
            # None of the engine's dtypes is autocast's to choose: what generates must be what
            # trains, and generate runs outside the trainer's autocast.
            with (
                torch.autocast(device.type, enabled=False),
                ops.use(exact=self.exact, strict=self.exact),
            ):
                yield
        finally:
            _current.set(outer)


# Outside the engine's forwards, as when a user calls a layer's part by itself.
_OUTSIDE = Call()
_current: ContextVar[Call] = ContextVar("accel_engine_call", default=_OUTSIDE)


def current() -> Call:
    """The call this code runs for."""
    return _current.get()


def _say_if_autocast(device_type: str) -> None:
    if torch.is_autocast_enabled(device_type):
        _registry.registry().warn_once(
            ("engine", "autocast"),
            "torch.autocast is ignored in the hybrid engine's forwards, which compute in the dtype "
            "of the model's parameters so that generation is bitwise what trains; load the model "
            "in the dtype you mean, and leave autocast",
            IgnoredWarning,
        )
