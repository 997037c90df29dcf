"""Orders: which implementations of an op a user wants, or does not want.

    linear=accel_x.triton|reference     these, in this order, and no other
    rms_norm=!torch                     any but this one
    *=torch                             for every op without an order of its own

Orders are joined by ``;``. An implementation is named by its id, or by the part of it after the
dot. The same text is taken by ``ACCEL_OPS`` and :func:`accel.ops.use`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from accel.contracts import CONTRACTS
from accel.errors import ConfigError, UnknownOpError, close_matches

EVERY = "*"


@dataclass(frozen=True)
class Order:
    """``only`` these implementations, in order (empty: any), but none of ``never``."""

    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        return self.only + self.never

    def __str__(self) -> str:
        return "|".join([*self.only, *(f"!{name}" for name in self.never)])


Orders = Mapping[str, Order]


def parse(text: str, known: Iterable[str]) -> dict[str, Order]:
    """Orders from text; ConfigError says which part cannot be read. ``known``: all ids."""
    orders: dict[str, Order] = {}
    known = list(known)
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        op, equals, names = (piece.strip() for piece in part.partition("="))
        if not equals or not op or not names:
            raise ConfigError(f'cannot read {part!r} in {text!r}; an order is "op=a|b" or "op=!a"')
        if op in orders:
            raise ConfigError(f"{op!r} has two orders in {text!r}; join them with |")
        orders[op] = _order(op, names, text, known)
    return orders


def _order(op: str, names: str, text: str, known: list[str]) -> Order:
    if op != EVERY and op not in CONTRACTS:
        raise UnknownOpError(f"unknown op {op!r} in {text!r}; {close_matches(op, CONTRACTS)}")
    only: list[str] = []
    never: list[str] = []
    for name in (piece.strip() for piece in names.split("|")):
        bare = name.removeprefix("!").strip()
        if not bare:
            raise ConfigError(f"an implementation's name is missing in {text!r}")
        if not any(names_it(bare, id) for id in known):
            raise UnknownOpError(
                f"unknown implementation {bare!r} in {text!r}; {close_matches(bare, known)}"
            )
        (never if name.startswith("!") else only).append(bare)
    return Order(tuple(only), tuple(never))


def names_it(name: str, id: str) -> bool:
    """True if ``name`` is ``id`` or the part of it after the dot."""
    return id in (name, f"{id.rpartition('.')[0]}.{name}")


def position(order: Order, id: str) -> int | None:
    """Place of ``id`` among those the order takes; None if it takes it not."""
    if any(names_it(name, id) for name in order.never):
        return None
    if not order.only:
        return 0
    return next((i for i, name in enumerate(order.only) if names_it(name, id)), None)
