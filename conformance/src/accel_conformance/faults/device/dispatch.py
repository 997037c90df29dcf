"""How torch's operations on the host reach the simulated device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from accel_conformance.faults.device import runtime


@contextmanager
def present() -> Iterator[None]:
    """The host's operations are the device's in the body, which starts with nothing queued."""
    runtime.restart()
    with _Dispatch():
        yield


class _Dispatch(TorchDispatchMode):
    """Sends operations to the current stream and counts the memory they make."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        call = functools.partial(func, *args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and not (kwargs or {}).get("generator"):
            with _drawing():
                results = call()
        elif runtime.current_stream() is runtime.default_stream() or _is_view(func):
            results = call()
        else:
            results = _later(func, call)
        for result in pytree.tree_leaves(results):
            if isinstance(result, Tensor) and not result.is_meta:
                runtime.count(result)
        return results


def _is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns if result.alias_info]
    return any(not alias.is_write for alias in aliases)


def _later(func: Any, call: functools.partial[Any]) -> Any:
    """What ``call`` will give, queued: an argument that is written to, or new memory."""
    leaves, spec = pytree.tree_flatten((call.args, call.keywords))
    images = [_on_meta(leaf) for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(images, spec)
    owners = {id(image): leaf for image, leaf in zip(images, leaves)}
    promised = pytree.tree_map_only(
        Tensor, lambda one: owners[id(one)] if id(one) in owners else _nan(one),
        func(*args, **kwargs),
    )  # fmt: skip

    def work() -> None:
        for kept, made in zip(pytree.tree_leaves(promised), pytree.tree_leaves(call())):
            if made is not kept:
                kept.copy_(made)

    runtime.current_stream().submit(work)
    return promised


def _on_meta(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def _nan(image: Tensor) -> Tensor:
    """Host memory like ``image``, all of its bits set."""
    made = torch.empty_strided(image.size(), image.stride(), dtype=image.dtype)
    made.untyped_storage().fill_(0xFF)
    return made


@contextmanager
def _drawing() -> Iterator[None]:
    """Torch's default generator continues where the current device's own stands."""
    torchs = torch.default_generator
    own = runtime.default_generators[runtime.current_device()]
    before = torchs.get_state()
    torchs.set_state(own.get_state())
    try:
        yield
    finally:
        own.set_state(torchs.get_state())
        torchs.set_state(before)
