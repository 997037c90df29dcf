"""Linear: torch's linear layer over the registered op, with an activation if wanted."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import require_act
from accel.errors import OpArgumentError
from accel.layers.base import OpLayer


class Linear(OpLayer, nn.Linear):
    """``act(x @ weight.T + bias)`` in fp32, rounded once, by whatever serves ``linear``.

    An ``nn.Linear`` in all else: names, initialisation, ``state_dict``, and what looks for one.
    x ``[..., in_features]``, returns a fresh tensor ``[..., out_features]``. ``act``: ``"relu"``,
    ``"gelu"`` (erf), ``"gelu_tanh"``, ``"silu"`` or None. OpArgumentError where x does not fit.
    """

    uses: ClassVar[tuple[str, ...]] = ("linear",)
    takes_partial: ClassVar[bool] = True  # of a subclass whose forward does not: False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        act: str | None = None,
    ) -> None:
        require_act(type(self).__name__, act)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.act = act

    def forward(self, x: Tensor, partial: Tensor | None = None) -> Tensor:
        """With ``partial`` ``[..., out_features]``, what other tiles of one product have summed,
        the sum of both; an activation has no meaning then and is refused."""
        if partial is None:
            return ops.linear(x, self.weight, self.bias, act=self.act)
        if self.act is not None:
            raise OpArgumentError(
                f"{type(self).__name__}: a partial sum cannot be added under act={self.act!r}; "
                "make the layer without it and activate the sum"
            )
        return ops.tiled_linear(x, self.weight, self.bias, partial)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", act={self.act!r}" if self.act else "")

    @classmethod
    def from_linear(cls, module: nn.Linear, **options: Any) -> Linear:
        """This layer around the Parameters of ``module``: shared, not copied. ``options`` are the
        constructor's; an ``act`` of ``module`` stays."""
        require_linear(cls, module)
        if getattr(module, "act", None) is not None:
            options.setdefault("act", module.act)
        made = cls(
            module.in_features, module.out_features, module.bias is not None, device="meta",
            **options,
        )  # fmt: skip
        _share_parameters(module, made)
        return made

    def to_linear(self) -> nn.Linear:
        """An ``nn.Linear`` around this layer's Parameters; refused where there is an ``act``."""
        if self.act is not None:
            raise OpArgumentError(
                f"{type(self).__name__}: nn.Linear has no act, and this layer has {self.act!r}"
            )
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        _share_parameters(self, made)
        return made


def require_linear(cls: type, module: object) -> None:
    """TypeError unless ``module`` is what a layer of class ``cls`` can be made from."""
    if not isinstance(module, nn.Linear):
        found = type(module).__name__
        raise TypeError(f"{cls.__name__}: from_linear takes a torch.nn.Linear, not {found}")


def _share_parameters(source: nn.Linear, target: nn.Linear) -> None:
    """Give ``target`` the Parameters and the mode of ``source``."""
    for name in ("weight", "bias"):
        found = getattr(source, name)
        if found is not None and not isinstance(found, nn.Parameter):
            raise OpArgumentError(
                f"{type(source).__name__}: its {name} must be a Parameter to be shared; found "
                f"{type(found).__name__} (a parametrized module makes it anew at every use: "
                "remove_parametrizations first)"
            )
        setattr(target, name, found)
    target.train(source.training)
