"""Every op's cases, in one table. A new op adds its line; a test holds that none is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from accel.bench import bert, layers, products, rowwise, sequences
from accel.bench.case import Case
from accel.bench.layers import LayerCase
from accel.bench.sizes import SIZES, Size
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


LAYERS: dict[str, Callable[[Size], Iterator[LayerCase]]] = {
    "LinearModuleForZeroStage3": layers.zero3,
    "TiledLinear": layers.tiled_linear,
    "TiledMLP": layers.tiled_mlp,
    "TransformerLayer": bert.transformer_layer,
    "tiled_cross_entropy": layers.losses,
}


def cases(
    names: Sequence[str] | None, sizes: Sequence[str], *, backward: bool = False
) -> Iterator[Case | LayerCase]:
    """Those of the ops and layers (default: all) at the sizes. With the gradients at sizes that are
    for training, and with ``backward`` at all of them; layers only then."""
    for name in names or [*CASES, *LAYERS]:
        _known("op or layer", name, [*CASES, *LAYERS])
        for size in (SIZES[_known("size", size, SIZES)] for size in sizes):
            trains = size.backward or backward
            for maker in CASES.get(name, ()):
                for case in maker(size):
                    yield case
                    if trains:
                        yield case.with_backward()
            if trains and name in LAYERS:
                yield from LAYERS[name](size)


def _known(kind: str, name: str, table: Iterable[str]) -> str:
    if name not in table:
        raise ValueError(f"accel bench has no {kind} {name!r}; {close_matches(name, table)}")
    return name
