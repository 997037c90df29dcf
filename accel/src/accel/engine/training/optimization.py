"""From losses to new parameters: gradients added up and clipped, then a step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from accel.engine.config import HybridEngineConfig
from accel.engine.sharding import part
from accel.engine.training.masters import MasterWeights, local
from accel.errors import NonFiniteError


class Optimization:
    """What a training has besides its model: the optimizer, its schedule, and how far it is.

    ``global_steps``      updates of the parameters so far
    ``global_grad_norm``  total norm of the last update's gradients, before they were clipped
    ``masters``           master weights, where the configuration asks for them
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        lr_scheduler: Any,
        config: HybridEngineConfig,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.config = config
        self.masters = MasterWeights()
        self.global_steps = 0
        self.global_grad_norm: float | None = None
        self._steps_waiting = 0  # since the last update

    def require_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise RuntimeError("this engine was made without an optimizer; pass one to step")
        return self.optimizer

    def parameters(self) -> list[Tensor]:
        """Those the optimizer holds."""
        groups = self.require_optimizer().param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def at_boundary(self) -> bool:
        """True if the next step updates the parameters."""
        return self._steps_waiting + 1 >= self.config.gradient_accumulation_steps

    def under_way(self) -> bool:
        """True if gradients, or steps before the boundary, wait for an update."""
        if self.optimizer is None:
            return False
        held = self.parameters()
        waiting = any(t.grad is not None for p in held for t in (p, self.masters[p]))
        return waiting or self._steps_waiting > 0

    def backward(self, loss: Tensor) -> None:
        if not torch.isfinite(loss.detach()).all():
            raise NonFiniteError(
                f"the loss is {loss.detach().tolist()}; no gradient was added. Leave this batch "
                "out, or look for what makes it so with torch.autograd.set_detect_anomaly(True)"
            )
        steps = self.config.gradient_accumulation_steps
        (loss / steps if steps > 1 else loss).backward()
        # Gradients that DDP is yet to add up over ranks, under its no_sync, stay where it looks.
        if self.config.master_weights and getattr(self.model, "require_backward_grad_sync", True):
            self.masters.collect(self.parameters())

    def step(self, lr_kwargs: Mapping[str, Any]) -> None:
        optimizer = self.require_optimizer()
        if not self.at_boundary():
            self._steps_waiting += 1
            return
        if self.config.master_weights:
            self.masters.collect(self.parameters())
        self._clip()
        self.masters.reread()
        with self.masters.exchange(optimizer):
            optimizer.step()
        self.masters.publish()
        part(self.model)  # what is gathered still, as by a forward without gradient, is older
        if self.lr_scheduler is not None:
            self.lr_scheduler.step(**lr_kwargs)
        self.zero_grad()
        self.global_steps += 1

    def zero_grad(self) -> None:
        """No gradients, and accumulation begins again."""
        self.require_optimizer().zero_grad(set_to_none=True)
        self.masters.zero_grad()
        self._steps_waiting = 0

    def _clip(self) -> None:
        """Scale the gradients down to the configuration's norm; refuse them if they have none."""
        stepped = [self.masters[parameter] for parameter in self.parameters()]
        norm = get_total_norm([t.grad for t in stepped if t.grad is not None])
        found = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(found):
            where = self._not_finite()
            self.zero_grad()
            raise NonFiniteError(
                f"the gradients' total norm is {found}{where}; they were dropped, and no parameter "
                "was changed. Going on leaves these batches out"
            )
        self.global_grad_norm = found
        if self.config.gradient_clipping is not None:
            clip_grads_with_norm_(stepped, self.config.gradient_clipping, norm)

    def _not_finite(self) -> str:
        """Whose gradients are not finite; on this rank, where they are sharded."""
        held = set(self.parameters())
        names = []
        for name, parameter in self.model.named_parameters():
            grad = self.masters[parameter].grad if parameter in held else None
            if grad is not None and not torch.isfinite(local(grad)).all():
                names.append(name)
        if not names:
            return ""
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f": not finite in {', '.join(names[:3])}{more}"
