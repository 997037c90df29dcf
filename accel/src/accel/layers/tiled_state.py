"""The parameters of a tiled linear layer as those of a plain one: read, written, saved, loaded.

``tiles`` maps the name of a plain parameter to the names of its tiles, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from accel.layers.gather import gathered

Tiles = dict[str, list[list[str]]]

UNSETTABLE = (
    "{0}: {1} is a copy made of its tiles and cannot be set. To give it values: "
    "copy_params_from(layer), or load_state_dict. To share one Parameter with another layer: set "
    "linears[out][in].{1}, a Parameter of that tile's shape, or use accel.layers.Linear, which is "
    "one piece"
)


def whole(tensor: Any) -> Tensor:
    """The values of ``tensor`` itself; of one that is sharded all of them, by a collective."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def like(parameter: Any, value: Tensor) -> Tensor:
    """``value`` as ``parameter`` takes it: sharded if that is, with the first process's values."""
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    # A collective of the parameter's own device; blocks of a slice would not do.
    value = value.to(parameter.device, parameter.dtype).contiguous()
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def assembled(rows: list[list[Tensor]]) -> Tensor:
    """One tensor of tiles: columns side by side, rows one below the other."""
    return torch.cat([row[0] if len(row) == 1 else torch.cat(row, 1) for row in rows])


def cut(value: Tensor, out_parts: list[int], in_parts: list[int], of: str) -> list[list[Tensor]]:
    """The tiles of a plain parameter, as views; a bias has one for each row."""
    rows = [value[start:stop] for start, stop in pairwise(out_parts)]
    if of == "bias":
        return [[row] for row in rows]
    return [[row[:, a:b] for a, b in pairwise(in_parts)] for row in rows]


def read(module: nn.Module, rows: list[list[str]]) -> Tensor:
    """A copy of a plain parameter, from its tiles, parametrized ones as they are used."""
    parameters = [[attrgetter(name)(module) for name in row] for row in rows]
    with torch.no_grad(), gathered(*(p for row in parameters for p in row)):
        return assembled([[whole(p) for p in row] for row in parameters]).clone()


@torch.no_grad()
def write(module: nn.Module, rows: list[list[str]], values: list[list[Tensor]]) -> None:
    """Tile by tile, so that one is gathered at a time."""
    parameters = [[module.get_parameter(name) for name in row] for row in rows]
    for row, tiles in zip(parameters, values):
        for parameter, value in zip(row, tiles):
            with gathered(parameter, modify=True):
                parameter.copy_(like(parameter, value))


# -- initialisation ----------------------------------------------------------------------------


def starts_as_torch_s(linear_cls: Callable[..., nn.Module]) -> bool:
    """True of classes whose parameters are drawn by nn.Linear."""
    return (
        isinstance(linear_cls, type)
        and issubclass(linear_cls, nn.Linear)
        and linear_cls.reset_parameters is nn.Linear.reset_parameters
    )


def generators_kept(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn in the block is drawn again after it, on the host and on ``device``."""
    if hasattr(getattr(torch, device.type, None), "get_rng_state"):
        return torch.random.fork_rng([device], device_type=device.type)
    return torch.random.fork_rng([])


# -- hooks of torch.nn.Module: functions, so that copies and pickles of it have them too -------


def register_hooks(module: nn.Module) -> None:
    """Save and load ``module`` under the names of a plain layer."""
    hooks: Any = module  # torch does not say the types of these methods
    hooks.register_state_dict_post_hook(join_on_save)
    hooks.register_load_state_dict_pre_hook(cut_on_load)
    hooks.register_load_state_dict_post_hook(name_missing)


def join_on_save(module: Any, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Put each plain parameter in its tiles' place, unless they are sharded, away or not there."""
    for name, rows in module.tiles.items():
        expected = cut(torch.empty(module.plain_shape(name), device="meta"),
                       module.out_parts, module.in_parts, name)  # fmt: skip
        found = [[state_dict.get(prefix + tile) for tile in row] for row in rows]
        if not all(_is_plain(t, e) for f, row in zip(found, expected) for t, e in zip(f, row)):
            continue
        for row in rows:
            for tile in row:
                del state_dict[prefix + tile]
        state_dict[prefix + name] = assembled(found)  # type: ignore[arg-type]


def _is_plain(tile: Any, expected: Tensor) -> bool:
    return (
        isinstance(tile, Tensor)
        and not hasattr(tile, "full_tensor")
        and tile.shape == expected.shape
    )


def cut_on_load(
    module: Any, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], strict: bool,
    missing: list[str], unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """Put the tiles in each plain parameter's place."""
    parameters = dict(module.named_parameters())
    # Assigned rather than copied, a view would keep the whole alive.
    assigned = metadata.get("assign_to_params_buffers", False)
    module._loading = prefix, [name for name in module.tiles if prefix + name in state_dict]
    for name in module._loading[1]:
        value, shape = whole(state_dict.pop(prefix + name)), module.plain_shape(name)
        if not isinstance(value, Tensor) or value.shape != shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            errors.append(
                f"size mismatch for {prefix}{name}: the state has {found}, this "
                f"{type(module).__name__} has {list(shape)}"
            )
            continue
        values = cut(value, module.out_parts, module.in_parts, name)
        for row, tiles in zip(module.tiles[name], values):
            for key, tile in zip(row, tiles):
                own = tile.clone() if assigned else tile
                state_dict[prefix + key] = like(parameters.get(key), own)


def name_missing(module: Any, keys: Any) -> None:
    """Call what is missing by the plain parameter's name where all its tiles are."""
    prefix, given = module.__dict__.pop("_loading")
    for name, rows in module.tiles.items():
        tiles = {prefix + tile for row in rows for tile in row}
        if tiles <= set(keys.missing_keys):
            kept = [key for key in keys.missing_keys if key not in tiles]
            keys.missing_keys[:] = kept if name in given else [*kept, prefix + name]
