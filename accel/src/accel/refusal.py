"""A refusal: why a candidate (a backend, an implementation, an ability) was not taken, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Refusal:
    """One reason, for people and for programs.

    ``code``    a short stable word to match on: ``"dtype"``, ``"device"``, ``"compiler"``, ...
    ``want``    what would have been needed
    ``have``    what was found
    ``remedy``  what the user can do about it; where nothing brings it, what serves instead
    """

    code: str
    want: str
    have: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"[{self.code}] needs {self.want}, found {self.have}"
        return f"{text} ({self.remedy})" if self.remedy else text

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def sentence(refusals: Iterable[Refusal]) -> str:
    """All reasons on one line."""
    return "; ".join(str(refusal) for refusal in refusals)
