"""TiledMLP: an MLP over tiles of tokens, whose intermediate never exists for all of them.

The whole MLP is one op with its weights as arguments. So each weight has one gradient however many
tiles there are: a hook on it fires once, and data parallelism and sharding reduce it once, also
where ranks have sequences of different lengths.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import require_act
from accel.contracts.tiled_mlp import require_tile_rows
from accel.errors import OpArgumentError
from accel.layers.base import OpLayer
from accel.layers.hooks import has_hooks

# What other modules call the activation they hold.
_HOLDERS = ("act_fn", "activation_fn", "act")
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

# Classes of torch and of transformers, by name: what each computes.
_CLASSES = {
    "ReLU": "relu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
}
_FUNCTIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.silu: "silu", F.gelu: "gelu"}


class TiledMLP(OpLayer):
    """``down_proj(act(gate_proj(x)) * up_proj(x))``, or ``down_proj(act(up_proj(x)))`` if not
    ``gated``, ``tile_rows`` tokens at a time in the forward and again in the backward.

    The parameters are those of the children ``gate_proj``, ``up_proj`` and ``down_proj``, made and
    named as torch.nn.Linear's, so that state_dicts are those of the plain MLP. The children hold
    them and are not called: hooks on a child are refused when the layer runs, and it is the layer
    that is sharded, as one unit.

    :param act: ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``
    :raises OpArgumentError: sizes or ``tile_rows`` below 1, an unknown ``act``
    """

    uses = ("tiled_mlp",)

    gate_proj: nn.Linear | None
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        act: str = "silu",
        gated: bool = True,
        bias: bool = False,
        tile_rows: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("intermediate_size", intermediate_size)):
            if size < 1:
                raise OpArgumentError(f"TiledMLP: {name} must be at least 1; found {size}")
        require_act("TiledMLP", act, optional=False)
        require_tile_rows("TiledMLP", tile_rows)
        self.act, self.tile_rows = act, tile_rows

        def linear(columns: int, rows: int) -> nn.Linear:
            return nn.Linear(columns, rows, bias=bias, device=device, dtype=dtype)

        self.gate_proj = linear(hidden_size, intermediate_size) if gated else None
        self.up_proj = linear(hidden_size, intermediate_size)
        self.down_proj = linear(intermediate_size, hidden_size)

    @classmethod
    def from_mlp(cls, module: nn.Module, *, tile_rows: int = 1024) -> TiledMLP:
        """A layer that has the projections of ``module`` itself, not copies of them.

        ``module`` has an ``up_proj`` and a ``down_proj`` of class torch.nn.Linear, may have a
        ``gate_proj``, and holds its activation, of torch or of transformers, as ``act_fn``,
        ``activation_fn`` or ``act``.

        :raises OpArgumentError: another module, with what is in the way
        """
        up, down = (_projection(module, name) for name in ("up_proj", "down_proj"))
        gate = _gate(module)
        others = {name for name, _ in module.named_children()} - {*_PROJECTIONS, *_HOLDERS}
        if others:
            raise OpArgumentError(
                f"TiledMLP: {type(module).__name__} may have the children "
                f"{', '.join(_PROJECTIONS)} and an activation; found {', '.join(sorted(others))} "
                "as well"
            )
        layer = cls(
            up.in_features, up.out_features, act=_activation(module), gated=gate is not None,
            tile_rows=tile_rows, device="meta",
        )  # fmt: skip
        layer.gate_proj, layer.up_proj, layer.down_proj = gate, up, down
        return layer.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden_size]`` of ``[..., hidden_size]``; all leading dimensions count rows."""
        up, down = _projection(self, "up_proj"), _projection(self, "down_proj")
        gate = _gate(self)
        return ops.tiled_mlp(
            x,
            up.weight,
            down.weight,
            None if gate is None else gate.weight,
            up.bias,
            down.bias,
            None if gate is None else gate.bias,
            act=self.act,
            tile_rows=self.tile_rows,
        )

    def extra_repr(self) -> str:
        return f"act={self.act!r}, tile_rows={self.tile_rows}"


def _gate(module: nn.Module) -> nn.Linear | None:
    return None if getattr(module, "gate_proj", None) is None else _projection(module, "gate_proj")


def _projection(module: nn.Module, name: str) -> nn.Linear:
    """A child that, if it were called, would do what its weight and bias say."""
    projection = getattr(module, name, None)
    if not isinstance(projection, nn.Linear) or type(projection).forward is not nn.Linear.forward:
        raise OpArgumentError(
            f"TiledMLP: {name} must be a torch.nn.Linear, whose weight is read without calling it; "
            f"found {type(projection).__name__}"
        )
    if has_hooks(projection):
        raise OpArgumentError(
            f"TiledMLP: {name} has hooks, which would not run, since the MLP is one op; "
            "hook, wrap or shard the TiledMLP instead"
        )
    return projection


def _activation(module: nn.Module) -> str:
    """Our name of the activation that ``module`` holds."""
    held = next((getattr(module, name) for name in _HOLDERS if hasattr(module, name)), None)
    if isinstance(held, nn.GELU):
        return "gelu_tanh" if held.approximate == "tanh" else "gelu"
    known = _CLASSES.get(type(held).__name__) or _FUNCTIONS.get(held)
    if known is None:
        what = "none" if held is None else getattr(held, "__name__", type(held).__name__)
        raise OpArgumentError(
            f"TiledMLP: the activation of {type(module).__name__}, as {', '.join(_HOLDERS)}, must "
            f"be GELU or one of {', '.join(sorted(_CLASSES))}; found {what}"
        )
    return known
