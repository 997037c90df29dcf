"""The ``ACCEL_*`` environment variables: which exist, and a clear error for one that does not.

accel only ever reads the environment. It does so when the registry is made (first use), not at
import, and again after :func:`accel.reset`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

from accel.errors import ConfigError, close_matches

PREFIX = "ACCEL_"

KNOWN = {
    "ACCEL_BACKEND": "name of the backend to use",
    "ACCEL_OPS": 'orders of implementations: "linear=a|b;rms_norm=!c"',
    "ACCEL_FALLBACK": "what to do when not the first choice serves: error, warn or allow",
    "ACCEL_CACHE_DIR": "folder of compiled kernels",
    "ACCEL_CXXFLAGS": "flags added to all that compile and link kernels, such as a sanitizer's",
    "ACCEL_BUILD_TIMEOUT": "seconds to wait for another process's build",
    "ACCEL_TUNING_TABLE": "file of tuned settings, also on a network file system",
}


def check(plugin_variables: Iterable[str] = ()) -> None:
    """Raise ConfigError if an ``ACCEL_*`` variable is set that neither core nor a plugin knows."""
    known = {*KNOWN, *plugin_variables}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            raise ConfigError(
                f"unknown environment variable {name}={os.environ[name]!r}; "
                f"{close_matches(name, known)}"
            )


def read(name: str) -> str | None:
    """The stripped value of a known variable; None if unset or empty."""
    assert name in KNOWN, name
    return os.environ.get(name, "").strip() or None


def words(name: str) -> list[str]:
    """A variable that holds words, as a shell splits them."""
    text = read(name) or ""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} cannot be split into words: {error}") from None


def seconds(name: str, default: float) -> float:
    """A variable that holds a positive number of seconds."""
    text = read(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ConfigError(f"{name}={text!r} must be a positive number of seconds")
    return value
