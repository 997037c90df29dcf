"""Sharding by PyTorch's ``fully_shard``: its units, of what size they are, and how to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel.engine.spec import StackSpec
from accel.errors import ConfigError, UnsupportedCapability
from accel.refusal import Refusal


@dataclass(frozen=True)
class Units:
    """What ``fully_shard`` gathers together, each: a module and the bytes of its parameters, whole,
    in the dtype they are gathered in.

    ``held``     those around the layers, outermost first, also those of a wrapper around the model:
                 they stay gathered as long as a rollout runs
    ``passing``  the others, outermost ones, in the order they run; what is sharded inside a layer
                 counts with it
    ``nested``   True if there is such
    ``casts``    dtypes of the model are a MixedPrecisionPolicy's to choose
    """

    held: tuple[tuple[Any, int], ...]
    passing: tuple[tuple[Any, int], ...]
    nested: bool
    casts: bool

    @property
    def around(self) -> list[Any]:
        """The modules of ``held``."""
        return [module for module, _ in self.held]

    @property
    def layers(self) -> list[Any]:
        """Those of ``passing``."""
        return [module for module, _ in self.passing]

    @property
    def bytes(self) -> int:
        """Of all parameters, whole."""
        return sum(size for _, size in (*self.held, *self.passing))

    def needed(self, together: int) -> int:
        """Bytes beside the shards while as many are gathered one after the other, the first of them
        before the others. What is received is copied to where it is read, and some process groups
        copy what they receive: while a unit is gathered it is there twice."""
        sizes = [size for _, size in self.passing] or [0]
        runs = (sizes[i : i + together] for i in range(len(sizes)))
        most = max(first + 2 * sum(others) for first, *others in runs)
        return sum(size for _, size in self.held) + max(most, 2 * max(sizes))


class Outer:
    """What was hybridized, where that is a wrapper with the language model inside: it may be a unit
    of sharding, the root of the others, that holds parameters of the model's.

    The model's own ``generate`` has it, so it is held weakly, and a copy of the model alone, or one
    from a file, has none.
    """

    def __init__(self, outer: nn.Module | None) -> None:
        self._known: Callable[[], Any] = (lambda: None) if outer is None else ref(outer)

    def of(self, model: nn.Module) -> nn.Module:
        """The wrapper, while it is there and has the model inside; else the model."""
        found: nn.Module | None = self._known()
        return found if found is not None and model in set(found.modules()) else model

    def __deepcopy__(self, memo: dict[int, Any]) -> Outer:
        return Outer(memo.get(id(self._known())))  # a copy that is being made

    def __reduce__(self) -> tuple[Callable[..., Outer], tuple[None]]:
        return Outer, (None,)


def is_sharded(module: nn.Module) -> bool:
    """True if ``fully_shard`` has made a unit of it; of its class, since PEFT's wrappers say of
    themselves what the model inside has."""
    kind = type(module)
    return hasattr(kind, "unshard") and hasattr(kind, "set_modules_to_forward_prefetch")


def part(model: Any) -> None:
    """Shard what is gathered, which may be older than the shards: ``fully_shard`` leaves what it
    gathered for a forward without a backward as it is, and optimizers step on shards."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def units(
    model: nn.Module, spec: StackSpec, outer: nn.Module, planned: Sequence[nn.Module] = ()
) -> Units | None:
    """Those of a model and around it, up to ``outer``, or those that ``planned`` would be; None if
    there are none."""
    layers = model.get_submodule(spec.layers)
    own, there = set(model.modules()), list(outer.modules())
    found = [module for module in there if is_sharded(module) or module in planned]
    held = [m for m in found if any(inner is layers for inner in m.modules())]
    beside = [m for m in found if m not in held and m not in own]  # a value head, say
    found = [m for m in found if m not in beside]
    if not found:
        return None
    passing: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in found:
        if module not in held and module not in inside:
            passing.append(module)
            inside |= set(module.modules())
    seen: set[Tensor] = {parameter for module in beside for parameter in module.parameters()}
    sized = {module: _bytes(module, seen) for module in passing}  # what is left is held's
    around = {module: _bytes(module, seen) for module in held}
    policies = [_policy(module) for module in found]
    return Units(
        tuple(around.items()),
        tuple(sized.items()),
        len(found) > len(held) + len(passing),
        any(p is not None and (p.param_dtype or p.output_dtype) for p in policies),
    )


def reasons(
    model: nn.Module, spec: StackSpec, outer: nn.Module, exact: bool = False
) -> Iterator[Refusal]:
    """Why rollouts could not be exact: a policy rounds what the head gives. And why they could not
    gather the model's parameters: some are shards, or lie beside sharded
    layers, where a unit that was not resharded may have gathered what is old by now, and no unit of
    ``fully_shard`` up to ``outer`` has them."""
    found = units(model, spec, outer)
    known = [] if found is None else [*found.around, *found.layers]
    within = {inner for module in known for inner in module.modules()}
    head = model.get_submodule(getattr(spec, "head", None) or spec.layers)
    rounded = {
        str(dtype).removeprefix("torch.")
        for module in known
        if (dtype := getattr(_policy(module), "output_dtype", None)) and head in module.modules()
    }
    if exact and rounded - {"float32", "float64"}:
        want = "logits and log-probabilities in fp32"
        have = f"a MixedPrecisionPolicy with output_dtype={', '.join(sorted(rounded))}"
        yield Refusal("exact", want, have, "leave output_dtype None, or set exact=False")
    lost = [
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if module not in within and (known or hasattr(parameter, "device_mesh"))
    ]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield Refusal(
            "sharding",
            "parameters that are whole, or those of fully_shard's units in what is given",
            f"parameters outside of them: {lost[0]}{more}, which a module around this "
            f"{type(outer).__name__} gathers, or nothing of fully_shard's",
            "give the outermost module that fully_shard, or Accelerate's prepare, has made: "
            "accel.hybridize(wrapper), or HybridEngine(wrapper); if that is what was given, call "
            "fully_shard on it too, after the modules in it",
        )


def begin_at(root: Any) -> None:
    """Have ``fully_shard`` take a unit for the root of those inside, as it does by itself when that
    is the first to run: a rollout runs the model, and a wrapper around it may be the root."""
    root._get_fsdp_state()._lazy_init()  # torch has no public name for it


def _bytes(module: nn.Module, seen: set[Tensor]) -> int:
    own = [p for p in module.parameters() if p not in seen]
    seen.update(own)
    dtype = getattr(_policy(module), "param_dtype", None)
    return sum(p.numel() * (dtype or p.dtype).itemsize for p in own)


def _policy(module: Any) -> Any:
    """Its MixedPrecisionPolicy, for which torch has no public name."""
    return getattr(module._get_fsdp_state(), "_mp_policy", None) if is_sharded(module) else None


def computed_like(model: nn.Module, outer: nn.Module | None = None) -> Tensor:
    """An empty tensor with the dtype and on the device that the model computes in."""
    parameter = next(model.parameters())
    sharded = next((m for m in (outer or model).modules() if is_sharded(m)), None)
    policy = None if sharded is None else _policy(sharded)
    dtype = getattr(policy, "param_dtype", None) or parameter.dtype
    return torch.empty(0, dtype=dtype, device=parameter.device)


def parts(model: nn.Module, spec: StackSpec) -> list[nn.Module]:
    """What the engine makes units of: every layer, the embedding and the head where they share
    nothing, and the model around them."""
    tokens, head = (
        None if path is None else model.get_submodule(path)
        for path in (getattr(spec, "tokens", None), getattr(spec, "head", None))
    )
    found = list(model.get_submodule(spec.layers).children())
    if tokens is not None and head is not None:
        tied = set(tokens.parameters()) & set(head.parameters())
        found += [] if tied else [tokens, head]
    return [*found, model]


def shard(
    model: nn.Module, spec: StackSpec, mesh: Any, optimizer: torch.optim.Optimizer | None
) -> None:
    """``fully_shard`` in place, by :func:`parts`. The optimizer, which has not stepped, gets the
    new parameters."""
    from torch.distributed.fsdp import fully_shard

    names = {p: name for name, p in model.named_parameters()}
    for part in parts(model, spec):
        fully_shard(part, mesh=mesh)
    if optimizer is not None:
        now = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"][:] = [now[names[p]] if p in names else p for p in group["params"]]


def mesh_for(asked: Any, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Any:
    """The DeviceMesh to shard a model over, which ``shard`` is or, if True, all processes make.

    ConfigError or UnsupportedCapability, and nothing is changed, where that cannot be.
    """
    if any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in model.parameters()):
        raise ConfigError(
            "shard asks the engine to shard the model, whose parameters are sharded already; "
            "leave shard out"
        )
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ConfigError(
            "shard asks the engine to shard the model, which is in DistributedDataParallel, whose "
            "every process keeps all parameters; give the model that is in it (model.module), or "
            "leave shard out"
        )
    if optimizer is not None and optimizer.state:
        raise ConfigError(
            "shard makes new parameters of the model's, and the optimizer has stepped on the old "
            "ones; shard before its first step, and load its state through load_checkpoint"
        )
    if not (dist.is_available() and dist.is_initialized()):
        raise UnsupportedCapability(
            "shard needs a process group, and torch.distributed is not initialized: start the "
            "script with torchrun and call torch.distributed.init_process_group(), or leave it out"
        )
    if asked is not True:
        if asked.ndim == 1 or (asked.ndim == 2 and asked.mesh_dim_names):
            return asked
        raise ConfigError(
            "shard needs a DeviceMesh of one dimension, or of two with names (replicas, shards); "
            f"found {asked}; take a part of it, or init_device_mesh(..., mesh_dim_names=...)"
        )
    from torch.distributed.device_mesh import init_device_mesh

    device = next(model.parameters()).device
    return init_device_mesh(device.type, (dist.get_world_size(),))
