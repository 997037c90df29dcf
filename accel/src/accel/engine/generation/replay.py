"""TokenForward: the forward of one token for each sequence, replayed where that is possible.

A decode step is hundreds of operations, and the Python between them takes longer than narrow layers
do. Where the device has graphs the step is recorded once, and then replayed by one call: the same
operations on the same tensors, hence the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accel import selection
from accel.accelerator import Accelerator
from accel.engine.call import Call
from accel.errors import BackendError, UnsupportedCapability
from accel.host import reads
from accel.layers.hooks import has_global_hooks, has_hooks
from accel.ops.watching import torch_is_watched


class TokenForward:
    """``forward(token)``: int64 ``[B]``, each sequence's last, to what the head projects it to,
    which holds until the next call.

    Lives as long as a wave, in which sequences leave and none come: as many are the same ones.
    """

    def __init__(self, model: nn.Module, call: Call, accelerator: Accelerator | None) -> None:
        self._model = model
        self._call = call
        self._accelerator = accelerator
        self._ran: torch.Size | None = None  # the last tokens that were not recorded
        self._graph: Any = None
        self._token: Tensor | None = None
        self._projected: Tensor | None = None

    def __call__(self, token: Tensor) -> Tensor:
        if self._token is not None and self._token.shape == token.shape:
            return self._replayed(token)
        if self._accelerator is None or self._is_new(token, self._accelerator):
            # The first is not recorded: it may choose and compile what serves, and it tells whether
            # a kernel looks at values on the host, as eager torch's attention does.
            self._ran, seen = token.shape, reads()
            projected = self._run(token)
            if reads() != seen:
                self._accelerator = None
            return projected
        return self._recorded(token, self._accelerator)

    def _is_new(self, token: Tensor, accelerator: Accelerator) -> bool:
        """Whether something may have to be compiled or loaded for as many tokens, which a device
        does not do while it records. Where work runs as it is recorded, what is new may be."""
        return self._ran is None or (not accelerator.captures_run and self._ran != token.shape)

    def _run(self, token: Tensor) -> Tensor:
        return self._model(token[:, None], call=self._call)  # type: ignore[no-any-return]

    def _recorded(self, token: Tensor, accelerator: Accelerator) -> Tensor:
        self._token, graph = token.clone(), accelerator.create_graph()
        with accelerator.capture_to_graph(graph):
            self._projected = self._run(self._token)
        if not accelerator.captures_run:
            accelerator.replay_graph(graph)
        self._graph = graph
        return self._projected

    def _replayed(self, token: Tensor) -> Tensor:
        assert self._accelerator is not None
        assert self._token is not None
        assert self._projected is not None
        self._token.copy_(token)
        self._accelerator.replay_graph(self._graph)
        return self._projected


def graphs_for(model: nn.Module, device: torch.device, wanted: bool | None) -> Accelerator | None:
    """The accelerator whose graphs replay a step of ``model``; None if it has none, if they are not
    ``wanted``, or if somebody watches: a replay calls no hook and no module.

    UnsupportedCapability where they are wanted (True) and the device has none.
    """
    if wanted is False:
        return None
    try:
        accelerator = selection.get_accelerator()
    except BackendError:
        if wanted:
            raise
        return None
    if accelerator.device_type != device.type:
        if wanted:
            raise UnsupportedCapability(
                f"enable_cuda_graph: the model is on {device}, and graphs are those of the current "
                f"accelerator, {accelerator.name!r}; choose one for {device.type}, or leave it None"
            )
        return None
    if device.index not in (None, accelerator.current_device()):
        if wanted:
            raise UnsupportedCapability(
                f"enable_cuda_graph: the model is on {device}, and graphs are recorded on the "
                f"current device, number {accelerator.current_device()}; call "
                f"accel.get_accelerator().set_device({device.index}) before, or leave it None"
            )
        return None
    if wanted:
        accelerator.require("graphs")
    if not accelerator.supports("graphs") or torch_is_watched() or has_global_hooks():
        return None
    return None if any(map(has_hooks, model.modules())) else accelerator
