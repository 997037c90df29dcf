"""Checkpoints: all of a training, so that it goes on bitwise as if it had never stopped.

What is saved, each under a name of its own, by torch.distributed.checkpoint:

    model.NAME           the state of the model, as ``state_dict`` has it
    optimizer.NAME.KEY   the optimizer's state of the parameter NAME
    master.NAME          its master weights
    random.RANK          torch's random state on that rank
    record               the rest: settings of the optimizer, schedule, counters, how many seeds
                         ``generate`` has made, the user's own

torch's ``get_optimizer_state_dict`` makes a state by a step on gradients of zero where there is
none yet, which counts, and loads states in the parameters' dtype; so the optimizer's is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.nn.parallel import DistributedDataParallel

from accel.contracts.checks import name_of
from accel.engine.generation.generate import Generate
from accel.engine.training import checkpoint_files as files
from accel.engine.training.optimization import Optimization
from accel.errors import CheckpointError

_FORMAT = 1  # of what is saved under which name
_SHOWN = 5  # differences in an error


def save(run: Optimization, folder: Path, tag: str | None, client_state: Mapping[str, Any]) -> Path:
    """``folder / tag`` is written whole, or not at all; returns it."""
    if run.under_way():
        raise CheckpointError(
            "gradients wait for their update, and are not saved; save behind the step at the "
            "boundary of accumulation, or drop them with zero_grad()"
        )
    state = {f"model.{name}": value for name, value in _bare(run.model).state_dict().items()}
    record = {
        "format": _FORMAT,
        "global_steps": run.global_steps,
        "seeds_made": [generate.seeds_made for generate in _generates(run.model)],
        "client_state": client_state,
    }
    if run.optimizer is not None:
        state |= _optimizer_state(run)
        state |= {f"master.{n}": m for n, m in run.masters.of(_parameters(run)).items()}
        schedule = run.lr_scheduler
        record |= {
            "made_of": _made_of(run),
            "groups": _groups(run),
            "lr_scheduler": None if schedule is None else schedule.state_dict(),
        }
    state[f"random.{_rank()}"] = files.packed(_random_state(_device(run)))
    state |= {"record": files.packed(record)} if _rank() == 0 else {}
    return files.write(folder, tag or f"global_step{run.global_steps}", state)


def load(run: Optimization, folder: Path, tag: str | None) -> tuple[Path, dict[str, Any]]:
    """(the checkpoint, the user's own state); everything is read before anything is changed."""
    path = files.find(folder, tag)
    saved = files.metadata_of(path).state_dict_metadata
    record = files.read({"record": None}, path)["record"]
    if record["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {record['format']}; this version of accel reads {_FORMAT}"
        )
    model = {f"model.{name}": value for name, value in _bare(run.model).state_dict().items()}
    state = {name: _room(value) for name, value in model.items()}
    differences = [*_differences(saved, model)]
    if run.optimizer is not None:
        differences += _differences_of_training(run, record)
        state |= {} if differences else _room_for_training(run, saved)
    if differences:
        more = len(differences) - _SHOWN
        shown = "\n  ".join(differences[:_SHOWN] + ([f"and {more} more"] if more > 0 else []))
        raise CheckpointError(f"{path} is of another model or training:\n  {shown}")
    _put_in_place(run, files.read(state, path), record)
    return path, dict(record["client_state"])


def _put_in_place(run: Optimization, state: dict[str, Any], record: dict[str, Any]) -> None:
    _bare(run.model).load_state_dict(_under("model.", state))
    run.global_steps = record["global_steps"]
    if run.optimizer is None:
        return
    run.zero_grad()
    for generate, made in zip(_generates(run.model), record["seeds_made"]):
        generate.seeds_made = made
    named = _parameters(run)
    run.masters.replace({named[n]: master for n, master in _under("master.", state).items()})
    position = {name: index for index, name in enumerate(_names(run))}
    groups = [{**g, "params": [position[n] for n in g["params"]]} for g in record["groups"]]
    entries: dict[int, dict[str, Any]] = {}
    for where, value in _under("optimizer.", state).items():
        name, _, key = where.rpartition(".")
        entries.setdefault(position[name], {})[key] = value
    with run.masters.exchange(run.optimizer):  # so that what is theirs stays fp32
        run.optimizer.load_state_dict({"state": entries, "param_groups": groups})
    if run.lr_scheduler is not None:
        run.lr_scheduler.load_state_dict(record["lr_scheduler"])
    if f"random.{_rank()}" in state:
        _set_random_state(_device(run), state[f"random.{_rank()}"])


# -- the optimizer, by the names of its parameters ---------------------------------------------


def _optimizer_state(run: Optimization) -> dict[str, Any]:
    names, state = _names(run), run.require_optimizer().state_dict()["state"]
    found = {
        f"optimizer.{names[index]}.{key}": value
        for index, entries in state.items()
        for key, value in entries.items()
    }
    return {k: v if isinstance(v, Tensor) else files.packed(v) for k, v in found.items()}


def _groups(run: Optimization) -> list[dict[str, Any]]:
    names = iter(_names(run))
    return [
        {**group, "params": [next(names) for _ in group["params"]]}
        for group in run.require_optimizer().param_groups
    ]


def _made_of(run: Optimization) -> dict[str, Any]:
    """What a training must have in common with one that it takes over."""
    return {
        "optimizer": type(run.optimizer).__name__,
        "lr_scheduler": None if run.lr_scheduler is None else type(run.lr_scheduler).__name__,
        "master_weights": run.config.master_weights,
    }


def _names(run: Optimization) -> list[str]:
    """Of the parameters that the optimizer holds, in its order."""
    names = {parameter: name for name, parameter in _parameters(run).items()}
    held = run.parameters()
    strangers = sum(parameter not in names for parameter in held)
    if strangers:
        raise CheckpointError(
            f"the optimizer holds {strangers} tensors that are no parameters of the model, and "
            "have no name to be saved under"
        )
    return [names[parameter] for parameter in held]


def _parameters(run: Optimization) -> dict[str, Tensor]:
    return dict(_bare(run.model).named_parameters())


# -- what there is beside what is wanted -------------------------------------------------------


def _differences(saved: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    for name in (n for n in saved if n.startswith("model.") and n not in model):
        yield f"{name} is saved, and the model has none"
    for name, value in model.items():
        if name not in saved:
            yield f"{name} is not saved, and the model has it"
        elif isinstance(value, Tensor) and (found := _shape(saved[name])) != _shape(value):
            yield f"{name} is saved as {found}; the model's is {_shape(value)}"


def _shape(of: Any) -> str:
    size, dtype = (of.shape, of.dtype) if isinstance(of, Tensor) else (of.size, of.properties.dtype)
    return f"{name_of(dtype)}{list(size)}"


def _differences_of_training(run: Optimization, record: Mapping[str, Any]) -> Iterator[str]:
    if "made_of" not in record:
        yield "it was saved without an optimizer, and the engine has one"
        return
    for what, ours in _made_of(run).items():
        if (theirs := record["made_of"][what]) != ours:
            yield f"{what} was {theirs}; the engine's is {ours}"
    theirs, ours = ([g["params"] for g in groups] for groups in (record["groups"], _groups(run)))
    if theirs != ours:
        saved, held = ({name for names in groups for name in names} for groups in (theirs, ours))
        yield (
            "the optimizer's groups hold other parameters, or in another order: "
            f"{[*map(len, theirs)]} of them saved, {[*map(len, ours)]} here; only saved "
            f"{sorted(saved - held)[:_SHOWN]}, only here {sorted(held - saved)[:_SHOWN]}"
        )


def _room(value: Any) -> Any:
    """Where a value is read to before it is taken; sharded as it is."""
    return torch.empty_like(value) if isinstance(value, Tensor) else None


def _room_for_training(run: Optimization, saved: Mapping[str, Any]) -> dict[str, Any]:
    named = _parameters(run)
    room: dict[str, Any] = {}
    for key, entry in saved.items():
        kind, _, where = key.partition(".")
        if kind == "master":
            room[key] = torch.empty_like(named[where], dtype=entry.properties.dtype)
        elif kind == "optimizer":
            room[key] = _room_like(named[where.rpartition(".")[0]], entry)
        elif key == f"random.{_rank()}":
            room[key] = None
    return room


def _room_like(parameter: Tensor, entry: Any) -> Tensor | None:
    """For an entry of a parameter's state: as the parameter lies, where it has its shape."""
    if isinstance(entry, BytesStorageMetadata):
        return None
    if entry.size == parameter.shape:
        return torch.empty_like(parameter, dtype=entry.properties.dtype)
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


# -- torch -------------------------------------------------------------------------------------


def _bare(model: nn.Module) -> nn.Module:
    """The model without DDP, which puts a prefix before every name."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _generates(model: nn.Module) -> Iterator[Generate]:
    """What makes a seed of torch's and of how many it made: one, or none."""
    found = (module.__dict__.get("generate") for module in model.modules())
    return (generate for generate in found if isinstance(generate, Generate))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _device(run: Optimization) -> torch.device:
    return next(run.model.parameters()).device


def _random_state(device: torch.device) -> dict[str, Tensor]:
    found = {"host": torch.get_rng_state()}
    generators: Any = getattr(torch, device.type, None)
    if hasattr(generators, "get_rng_state"):
        found["device"] = generators.get_rng_state(device)
    return found


def _set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["host"])
    generators: Any = getattr(torch, device.type, None)
    if "device" in state and hasattr(generators, "set_rng_state"):
        generators.set_rng_state(state["device"], device)
