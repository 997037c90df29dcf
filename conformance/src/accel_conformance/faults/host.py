"""A right backend to plant faults in: the host, with kernels whose rows are independent.

with testing.installed(host.plugin()):
    accel_conformance.run("host")           # 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel import testing
from accel.accelerator import DeviceProperties
from accel.contracts import CONTRACTS
from accel.contracts.activation import activate
from accel.native import NativeLibrary, Source
from accel.op_builder import Impl, Kernel, Request
from accel.refusal import Refusal

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
# One id of each op's implementation.
LINEAR, NORM, ATTENTION, LOGPROB = "host.linear", "host.norm", "host.attention", "host.logprob"
TILED = "host.tiled"
EXACT = {
    "linear": LINEAR, "rms_norm": NORM, "attention": ATTENTION, "logprob": LOGPROB,
    "tiled_linear": TILED,
}  # fmt: skip
# What faults are planted in that only the hybrid engine shows: kernels that serve all of it.
ENGINE = "accel_cpu.native"
# No kernel is in it: it is there to be compiled.
LIBRARY = NativeLibrary(
    "answer", [Source(Path(__file__).with_name("answer.cpp"))], flags=("-O0",), libraries=()
)


class HostAccelerator(testing.FakeAccelerator):
    def refusal(self, capability: str) -> Refusal | None:
        if capability in ("fp64", "rng_state", "generator"):
            return None
        return super().refusal(capability)

    def properties(self, device_index: int | None = None) -> DeviceProperties:
        return DeviceProperties("a host of tests", 1 << 33, 2)

    def get_rng_state(self, device_index: int | None = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, new_state: Tensor, device_index: int | None = None) -> None:
        torch.set_rng_state(new_state)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def initial_seed(self) -> int:
        return torch.initial_seed()

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        return torch.default_generator


def row_by_row(op: str) -> Callable[..., Tensor]:
    """The reference, one row at a time in memory of its own."""
    reference = CONTRACTS[op].reference

    def kernel(x: Tensor, *rest: Any) -> Tensor:
        _one_device(x, *rest)
        if not x.numel():
            return reference(x, *rest)  # type: ignore[no-any-return]
        rows = x.reshape(-1, 1, x.shape[-1])
        found = torch.cat([reference(row.clone(), *rest) for row in rows])
        return found.reshape(*x.shape[:-1], found.shape[-1])

    return kernel


def linear_one_by_one(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    """linear, every row by itself, and every output feature a sum of its own: of products of
    matrices torch's order of summing depends on how many there are."""
    _one_device(x, w, b)
    if not x.numel():
        return CONTRACTS["linear"].reference(x, w, b, act, out_dtype)  # type: ignore[no-any-return]
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = w.to(wide).contiguous()
    sums = [(weight * row).sum(-1) for row in x.reshape(-1, x.shape[-1]).to(wide)]
    z = torch.stack(sums).reshape(*x.shape[:-1], len(w))
    return activate(z if b is None else z + b.to(wide), act).to(out_dtype or x.dtype)


def plain_attention(impl: Impl, request: Request) -> list[Refusal]:
    """query_by_query serves what the native kernels do."""
    asked = {"mask": False, "slopes": False, "window": None, "softcap": None, "dropout": 0.0}
    return [
        Refusal("option", f"no {name}", f"{name}={request.options[name]}", f"leave {name} out")
        for name, plain in asked.items()
        if request.options[name] != plain
    ]


def query_by_query(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: None, slopes: None, seed: None,
    causal: bool, scale: float | None, *others: Any,
) -> Tensor:  # fmt: skip
    """attention, every query by itself, summed without products of matrices."""
    _one_device(q, k, v, spans)
    found = q.new_zeros(len(q), q.shape[1], v.shape[2])
    scale = max(q.shape[2], 1) ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (t.to(wide).contiguous() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    for q_start, q_len, k_start, k_len in spans.tolist():
        for i in range(q_len):
            seen = slice(k_start, k_start + k_len - (q_len - 1 - i if causal else 0))
            if seen.stop > seen.start:
                scores = (q[q_start + i] * k[seen]).sum(-1) * scale
                p = (scores - scores.amax(0)).exp()
                found[q_start + i] = ((p / p.sum(0)).unsqueeze(-1) * v[seen]).sum(0)
    return found


def logprob_by_row(
    x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """logprob's reference of linear's logits, one row at a time in memory of its own."""
    _one_device(x, ids, w, b)
    if w is not None and x.numel():
        x = linear_one_by_one(x, w, b, None, torch.promote_types(x.dtype, torch.float32))
        w, b = None, None
    rest = w, b, *rest
    reference, rows = CONTRACTS["logprob"].reference, x.reshape(ids.numel(), 1, x.shape[-1])
    if not len(rows):
        return reference(x, ids, *rest)  # type: ignore[no-any-return]
    found = [reference(row.clone(), i, *rest) for row, i in zip(rows, ids.reshape(-1, 1))]
    return tuple(torch.cat(parts).reshape(ids.shape) for parts in zip(*found))


def tiled_by_row(
    x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    """tiled_linear's reference, one row at a time."""
    _one_device(x, w, b, partial)
    reference, m = CONTRACTS["tiled_linear"].reference, math.prod(x.shape[:-1])
    if partial is None or not partial.numel():
        return row_by_row("tiled_linear")(x, w, b, partial, out_dtype)
    pairs = zip(x.reshape(m, 1, x.shape[-1]), partial.reshape(m, 1, partial.shape[-1]))
    found = [reference(row.clone(), w, b, so_far.clone(), out_dtype) for row, so_far in pairs]
    return torch.cat(found).reshape(partial.shape)


def tiled_into(x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out: Tensor) -> None:
    out.copy_(tiled_by_row(x, w, b, partial, out.dtype))


def compiled(builder: Any) -> Any:
    """The builder class with a library of its own."""
    builder.library = LIBRARY
    return builder


def plugin(
    accelerator: str = "accel_conformance.faults.host:HostAccelerator", **backend: Any
) -> Any:
    """The backend ``host`` as a plugin object; ``backend`` overrides its fields."""
    builders = [
        _builder("LinearBuilder", LINEAR, linear=linear_one_by_one),
        compiled(_builder("TransformerBuilder", NORM, rms_norm=row_by_row("rms_norm"))),
        _builder(
            "TransformerBuilder", ATTENTION, reasons=plain_attention, attention=query_by_query
        ),
        _builder("TilingBuilder", LOGPROB, logprob=logprob_by_row),
        _builder("TilingBuilder", TILED, tiled_linear=Kernel(tiled_by_row, into=tiled_into)),
    ]
    return testing.fake_backend(
        "host", builders=builders, accelerator=accelerator, host=True, **backend
    )


def _builder(family: str, id: str, reasons: Any = None, **kernels: Callable[..., Any]) -> Any:
    return testing.fake_builder(kernels, id=id, family=family, dtypes=DTYPES, reasons=reasons)


def _one_device(x: Tensor, *others: Any) -> None:
    if any(t.device != x.device for t in others if isinstance(t, Tensor)):
        raise ValueError("a kernel is the one who looks at devices")
