"""Company: processes that hold parts of one model's parameters run its forwards together.

What gathers a layer's parameters when it runs waits for all of them. A process whose answers have
ended, or which makes fewer waves, must go on as long as another does (transformers calls it
``synced_gpus``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Company:
    """Those that a model is sharded over; of a model that is not, there is nobody.

    ``came``  others run the forward that this process has begun, and gather with it
    """

    def __init__(self, model: nn.Module) -> None:
        self._groups = list(_groups(model))
        self._device = next(model.parameters()).device
        self.came = False

    def comes(self) -> None:
        """This process is about to run a forward: all others must know, and run one too."""
        self._others_come(1)
        self.came = bool(self._groups)

    def keep(self, forward: Callable[[], object]) -> None:
        """This process has run its own: run one for each of the others', until none comes."""
        while self._groups and self._others_come(0):
            forward()

    def _others_come(self, mine: int) -> bool:
        if not self._groups:
            return False
        flag = torch.tensor(mine, device=self._device)
        for group in self._groups:  # one after the other they make the maximum over all
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
        return not mine and bool(flag)


def _groups(model: nn.Module) -> Iterator[Any]:
    """A group for each dimension of the mesh that parameters are spread over."""
    for parameter in model.parameters():
        found: Any = parameter
        if hasattr(found, "device_mesh"):  # of fully_shard: a DTensor
            mesh = found.device_mesh
            yield from (mesh.get_group(dimension) for dimension in range(mesh.ndim))
            return
        if hasattr(found, "ds_id"):  # of DeepSpeed's ZeRO-3
            yield getattr(found, "ds_process_group", None)
            return
