"""Settings: fixed once made, read from dicts and JSON files, with errors that help."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

from accel.errors import ConfigError, close_matches


class Fixed:
    """Base of dataclasses that nothing writes to once they are made, so that they can be shared.

    In place of ``frozen=True``, whose error says neither why nor what to do instead.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        known = type(self).__dataclass_fields__  # type: ignore[attr-defined]
        if name in known and name not in self.__dict__:  # the first time, by __init__
            object.__setattr__(self, name, value)
            return
        offer = (
            f"make another by dataclasses.replace(config, {name}={value!r:.80})"
            if name in known
            else f"and has no setting {name!r}"
        )
        raise FrozenInstanceError(f"{type(self).__name__} may be shared and is fixed; {offer}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"{type(self).__name__} may be shared and is fixed")


def require_known(settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """ConfigError with near names for a key that is no setting."""
    known = list(known)
    for key in settings:
        if key not in known:
            raise ConfigError(f"unknown setting {key!r}; {close_matches(str(key), known)}")


def read_json(json_file: str | os.PathLike[str]) -> dict[str, Any]:
    """The one JSON object of a file in UTF-8 or UTF-16, with or without a byte order mark.

    ConfigError for another encoding, for what is no JSON and for JSON that is no object.
    """
    try:
        settings = json.loads(_decoded(Path(json_file).read_bytes()))
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise ConfigError(f"{json_file} is no JSON in UTF-8 or UTF-16: {error}") from None
    if not isinstance(settings, dict):
        found = type(settings).__name__
        raise ConfigError(f"{json_file} must hold one JSON object; found a {found}")
    return settings


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    # JSON starts with an ASCII character, of which UTF-16 makes one zero byte.
    if data[:1] == b"\0":
        return data.decode("utf-16-be")
    if data[1:2] == b"\0":
        return data.decode("utf-16-le")
    return data.decode("utf-8-sig")
