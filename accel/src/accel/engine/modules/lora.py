"""Linear projections with low-rank adapters: PEFT's layers, and those of DeepSpeed-Chat's kind.

A weight is never written to. What adapters add is computed beside it, or, where a call has
:class:`FusedWeights`, is in a second weight that the call's rollout reads in the first one's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import WIDE
from accel.engine.call import ACTIVE, current
from accel.engine.forward import installed
from accel.engine.modules.projection import FEWEST, Linear, Projection, part, plain, width
from accel.errors import UnsupportedCapability, UnsupportedModelError, close_matches
from accel.layers.hooks import has_hooks


@dataclass(frozen=True, eq=False)
class Adapter:
    """Adds ``scale * up @ down`` to a weight ``[N, K]``: down ``[R, K]``, up ``[N, R]``.

    ``parts``    the modules that hold the two, if modules do
    ``drops``    its dropout acts in this call
    ``watched``  the parts must be called: a hook or a bias of theirs is to be heeded
    """

    name: str
    down: Tensor
    up: Tensor
    scale: float
    dropout: nn.Module
    parts: tuple[nn.Module, ...] = ()
    drops: bool = False
    watched: bool = False

    def narrowed(self, rows: slice | None) -> Adapter:
        """What it adds to these rows of the weight."""
        return self if rows is None else replace(self, up=self.up[rows])

    def share(self, x: Tensor) -> Tensor:
        """What it adds to the projection of x, by itself."""
        given = self.dropout(x) if self.drops else x
        if self.parts:
            down, up = self.parts
            return (up(down(given.to(self.down.dtype))) * self.scale).to(x.dtype)  # type: ignore[no-any-return]
        low = ops.linear(given, self.down.to(x.dtype), out_dtype=WIDE[x.dtype])
        return (ops.linear(low, self.up.to(low.dtype)) * self.scale).to(x.dtype)


class LoraLinear(Projection):
    """A projection with adapters beside it. What acts is the call's to say, not the module's."""

    def __call__(self, x: Tensor, *args: Any, rows: slice | None = None, **kwargs: Any) -> Tensor:
        if args or any(value is not None for value in kwargs.values()):
            raise UnsupportedCapability(
                f"a LoRA layer takes nothing but its input; found {sorted(kwargs) or 'more'}; one "
                "adapter serves the whole batch"
            )
        adapters = self.acting()
        if not adapters:
            return self._alone(x, rows)
        if any(adapter.drops or adapter.watched for adapter in adapters):
            whole = sum((adapter.share(x) for adapter in adapters), start=self._alone(x))
            return whole if rows is None else whole[..., rows]
        base = self._base()
        assert base is not None  # nothing is watched
        fused = self._fused(base, adapters)
        if fused:
            return fused(x, rows=rows)
        return _beside(base.narrowed(rows), [a.narrowed(rows) for a in adapters], x)

    def bare(self) -> Linear | None:
        adapters, base = self.acting(), self._base()
        if not adapters or base is None:
            return base
        return None if any(a.watched for a in adapters) else self._fused(base, adapters)

    def acting(self) -> list[Adapter]:
        """The adapters that act in this call."""
        raise NotImplementedError(f"{type(self).__name__} must say which adapters act")

    def names(self) -> Iterable[str]:
        """The names its adapters can be asked for by."""
        return ()

    def _base(self) -> Linear | None:
        """The projection without adapters, if its weight may be read here."""
        raise NotImplementedError(f"{type(self).__name__} must say what it adapts")

    def _alone(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """What it projects to without adapters, or those output features of it."""
        raise NotImplementedError(f"{type(self).__name__} must say what it adapts")

    def _fused(self, base: Linear, adapters: Sequence[Adapter]) -> FusedLinear | None:
        kept = current().fused
        return None if kept is None else kept.of(self.module, base, adapters)


class PeftLora(LoraLinear):
    """PEFT's layer, which holds its projection as a module and adapters by name."""

    def names(self) -> Iterable[str]:
        return self.module.lora_A  # type: ignore[return-value]

    def acting(self) -> list[Adapter]:
        module, wanted = self.module, current().adapter
        if module.merged:
            raise UnsupportedCapability(
                "a LoRA adapter is merged into its weight; unmerge it (`model.unmerge_adapter()`): "
                "the engine adds adapters on the fly, so that nothing has to be undone"
            )
        if wanted is None or (wanted == ACTIVE and module.disable_adapters):
            return []
        named: Any = module.active_adapters if wanted == ACTIVE else (wanted,)
        return [self._adapter(name) for name in named if name in self.names()]

    def _adapter(self, name: str) -> Adapter:
        module: Any = self.module
        down, up = module.lora_A[name], module.lora_B[name]
        if installed(down) is None or installed(up) is None:
            raise UnsupportedModelError(
                f"the LoRA adapter {name!r} came after the model was hybridized; call "
                "accel.hybridize(model) again, which looks at what it is"
            )
        watched = up.bias is not None or any(map(has_hooks, (module.base_layer, down, up)))
        scale, dropout = module.scaling[name], module.lora_dropout[name]
        return Adapter(
            name, down.weight, up.weight, scale, dropout, (down, up), _drops(dropout), watched
        )

    def _base(self) -> Linear | None:
        return plain(self.module.base_layer)  # type: ignore[arg-type]

    def _alone(self, x: Tensor, rows: slice | None = None) -> Tensor:
        return part(self.module.base_layer, x, rows)  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        return width(self.module.base_layer)  # type: ignore[arg-type]


class ChatLora(LoraLinear):
    """A layer as DeepSpeed-Chat's ``LinearLayer_LoRA`` is made: its own ``weight`` and ``bias``,
    ``lora_right_weight`` ``[in, r]``, ``lora_left_weight`` ``[r, out]``, ``lora_scaling`` (by the
    rank already), ``lora_dropout``; one adapter without a name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.own = Linear(module, least_bits=FEWEST)

    def acting(self) -> list[Adapter]:
        module: Any = self.module
        if getattr(module, "fuse_lora", False):
            raise UnsupportedCapability(
                "a LoRA layer has added its adapter to its weight (fuse_lora is True); take it out "
                "by the layer's unfuse_lora_weight(): the engine adds adapters on the fly"
            )
        if current().adapter != ACTIVE:
            return []
        dropout = getattr(module, "lora_dropout", None) or nn.Identity()
        down, up = module.lora_right_weight.t(), module.lora_left_weight.t()
        scale = float(module.lora_scaling)
        return [Adapter(ACTIVE, down, up, scale, dropout, drops=_drops(dropout))]

    def _base(self) -> Linear:
        return self.own

    def _alone(self, x: Tensor, rows: slice | None = None) -> Tensor:
        return self.own(x, rows=rows)

    @property
    def width(self) -> int:
        return self.own.width


def _drops(dropout: nn.Module) -> bool:
    return current().dropout and dropout.training and getattr(dropout, "p", 0.0) > 0


class FusedLinear(Linear):
    """A projection that reads another weight ``[N, K]`` than its module's."""

    def __init__(self, base: Linear, weight: Tensor) -> None:
        super().__init__(base.module, least_bits=base.least_bits)
        self._weight = weight

    @property
    def weight(self) -> Tensor:
        return self._weight


class FusedWeights:
    """Weights with adapters added to them, kept beside the model for rollouts.

    Each is ``W + scale * up @ down`` in fp32, rounded once to W's dtype, and is made when its layer
    first runs. They are not remade when a parameter changes: who keeps them says how long. The
    parameters are only read, so that dropping these restores everything.
    """

    def __init__(self) -> None:
        self.state = object()
        self._made: dict[tuple[nn.Module, tuple[str, ...]], FusedLinear] = {}

    def __deepcopy__(self, memo: object) -> FusedWeights:
        return FusedWeights()

    def __reduce__(self) -> tuple[type[FusedWeights], tuple[()]]:
        return FusedWeights, ()

    @property
    def bytes(self) -> int:
        """What they take."""
        weights = [linear.weight for linear in self._made.values()]
        return sum(weight.numel() * weight.element_size() for weight in weights)

    def clear(self) -> None:
        """Drop them; the next rollout makes others."""
        self._made.clear()
        self.state = object()  # others than before

    def of(self, layer: nn.Module, base: Linear, adapters: Sequence[Adapter]) -> FusedLinear:
        """The projection of a layer with these adapters."""
        key = (layer, tuple(adapter.name for adapter in adapters))
        if key not in self._made:
            self._made[key] = FusedLinear(base, _fuse(base.weight, adapters))
        return self._made[key]


@torch.no_grad()
def _fuse(weight: Tensor, adapters: Sequence[Adapter]) -> Tensor:
    found = weight.to(WIDE[weight.dtype], copy=True)
    for adapter in adapters:
        up, down = adapter.up.to(found.dtype), adapter.down.to(found.dtype)
        found.add_(ops.linear(up, down.t()), alpha=adapter.scale)
    return found.to(weight.dtype).contiguous()


def _beside(base: Linear, adapters: Sequence[Adapter], x: Tensor) -> Tensor:
    """Base and adapters in fp32, rounded once; one adapter in one op."""
    first, *others = adapters
    copied = current().quantized is not None
    wide = WIDE[x.dtype] if others or copied else None
    if copied:  # which the op for both does not read
        y, others = base(x, out_dtype=wide), [first, *others]
    else:
        down, up = first.down.to(x.dtype), first.up.to(x.dtype)
        y = ops.lora_linear(x, base.weight, down, up, base.bias, scale=first.scale, out_dtype=wide)
    for adapter in others:
        low = ops.linear(x, adapter.down.to(x.dtype), out_dtype=wide)
        y = y + adapter.scale * ops.linear(low, adapter.up.to(low.dtype))
    return y.to(x.dtype)


def require_adapter(model: nn.Module, wanted: str | None) -> None:
    """ValueError, with those there are, unless some layer has the adapter."""
    if wanted is None or wanted == ACTIVE:
        return
    layers = (installed(module) for module in model.modules())
    known = {name for layer in layers if isinstance(layer, LoraLinear) for name in layer.names()}
    if wanted not in known:
        raise ValueError(f"no LoRA adapter {wanted!r}; {close_matches(wanted, known)}")
