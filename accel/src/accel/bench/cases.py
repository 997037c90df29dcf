"""Every op's cases, in one table. A new op adds its line; a test holds that none is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from accel.bench import products, rowwise, sequences
from accel.bench.case import Case
from accel.bench.sizes import SIZES, Size
from accel.contracts import CONTRACTS
from accel.errors import close_matches

CASES: dict[str, tuple[Callable[[Size], Iterator[Case]], ...]] = {
    "linear": (products.linear,),
    "gated_linear": (products.gated_linear,),
    "norm_linear": (products.norm_linear,),
    "lora_linear": (products.lora_linear,),
    "quantized_linear": (products.quantized_linear,),
    "grouped_linear": (products.grouped_linear,),
    "tiled_linear": (products.tiled_linear,),
    "tiled_mlp": (products.tiled_mlp,),
    "logprob": (products.logprob, rowwise.logprob),
    "attention": (sequences.attention,),
    "transformer_layer": (sequences.transformer_layer,),
    "rms_norm": (rowwise.rms_norm,),
    "layer_norm": (rowwise.layer_norm,),
    "add_norm": (rowwise.add_norm,),
    "bias_act": (rowwise.bias_act,),
    "rotary": (rowwise.rotary,),
    "softmax": (rowwise.softmax,),
    "dropout_add": (rowwise.dropout_add,),
    "embedding": (rowwise.embedding,),
}


def cases(
    ops: Sequence[str] | None, sizes: Sequence[str], *, backward: bool = False
) -> Iterator[Case]:
    """Those of the ops (default: all) at the sizes, by name; ``backward`` adds to each forward
    case the same with its gradients."""
    for op in ops or CASES:
        for size in sizes:
            for maker in CASES[_known("op", op, CASES)]:
                for case in maker(SIZES[_known("size", size, SIZES)]):
                    if not case.size.backward:
                        yield case
                    if case.size.backward or backward:
                        yield case.with_backward()


def _known(kind: str, name: str, table: Iterable[str]) -> str:
    if name not in table:
        raise ValueError(f"accel bench has no {kind} {name!r}; {close_matches(name, table)}")
    return name


assert CASES.keys() == CONTRACTS.keys()
