"""Share: what of each product of a rollout one rank computes.

A projection's output features are split, its input never: an element of a result is then one sum
over all of K, by the same operations on one rank and on many, and what the ranks have is put beside
each other. That is why the bits are those of degree 1. Torch's ``parallelize_module`` is not used
for it: it would put DTensors in the parameters' place, which train whole here and are the only
copy, and its row-wise styles add up across ranks. A rank's part of a weight is a view of its rows.

A layer takes four gathers: of the heads' results, of what the projection back makes of them, of the
MLP's inner activations and of its results. With ``sums`` (not exact) both projections back are
split over their input instead, and one sum follows each: two of them in place of four gathers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from accel.engine.parallel.ranks import Ranks
from accel.engine.spec import DecoderSpec, StackSpec
from accel.refusal import Refusal

# Parts that cannot be even begin at multiples of so many rows, where memory is aligned.
BLOCK = 16


@dataclass(frozen=True)
class Heads:
    """A rank's: of the queries', and those of keys and values that they look at."""

    queries: slice
    keys: slice

    def counts(self) -> tuple[int, int]:
        """How many."""
        return self.queries.stop - self.queries.start, self.keys.stop - self.keys.start

    def rows(self, spec: StackSpec) -> tuple[slice, ...]:
        """The rows of the weights of queries, keys and values. Of the one weight of whole groups,
        which lie behind each other, the rows of them all."""
        queries, keys = self.queries, self.keys
        if len(spec.layer.qkv) == 3:
            starts = (0, 0, 0)
        elif spec.layer.qkv_rows == "stacked":
            starts = (0, spec.heads, spec.heads + spec.kv_heads)
        else:
            each = spec.heads // spec.kv_heads
            if self.counts()[1] > 1:
                return (_times(keys, (each + 2) * spec.head_dim),)
            before = 2 * keys.start  # keys and values of the groups before
            starts = (before, each * (keys.start + 1) + before - keys.start,
                      each * (keys.start + 1) + before + 1 - keys.start)  # fmt: skip
        return tuple(
            _times(slice(own.start + start, own.stop + start), spec.head_dim)
            for own, start in zip((queries, keys, keys), starts)
        )


class Share:
    """One rank's. ``own`` is the spec of a model with this rank's heads alone, ``heads`` are every
    rank's."""

    def __init__(self, spec: DecoderSpec, ranks: Ranks, sums: bool = False) -> None:
        self.ranks = ranks
        self.sums = sums
        self.spec = spec
        self.heads = split_heads(spec.heads, spec.kv_heads, ranks.degree)

    @property
    def mine(self) -> Heads:
        """This rank's heads."""
        return self.heads[self.ranks.rank]

    @property
    def own(self) -> DecoderSpec:
        """The spec as this rank's cache and attention see it."""
        queries, keys = self.mine.counts()
        slopes = self.spec.slopes
        slopes = None if slopes is None else slopes[self.mine.queries]
        return replace(self.spec, heads=queries, kv_heads=keys, slopes=slopes)

    @property
    def widest(self) -> DecoderSpec:
        """As :attr:`own` of a rank that keeps most."""
        return replace(self.spec, kv_heads=max(heads.counts()[1] for heads in self.heads))

    def parts(self, width: int) -> list[slice]:
        """Every rank's of so many columns."""
        return split(width, self.ranks.degree)

    def parts_of_heads(self) -> list[slice]:
        """Every rank's columns of what attention makes."""
        return [_times(heads.queries, self.spec.head_dim) for heads in self.heads]


def split(width: int, degree: int) -> list[slice]:
    """Even parts, or whole blocks of :data:`BLOCK`, or where there are few, single columns."""
    if width % degree == 0 or width < BLOCK * degree:
        return _even(width, degree)
    blocks = _even(-(-width // BLOCK), degree)
    return [slice(b.start * BLOCK, min(b.stop * BLOCK, width)) for b in blocks]


def split_heads(queries: int, keys: int, degree: int) -> list[Heads]:
    """Whole groups of queries with their key and value, as evenly as they divide; where ranks are
    more than groups, several have the same keys and values, and each some of the group's queries.
    """
    each = queries // keys
    if degree <= keys:
        groups = _even(keys, degree)
        return [Heads(slice(g.start * each, g.stop * each), g) for g in groups]
    found = []
    for key, ranks in enumerate(_even(degree, keys)):
        for part in _even(each, ranks.stop - ranks.start):
            own = slice(key * each + part.start, key * each + part.stop)
            found.append(Heads(own, slice(key, key + 1)))
    return found


def reasons(spec: DecoderSpec, degree: int) -> list[Refusal]:
    """Why the model's layers are not split over so many ranks."""
    asked, found = "inference_tp_size", []
    if degree > spec.heads:
        have = f"{spec.heads} heads for {degree} ranks"
        found.append(Refusal(asked, "at least one query head a rank", have, "a smaller degree"))
    return found


def note(spec: DecoderSpec, degree: int, sums: bool) -> str:
    """What ranks do and say to each other for a token."""
    heads = split_heads(spec.heads, spec.kv_heads, degree)
    counts = [h.counts() for h in heads]
    queries, keys = (", ".join(str(c[i]) for c in counts) for i in range(2))
    shared = sum(c[1] for c in counts) > spec.kv_heads
    again = " (some on several ranks, which are more than there are)" if shared else ""
    norms = ""
    if spec.layer.whole_qk_norms:
        norms = "; queries, keys and values are projected whole, as their norms are over all heads"
    if sums:
        kind = "2 sums a layer, behind attention and MLP (2 gathers for each where experts, an "
        kind += "adapter or a hook are)"
        why = "each adds partial products up across ranks, so that values differ by roundings"
    else:
        kind = "4 gathers a layer, of the heads, of what is projected back, of the MLP's inner "
        kind += "activations and of its result"
        why = "products are split by output features alone, so that none is added up across ranks"
    return (
        f"inference_tp_size={degree}: of the query heads a rank computes {queries}, its KV cache "
        f"keeps {keys} heads{again}{norms}. {collectives(spec, sums)} collectives a forward: "
        f"{kind}, 1 gather of the logits; {why}. Decode steps are not replayed as a graph"
    )


def collectives(spec: DecoderSpec, sums: bool) -> int:
    """How often ranks speak in one forward, without adapters or hooks."""
    experts = sum(map(spec.layer.has_experts, range(len(spec.scales))))
    each = 2 if sums else 4
    return each * len(spec.scales) + (experts if sums else 0) + 1


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _even(width: int, parts: int) -> list[slice]:
    """Their sizes differ by one at most, the longer first."""
    size, longer = divmod(width, parts)
    starts = [i * size + min(i, longer) for i in range(parts + 1)]
    return [slice(*ends) for ends in pairwise(starts)]
