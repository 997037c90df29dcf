"""Every capability both ways: claimed, it works; not claimed, its use raises with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from accel.accelerator import CAPABILITIES, Accelerator
from accel.errors import UnsupportedCapability
from accel.refusal import Refusal
from accel_conformance.case import Evidence
from accel_conformance.suite.accelerator.lacking import always_there


def _graph(acc: Accelerator) -> None:
    """Capture an addition, and replay it on other values."""
    cell = torch.zeros(4, device=acc.device())
    graph = acc.create_graph()
    with acc.capture_to_graph(graph):
        cell += 1
    cell.zero_()
    acc.replay_graph(graph)
    acc.replay_graph(graph)
    acc.synchronize()
    if cell.tolist() != [2.0] * 4:
        raise AssertionError(f"two replays of adding one to zero gave {cell.tolist()}")


def _fp64(acc: Accelerator) -> None:
    acc.require("fp64")
    torch.ones(3, 3, dtype=torch.float64, device=acc.device()).matmul(
        torch.ones(3, 3, dtype=torch.float64, device=acc.device())
    )


# capability -> uses of it. Each works where it is claimed and raises where it is not, ...
USES: dict[str, tuple[Callable[[Accelerator], Any], ...]] = {
    "streams": (
        lambda acc: acc.Stream().synchronize(),
        lambda acc: acc.current_stream(),
        lambda acc: acc.default_stream(),
    ),
    "events": (lambda acc: acc.Event().record(), lambda acc: acc.Event().synchronize()),
    "event_timing": (lambda acc: acc.Event(enable_timing=True).record(),),
    "graphs": (_graph,),
    "memory_stats": (
        lambda acc: acc.memory_allocated(),
        lambda acc: acc.memory_reserved(),
        lambda acc: acc.memory_stats(),
    ),
    "peak_memory_stats": (
        lambda acc: acc.max_memory_allocated(),
        lambda acc: acc.max_memory_reserved(),
        lambda acc: acc.reset_peak_memory_stats(),
        lambda acc: acc.reset_max_memory_allocated(),
    ),
    "memory_info": (lambda acc: acc.total_memory(), lambda acc: acc.available_memory()),
    "pinned_memory": (lambda acc: acc.pin_memory(torch.ones(4)),),
    "rng_state": (
        lambda acc: acc.manual_seed(1),
        lambda acc: acc.manual_seed_all(1),
        lambda acc: acc.initial_seed(),
        lambda acc: acc.set_rng_state(acc.get_rng_state()),
    ),
    "generator": (lambda acc: acc.default_generator(),),
    "collectives": (lambda acc: acc.communication_backend_name(),),
    "visible_devices": (
        lambda acc: acc.visible_devices_envs(),
        lambda acc: acc.set_visible_devices_envs({}, [0]),
    ),
    "fp64": (_fp64,),
    "triton": (lambda acc: acc.require("triton"),),
}
# ... but for those whose parts, once one has raised, would not be tried.
PARTS: dict[str, tuple[Callable[[Accelerator], Any], ...]] = {
    "graphs": (
        lambda acc: acc.create_graph(),
        lambda acc: acc.capture_to_graph(object()),
        lambda acc: acc.replay_graph(object()),
    ),
    "rng_state": (
        lambda acc: acc.manual_seed(1),
        lambda acc: acc.manual_seed_all(1),
        lambda acc: acc.initial_seed(),
        lambda acc: acc.get_rng_state(),
        lambda acc: acc.set_rng_state(torch.zeros(8, dtype=torch.uint8)),
    ),
}


def capabilities(acc: Accelerator, seen: Evidence) -> None:
    """What is claimed and what is refused add up, and an unknown name is an error."""
    claimed = acc.capabilities
    right = isinstance(claimed, frozenset) and claimed <= set(CAPABILITIES)
    seen.expect("types", right, f"capabilities is {claimed!r:.120}")
    for name in CAPABILITIES:
        refused, supported = acc.refusal(name), acc.supports(name)
        agree = (refused is None) == (supported is True) == (name in claimed)
        seen.expect("capability", agree, f"{name}: refusal {refused}, supports() {supported}")
        if refused is not None:
            given = isinstance(refused, Refusal)
            if seen.expect("capability", given, f"{name} is refused by {refused!r}, no Refusal"):
                seen.expect_whole("capability", refused)
    try:
        acc.supports("telepathy")
    except ValueError:
        return
    seen.expect("capability", False, "supports('telepathy') does not raise ValueError")


def both_ways(acc: Accelerator, capability: str, seen: Evidence) -> None:
    refused = acc.refusal(capability)
    if refused is None or always_there(acc, capability):
        for use in USES[capability]:
            _works(acc, use, capability, seen)
    else:
        parts = PARTS.get(capability, USES[capability])
        for use in (lambda acc: acc.require(capability), *parts):
            _raises(acc, use, refused, seen)


def _works(
    acc: Accelerator, use: Callable[[Accelerator], Any], capability: str, seen: Evidence
) -> None:
    try:
        use(acc)
    except Exception as error:
        says = f"{capability} is claimed, and using it raises {type(error).__name__}: {error}"
        seen.expect("capability", False, says)
    else:
        seen.expect("capability", True, "it works")


def _raises(
    acc: Accelerator, use: Callable[[Accelerator], Any], refused: Refusal, seen: Evidence
) -> None:
    try:
        found = use(acc)
    except UnsupportedCapability as error:
        says = f"{error} does not give the reason: {refused.have}"
        seen.expect("capability", refused.have in str(error), says)
    else:
        says = f"{refused.code} is not claimed, and using it gives {found!r:.80} and no error"
        seen.expect("capability", False, says)
