"""Rows: which arguments of an op have them, and the op on fewer, more or others of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract
from accel.contracts.inputs import Draw
from accel_conformance.target import Args, Results

# Of each argument with rows, how many of its last dimensions are one row's. Where nothing is
# stated here the first argument has them, and its last dimension is a row.
_ROW_DIMENSIONS: dict[str, dict[str, int]] = {
    "add_norm": {"x": 1, "residual": 1},
    "attention": {"q": 2},  # whose spans are cut to the rows as well
    "dropout_add": {"x": 1, "residual": 1, "rows": 0},
    "embedding": {"ids": 0},
    "grouped_linear": {"x": 1},  # whose ends are moved with the rows
    "logprob": {"x": 1, "ids": 0},
    "rotary": {"x": 2, "cos": 1, "sin": 1},
    "softmax": {"x": 1, "mask": 1},
    "tiled_linear": {"x": 1, "partial": 1},
    "transformer_layer": {"x": 2},  # a row is a whole sequence
}

BEFORE = 3  # rows before the keys, where they are moved


def row_dimensions(contract: Contract) -> Mapping[str, int]:
    """Arguments with rows, and how many of their last dimensions are one row's."""
    stated = _ROW_DIMENSIONS.get(contract.name)
    assert stated or contract.rowwise, f"which arguments of {contract.name} have rows?"
    return stated or {next(iter(contract.parameters)): 1}


def _given(contract: Contract, named: Mapping[str, Any]) -> dict[str, int]:
    """:func:`row_dimensions` of the arguments that are not left out."""
    return {k: own for k, own in row_dimensions(contract).items() if named[k] is not None}


def leading(contract: Contract, args: Args) -> tuple[int, ...]:
    """The dimensions that count rows."""
    name, own = next(iter(row_dimensions(contract).items()))
    shape = _named(contract, args)[name].shape
    return tuple(shape[: len(shape) - own])


def count(contract: Contract, args: Args) -> int:
    return math.prod(leading(contract, args))


def separable(contract: Contract, args: Args) -> bool:
    """Whether a row can be had alone. Dropout's bits are those of the row's place among others; and
    both ways, a window and slopes count from the last query of the span."""
    named = _named(contract, args)
    if contract.name == "transformer_layer":
        shared = named["mask"] is None or len(named["mask"]) == 1
        return shared and not named["attn_dropout"] and not named["hidden_dropout"]
    if "spans" not in named:
        return True
    counted = named["window"] is not None or named["slopes"] is not None
    return not named["dropout"] and (named["causal"] or not counted)


def countable(contract: Contract, args: Args) -> bool:
    """Whether there may be other rows, and any number of them."""
    named = _named(contract, args)
    tied = named.keys() & {"spans", "ends"} or not separable(contract, args)
    return not tied and all(named[name].numel() for name in _given(contract, named))


def take(contract: Contract, args: Args, start: int, stop: int) -> Args:
    """Rows [start, stop) alone, of rows counted by one dimension."""
    named = _named(contract, args)
    for name in _given(contract, named):
        named[name] = named[name][start:stop]
    if "spans" in named:
        cut = list(_cut(named["spans"], start, stop, causal=named["causal"]))
        named["spans"] = _table([span for _, _, span in cut], named["spans"])
        if named["mask"] is not None:
            named["mask"] = _mask_of(cut, named["mask"])
    if "ends" in named:
        named["ends"] = (named["ends"] - start).clamp(0, stop - start)
    return tuple(named.values())


def alone(contract: Contract, args: Args, i: int) -> Args:
    """Row i in memory of its own: where a row lies must not matter either."""
    named = _named(contract, take(contract, args, i, i + 1))
    for name in _given(contract, named):
        named[name] = named[name].clone(memory_format=torch.contiguous_format)
    return tuple(named.values())


def new_rows(contract: Contract, args: Args, rows: int, sample: str) -> Args:
    """The sample's arguments with others for its rows, counted by one dimension: numbers newly
    drawn, ids and the like out of the sample's own. Rows that spans or ends speak of stay."""
    draw, named = Draw(contract.name), _named(contract, args)
    if named.keys() & {"spans", "ends"}:
        return args
    for name, own in _given(contract, named).items():
        old, label = named[name], f"{sample}.rows.{name}"
        if old.is_floating_point():
            shape = (rows, *old.shape[old.dim() - own :])
            named[name] = draw.plain(label, shape, old.dtype, old.device)
        else:
            named[name] = old.reshape(-1)[draw.integers(label, (rows,), old.numel(), old.device)]
    if "rows" in named:  # a row's number is its place unless it is given, and places will change
        named["rows"] = torch.arange(rows, device=contract.key(args).device)
    return tuple(named.values())


def otherwise(contract: Contract, args: Args) -> Args:
    """The same rows, of a number that three divides, counted by two dimensions; or spans in the
    reverse order, of keys that lie behind others; or behind an expert that has no rows; or
    sequences with strides."""
    named = _named(contract, args)
    if "ends" in named:
        none = torch.zeros(1, dtype=torch.int64, device=named["ends"].device)
        named["ends"] = torch.cat([none, named["ends"]])
        for name in ("w", "b"):
            if named[name] is not None:
                idle = named[name].new_full((1, *named[name].shape[1:]), math.nan)
                named[name] = torch.cat([idle, named[name]])
        return tuple(named.values())
    if "spans" in named:
        offset = torch.tensor([0, 0, BEFORE, 0], device=named["spans"].device)
        named["spans"] = (named["spans"] + offset).flip(0)
        if named["mask"] is not None:
            named["mask"] = named["mask"].flip(0)
        for name in ("k", "v"):
            before = named[name].new_full((BEFORE, *named[name].shape[1:]), math.nan)
            named[name] = torch.cat([before, named[name]])
        return tuple(named.values())
    if contract.name == "transformer_layer":  # of three dimensions, always
        named["x"] = named["x"].transpose(0, 1).contiguous().transpose(0, 1)
        return tuple(named.values())
    for name in _given(contract, named):
        named[name] = named[name].unflatten(0, (3, -1))
    return tuple(named.values())


def doubled(contract: Contract, args: Args, *, first: bool) -> Args:
    """Each row with one of NaN beside it, the NaN ``first`` or not; of ids the same twice."""
    named = _named(contract, args)
    for name in _given(contract, named):
        own = named[name]
        other = torch.full_like(own, math.nan) if own.is_floating_point() else own
        pair = (other, own) if first else (own, other)
        named[name] = torch.stack(pair, 1).flatten(0, 1)
    return tuple(named.values())


def by_row(results: Results, rows: int) -> Results:
    """Every result as [rows, elements of a row]."""
    return tuple(result.reshape(rows, -1) for result in results)


def each_row(results: Results) -> Iterator[Results]:
    """What :func:`by_row` gives, a row at a time."""
    return zip(*results)


def _cut(
    spans: Tensor, start: int, stop: int, *, causal: bool
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Spans of queries [start, stop): (which it was, its first query there, what of it is among
    them, seeing the keys it saw)."""
    for number, (q, q_len, k, k_len) in enumerate(spans.tolist()):
        first, end = max(q, start), min(q + q_len, stop)
        if first < end:
            unseen = q + q_len - end if causal else 0  # keys after the last query's own
            yield number, first - q, (first - start, end - first, k, max(k_len - unseen, 0))


def _table(spans: list[tuple[int, ...]], like: Tensor) -> Tensor:
    return torch.tensor(spans, dtype=like.dtype, device=like.device).reshape(-1, 4)


def _mask_of(cut: list[tuple[int, int, tuple[int, ...]]], mask: Tensor) -> Tensor:
    """The rows of a mask [B|1, H|1, Q|1, K] that belong to cut spans, a span each."""
    rows = max((span[1] for _, _, span in cut), default=0)
    found = mask.new_zeros(len(cut), mask.shape[1], rows, mask.shape[3])
    for into, (number, first, (_, length, *_)) in zip(found, cut):
        own = mask[number if mask.shape[0] > 1 else 0]
        into[:, :length] = own[:, first : first + length] if mask.shape[2] > 1 else own
    return found


def _named(contract: Contract, args: Args) -> dict[str, Any]:
    return dict(zip(contract.parameters, args))
