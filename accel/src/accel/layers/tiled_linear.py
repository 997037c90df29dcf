"""A linear layer in tiles, each a module of its own, so that idle ones can be partitioned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accel.contracts.checks import describe
from accel.errors import OpArgumentError
from accel.layers import tiled_state
from accel.layers.base import OpLayer
from accel.layers.gather import gathered
from accel.layers.hooks import has_global_hooks
from accel.layers.linear import Linear, require_linear
from accel.layers.tiled_product import multiplies_alone, tiled_product
from accel.layers.tiling import (
    check_splits,
    partition_uniform,
    sizes,
    split_tensor_along_last_dim,
)
from accel.ops.door import watched_by_torch

_OVERRIDABLE = ("_split_global_input", "_reduce_local_output", "_combine_output_splits")


class TiledLinear(OpLayer):
    """``x @ weight.T + bias`` by ``out_splits`` rows of ``in_splits`` tiles, one after the other.

    x ``[..., in_features]``, returns ``[..., out_features]``; of tiles of one row the results are
    summed, those of the rows set side by side. Tiles are modules called as modules, in
    ``linears[out][in]``: hooks fire, and sharded one by one (``fully_shard(tile)``, ZeRO-3) only
    one of them need be there at a time. Where nobody can tell, since tiles are :class:`Linear` and
    nothing hangs on them, they are only read, and each writes where its share belongs, in the time
    of a plain layer; with an exact implementation to the same bits.

    ``input_is_already_split``  the input comes as ``in_splits`` tensors
    ``combine_out_splits``      False returns a list, the results of the rows
    ``linear_cls``              ``linear_cls(in, out, bias=..., **kwargs)`` makes a tile; the last
                                of each row has the bias
    ``init_linear``             a layer whose parameters are copied
    ``recompute``               each tile keeps its input alone and computes again in the backward
    ``device``, ``dtype``       where and what the parameters are; given on to ``linear_cls``

    In half precision what a tile returns is rounded: a result is a sum of ``in_splits`` such, a
    gradient of the input one of ``out_splits``.

    Parameters start as ``nn.Linear``'s of the same seed do, unless ``linear_cls`` has an
    initialisation of its own. ``state_dict`` has a plain layer's keys, under them copies, and loads
    from a plain one's or from the tiles'; where tiles are sharded or away it has the tiles' keys,
    since a whole would have to be gathered, and so has a distributed checkpoint of them. What goes
    by ``named_parameters`` speaks of tiles: optimizers and their states, and torch's
    ``set_model_state_dict`` of a model in DDP or ``torch.compile``: give it the module inside.

    OpArgumentError, a RuntimeError and ValueError, where arguments do not fit.
    """

    uses: ClassVar[tuple[str, ...]] = ("linear", "tiled_linear")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        in_splits: int = 1,
        out_splits: int = 1,
        input_is_already_split: bool = False,
        combine_out_splits: bool = True,
        linear_cls: Callable[..., nn.Module] = Linear,
        init_linear: nn.Module | None = None,
        *,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_splits("in", in_splits, in_features)
        check_splits("out", out_splits, out_features)
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.in_splits, self.out_splits = in_splits, out_splits
        self.input_is_already_split = input_is_already_split
        self.combine_out_splits = combine_out_splits
        self.recompute = recompute
        self.in_parts = partition_uniform(in_features, in_splits)
        self.out_parts = partition_uniform(out_features, out_splits)

        made_on = {"device": device, "dtype": dtype}  # a class of tiles may take neither
        kwargs |= {name: given for name, given in made_on.items() if given is not None}
        kept: AbstractContextManager[None] = nullcontext()
        if init_linear is None and tiled_state.starts_as_torch_s(linear_cls):
            init_linear = nn.Linear(in_features, out_features, bias, device, dtype)
            kept = tiled_state.generators_kept(init_linear.weight.device)
        with kept:
            self.linears = nn.ModuleList(
                nn.ModuleList(
                    linear_cls(columns, rows, bias=bias and i == in_splits - 1, **kwargs)
                    for i, columns in enumerate(sizes(self.in_parts))
                )
                for rows in sizes(self.out_parts)
            )
        if init_linear is not None:
            self.copy_params_from(init_linear)

        tiled_state.register_hooks(self)

    # -- the product ---------------------------------------------------------------------------

    def forward(self, input_: Tensor | Sequence[Tensor]) -> Any:
        if self._only_reads(input_):
            weights = [[tile.weight for tile in row] for row in self._rows]
            biases = [row[-1].bias for row in self._rows] if self.use_bias else []
            return tiled_product(cast(Tensor, input_), weights, biases)
        inputs = self._split(input_)
        outputs = [self._row(out_id, inputs) for out_id in range(self.out_splits)]
        return self._combine_output_splits(outputs) if self.combine_out_splits else outputs

    @property
    def _rows(self) -> list[list[Any]]:
        return [list(row) for row in self.linears]  # type: ignore[call-overload]

    def _only_reads(self, input_: Any) -> bool:
        """True if nobody can tell whether the tiles are called or only read."""
        plain = self.combine_out_splits and not (self.input_is_already_split or self.recompute)
        own = all(getattr(type(self), name) is getattr(TiledLinear, name) for name in _OVERRIDABLE)
        if not (plain and own) or watched_by_torch((input_,)) or has_global_hooks():
            return False
        whole = input_.shape[-1:] == (self.in_features,)
        return whole and all(multiplies_alone(tile) for row in self._rows for tile in row)

    def _split(self, input_: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        if not self.input_is_already_split:
            if not isinstance(input_, Tensor):
                raise TypeError(
                    f"{type(self).__name__}: the input must be one torch.Tensor, not "
                    f"{type(input_).__name__}; tiles of it need input_is_already_split=True"
                )
            self._check_width(input_)
            if self.in_splits == 1:
                return [input_]
            # Of the input's own size: a model-parallel process has a share of the columns.
            parts = partition_uniform(input_.shape[-1], self.in_splits) if input_.dim() else [0]
            return self._split_global_input(input_, sizes(parts))
        found = 1 if isinstance(input_, Tensor) else len(input_)
        if found != self.in_splits:
            raise OpArgumentError(
                f"{type(self).__name__}: the input must be split into in_splits = "
                f"{self.in_splits} tensors; found {found}"
            )
        return [input_] if isinstance(input_, Tensor) else input_

    def _check_width(self, input_: Tensor) -> None:
        widths = [getattr(tile, "in_features", -1) for tile in self._rows[0]]
        if -1 not in widths and input_.shape[-1:] != (sum(widths),):
            raise OpArgumentError(
                f"{type(self).__name__}: the input must be [..., {sum(widths)}], of the tiles' "
                f"in_features {widths}; found {describe(input_)}"
            )

    def _row(self, out_id: int, inputs: Sequence[Tensor]) -> Any:
        """The result of one row of tiles."""
        total = None
        for in_id, (tile, x) in enumerate(zip(self.linears[out_id], inputs)):  # type: ignore[call-overload]
            if total is not None and self._accumulates(tile):
                total = tile(x, total)
            else:
                total = self._reduce_local_output(
                    in_id=in_id, out_id=out_id, current_out=total, new_out=self._call(tile, x)
                )
        return total

    def _accumulates(self, tile: nn.Module) -> bool:
        """True if the tile itself adds to a partial sum, nobody has said how to add instead, and
        the partial sum is not kept for computing the tile again."""
        own = type(self)._reduce_local_output is TiledLinear._reduce_local_output
        return own and not self.recompute and getattr(tile, "takes_partial", False)

    def _call(self, tile: nn.Module, x: Tensor) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(tile, x, use_reentrant=False)
        return tile(x)

    # -- what subclasses override --------------------------------------------------------------

    def _split_global_input(self, input: Tensor, split_sizes: list[int]) -> Sequence[Tensor]:
        return split_tensor_along_last_dim(input, split_sizes)

    def _reduce_local_output(self, in_id: int, out_id: int, current_out: Any, new_out: Any) -> Any:
        """The sum of a row so far and the result of tile ``in_id``; ``current_out`` is None at
        first. A tile's own result may be kept by its backward or a hook, a sum made here is not."""
        if current_out is None:
            return new_out
        return current_out + new_out if in_id == 1 else current_out.add_(new_out)

    def _combine_output_splits(self, outputs: Sequence[Any]) -> Any:
        return torch.cat(tuple(outputs), dim=-1) if len(outputs) > 1 else outputs[0]

    # -- parameters ----------------------------------------------------------------------------

    @property
    def tiles(self) -> tiled_state.Tiles:
        """The names of the tiles of ``weight`` and ``bias``, row by row."""
        last = self.in_splits - 1
        rows = range(self.out_splits)
        weight = [[f"linears.{o}.{i}.weight" for i in range(self.in_splits)] for o in rows]
        bias = [[f"linears.{o}.{last}.bias"] for o in rows]
        return {"weight": weight, "bias": bias} if self.use_bias else {"weight": weight}

    def plain_shape(self, name: str) -> torch.Size:
        """Of the ``weight`` or ``bias`` of the layer that this one is in tiles."""
        shape = (self.out_features, self.in_features)
        return torch.Size(shape if name == "weight" else shape[:1])

    @property
    def weight(self) -> Tensor:
        """A copy of ``[out_features, in_features]``; a collective where tiles are sharded."""
        return tiled_state.read(self, self.tiles["weight"])

    @property
    def bias(self) -> Tensor | None:
        """A copy of ``[out_features]``, or None; a collective where tiles are sharded."""
        return tiled_state.read(self, self.tiles["bias"]) if self.use_bias else None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            raise AttributeError(tiled_state.UNSETTABLE.format(type(self).__name__, name))
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draw as ``nn.Linear`` does, for the whole and not tile by tile."""
        like = self.get_parameter(self.tiles["weight"][0][0])
        self.copy_params_from(
            nn.Linear(self.in_features, self.out_features, self.use_bias, like.device, like.dtype)
        )

    def copy_params_from(self, other: nn.Module) -> None:
        """Copy weight and bias of a plain linear layer, of any dtype and device, whole or sharded.

        Where parameters are sharded all processes call this, and the first one's values count.
        OpArgumentError, and nothing is copied, where a shape differs or only one has a bias.
        """
        given = {name: getattr(other, name, None) for name in ("weight", "bias")}
        with gathered(*given.values()):
            for name, value in given.items():
                self._check_plain(name, value, other)
            for name, rows in self.tiles.items():
                value = tiled_state.whole(given[name]).detach()
                values = tiled_state.cut(value, self.out_parts, self.in_parts, name)
                tiled_state.write(self, rows, values)

    def _check_plain(self, name: str, value: Any, other: nn.Module) -> None:
        want = list(self.plain_shape(name)) if name in self.tiles else None
        have = None if value is None else list(value.shape)
        if want != have:
            raise OpArgumentError(
                f"{type(self).__name__}: the {name} to copy must be {want}; found {have} in "
                f"{type(other).__name__}"
            )

    @classmethod
    def from_linear(
        cls, module: nn.Linear, in_splits: int = 1, out_splits: int = 1, **options: Any
    ) -> TiledLinear:
        """A copy of ``module`` in tiles; ``options`` are the constructor's. Its device, dtype, mode
        and what of it needs no gradient stay."""
        require_linear(cls, module)
        if getattr(module, "act", None) is not None:
            raise OpArgumentError(f"{cls.__name__}: has no activation; found act={module.act!r}")
        like = {"device": module.weight.device, "dtype": module.weight.dtype}
        bias = module.bias is not None
        made = cls(
            module.in_features, module.out_features, bias, in_splits, out_splits,
            init_linear=module, **{**like, **options},
        )  # fmt: skip
        for name, rows in made.tiles.items():
            for tile in (tile for row in rows for tile in row):
                made.get_parameter(tile).requires_grad_(getattr(module, name).requires_grad)
        return made.train(module.training)

    def to_linear(self) -> nn.Linear:
        """A plain layer with copies of the parameters; a collective where tiles are sharded."""
        made = nn.Linear(self.in_features, self.out_features, self.use_bias, device="meta")
        for name, rows in self.tiles.items():
            needs = self.get_parameter(rows[0][0]).requires_grad
            setattr(made, name, nn.Parameter(tiled_state.read(self, rows), requires_grad=needs))
        return made.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.use_bias}, in_splits={self.in_splits}, out_splits={self.out_splits}"
        )
