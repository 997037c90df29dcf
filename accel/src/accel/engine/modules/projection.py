"""Linear projections: torch's, transformers' Conv1D (weight ``[in, out]``), and PEFT's LoRA."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from accel import ops
from accel.contracts.activation import activate
from accel.contracts.checks import WIDE
from accel.engine.call import ACTIVE, current
from accel.engine.forward import Forward, installed
from accel.errors import UnsupportedCapability, close_matches
from accel.layers.hooks import has_hooks


class Linear(Forward):
    """``x @ weight.T + bias``. ``transposed``: the module keeps the weight as ``[in, out]``."""

    def __init__(self, module: nn.Module, transposed: bool = False) -> None:
        super().__init__(module)
        self.transposed = transposed

    def __call__(self, x: Tensor, act: str | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, act=act)

    @property
    def weight(self) -> Tensor:
        """``[out, in]``, a view where the module keeps it the other way."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.t() if self.transposed else weight

    @property
    def bias(self) -> Tensor | None:
        return self.module.bias  # type: ignore[return-value]


class LoraLinear(Forward):
    """A linear projection with low-rank adapters beside it, never merged into it (PEFT's layer)."""

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or any(value is not None for value in kwargs.values()):
            raise UnsupportedCapability(
                f"a LoRA layer takes nothing but its input; found {sorted(kwargs) or 'more'}; one "
                "adapter serves the whole batch"
            )
        call = current()
        module: Any = self.module
        adapter = self._adapter(call.adapter)
        if adapter is None:
            return module.base_layer(x)  # type: ignore[no-any-return]
        down, up = module.lora_A[adapter], module.lora_B[adapter]
        dropout, scale = module.lora_dropout[adapter], module.scaling[adapter]
        drops = call.dropout and dropout.training and getattr(dropout, "p", 0.0) > 0
        if drops or up.bias is not None or any(map(has_hooks, (module.base_layer, down, up))):
            low = down((dropout(x) if drops else x).to(down.weight.dtype))
            return module.base_layer(x) + (up(low) * scale).to(x.dtype)  # type: ignore[no-any-return]
        base = installed(module.base_layer)
        assert isinstance(base, Linear)
        a, b = down.weight.to(x.dtype), up.weight.to(x.dtype)
        return ops.lora_linear(x, base.weight, a, b, base.bias, scale=scale)

    def stands_alone(self) -> bool:
        """True if no adapter acts in this call."""
        return self._adapter(current().adapter) is None

    def _adapter(self, wanted: str | None) -> str | None:
        """The adapter that acts here; None if the base layer stands alone."""
        module: Any = self.module
        if module.merged:
            raise UnsupportedCapability(
                "a LoRA adapter is merged into its weight; unmerge it (`model.unmerge_adapter()`): "
                "the engine adds adapters on the fly, so that nothing has to be undone"
            )
        if wanted is None or (wanted == ACTIVE and module.disable_adapters):
            return None
        if wanted != ACTIVE:
            return wanted if wanted in module.lora_A else None
        acting = [name for name in module.active_adapters if name in module.lora_A]
        if len(acting) > 1:
            raise UnsupportedCapability(
                f"the LoRA adapters {acting} are active at once; one at a time is served so far"
            )
        return acting[0] if acting else None


def require_adapter(model: nn.Module, wanted: str | None) -> None:
    """ValueError, with those there are, unless some layer has the adapter."""
    layers = [m for m in model.modules() if isinstance(installed(m), LoraLinear)]
    known = {name for layer in layers for name in layer.lora_A}  # type: ignore[union-attr]
    if wanted is not None and wanted != ACTIVE and wanted not in known:
        raise ValueError(f"no LoRA adapter {wanted!r}; {close_matches(wanted, known)}")


class Activation(Forward):
    """An activation on its own: fp32, rounded once, an element alike wherever it stands."""

    def __init__(self, module: nn.Module, act: str) -> None:
        super().__init__(module)
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        return activate(x.to(WIDE[x.dtype]), self.act).to(x.dtype)


def fusable(module: nn.Module) -> str | None:
    """The activation's name, if no hook expects the module to be called."""
    found = installed(module)
    return found.act if isinstance(found, Activation) and not has_hooks(module) else None


def plain(module: nn.Module) -> Linear | None:
    """The projection's forward, if its parent may read its weight: no hooks, and no adapter that
    acts in this call; without one a LoRA layer has its base layer's results, bit for bit."""
    if has_hooks(module):
        return None
    found = installed(module)
    if isinstance(found, LoraLinear):
        return plain(found.module.base_layer) if found.stands_alone() else None  # type: ignore[arg-type]
    return found if isinstance(found, Linear) else None


def activated(x: Tensor, module: nn.Module, act: nn.Module) -> Tensor:
    """``act(module(x))``, in one op where nothing watches them."""
    linear, name = plain(module), fusable(act)
    return linear(x, name) if linear and name else act(module(x))


def gated(x: Tensor, gate: nn.Module, up: nn.Module, act: nn.Module) -> Tensor:
    """``act(gate(x)) * up(x)``, in one op where nothing watches them."""
    first, second, name = plain(gate), plain(up), fusable(act)
    if first and second and name and not first.transposed and not second.transposed:
        return ops.gated_linear(x, first.weight, second.weight, first.bias, second.bias, act=name)
    return act(gate(x)) * up(x)  # type: ignore[no-any-return]
