"""The policy in force: user orders, whether rows must be exact, what to do on a fallback.

Scoped by a context variable; the one underneath is read from the environment. Equal policies are
one object per registry, so that what was bound under a policy is found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from accel import environment
from accel import registry as _registry
from accel.errors import ConfigError, close_matches
from accel.ops import catalog, orders
from accel.ops.orders import EVERY, Order
from accel.registry import Registry

FALLBACKS = ("error", "warn", "allow")


@dataclass(frozen=True, eq=False)
class Policy:
    """``orders`` per op; ``exact`` asks for shape-invariant implementations; ``strict`` refuses
    others even where there is none; ``fallback`` is one of :data:`FALLBACKS`.

    ``bound`` is what was resolved under it: a cache, keyed by the op and the request's metadata.
    """

    orders: Mapping[str, Order] = field(default_factory=dict)
    exact: bool = True
    strict: bool = False
    fallback: str = "warn"
    registry: Registry | None = None
    bound: dict[Any, Any] = field(default_factory=dict)

    def order(self, op: str) -> Order:
        return self.orders.get(op) or self.orders.get(EVERY) or Order()


scoped: ContextVar[Policy | None] = ContextVar("accel_policy", default=None)
# The policy of the environment, where the doors find it without a call; empty until it is read.
base = [Policy()]


def current() -> Policy:
    """The policy in force here."""
    policy = scoped.get() or base[0]
    registry = _registry.registry()
    if policy.registry is None:
        base[0] = _from_environment(registry)
        return base[0]
    if policy.registry is not registry:  # a reset inside a `with use(...)`
        return _intern(replace(policy, registry=registry, bound={}))
    return policy


def _forget(old: Registry | None) -> None:
    base[0] = Policy()
    for policy in old.policies.values() if old else ():
        policy.bound.clear()


_registry.on_swap.append(_forget)


def _from_environment(registry: Registry) -> Policy:
    text = environment.read("ACCEL_OPS")
    fallback = environment.read("ACCEL_FALLBACK") or "warn"
    try:
        given = orders.parse(text, catalog.ids()) if text else {}
    except (ConfigError, LookupError) as error:
        raise type(error)(f"ACCEL_OPS: {error}") from None
    return _intern(Policy(given, fallback=_checked_fallback(fallback), registry=registry))


def _checked_fallback(fallback: str) -> str:
    if fallback not in FALLBACKS:
        raise ConfigError(
            f"fallback (ACCEL_FALLBACK) is {fallback!r}; {close_matches(fallback, FALLBACKS)}"
        )
    return fallback


def _intern(policy: Policy) -> Policy:
    assert policy.registry is not None
    given = tuple(sorted(policy.orders.items(), key=str))
    key = (given, policy.exact, policy.strict, policy.fallback)
    return policy.registry.policies.setdefault(key, policy)  # type: ignore[no-any-return]


@contextmanager
def use(
    order: str | None = None,
    *,
    exact: bool | None = None,
    strict: bool | None = None,
    fallback: str | None = None,
) -> Iterator[None]:
    """Resolve ops differently in the body of a ``with`` (this thread or task only).

    ``order``     which implementations: ``"linear=accel_x.triton|reference;rms_norm=!torch"``
    ``exact``     False permits implementations whose rows depend on their neighbours
    ``strict``    True refuses them even where there is no other
    ``fallback``  ``"error"``, ``"warn"`` or ``"allow"`` when not the first choice serves

    What is not given stays as it is outside. Bad input raises and changes nothing. A function
    compiled by ``torch.compile`` keeps what was resolved while it was traced.
    """
    outer = current()
    changes: dict[str, Any] = {"bound": {}}
    if order is not None:
        changes["orders"] = {**outer.orders, **orders.parse(order, catalog.ids())}
    if exact is not None:
        changes["exact"] = exact
    if strict is not None:
        changes["strict"] = strict
    if fallback is not None:
        changes["fallback"] = _checked_fallback(fallback)
    inner, before = _intern(replace(outer, **changes)), scoped.get()
    try:  # from here on an interrupt anywhere leaves the outer policy in force
        scoped.set(inner)
        yield
    finally:
        scoped.set(before)
