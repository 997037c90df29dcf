"""Memory that is not the kernel's to read, to write or to give away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel_conformance.faults.planting import Kernel, faults_of

fault = faults_of("memory")


@fault("accuracy", "ops/*/layout_transposed", "ops/*/layout_sliced", also="contained guarded")
def strides_ignored(kernel: Kernel) -> Kernel:
    """Rows are read from x's storage as if they lay one behind the other."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        if x.is_contiguous() or 0 in x.stride():
            return kernel(x, *rest)
        return kernel(x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride(), 0), *rest)

    return faulty


@fault("accuracy", "ops/*", also="repeatable contained unharmed rows guarded current")
def unwritten_n_tail(kernel: Kernel) -> Kernel:
    """The last column is never written: it holds what the memory held."""

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        unwritten = torch.empty_like(result)
        unwritten[..., :-1] = result[..., :-1]
        return unwritten

    return faulty


@fault(
    "repeatable", "ops/*", "gradients/*", also="accuracy contained unharmed rows current guarded"
)
def stale_last_row(kernel: Kernel) -> Kernel:
    """The last row is that of the call before."""
    stale: dict[Any, Tensor] = {}

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        if result.numel() and result.dim() > 1:
            key = (result.shape, result.dtype)
            last = result[..., -1, :].clone()
            result[..., -1, :] = stale.get(key, torch.zeros_like(last))
            stale[key] = last
        return result

    return faulty


@fault(
    "inputs_kept",
    "ops/*",
    also="accuracy repeatable contained unharmed rows works gradient current guarded",
)
def input_overwritten(kernel: Kernel) -> Kernel:
    """x is changed where it lies, as by a kernel that prepares its input in place."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        if x.numel() and 0 not in x.stride():
            x[..., 0].neg_()
        return result

    return faulty


@fault(
    "fresh", "ops/*", "gradients/*", op="rms_norm",
    also="inputs_kept accuracy repeatable contained unharmed rows padded works gradient current "
         "guarded",
)  # fmt: skip
def result_in_the_input(kernel: Kernel) -> Kernel:
    """The result is written over x."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        return result if 0 in x.stride() else x.copy_(result)

    return faulty


@fault("fresh", "ops/*", also="repeatable contained rows")
def one_buffer_for_all(kernel: Kernel) -> Kernel:
    """Results of one shape share their memory."""
    buffers: dict[Any, Tensor] = {}

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        return buffers.setdefault((result.shape, result.dtype), result).copy_(result)

    return faulty


@fault("accuracy", "ops/*/layout_sliced", also="contained rows guarded")
def offset_ignored(kernel: Kernel) -> Kernel:
    """x is read from the start of its storage."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        if not x.storage_offset() or not x.numel():
            return kernel(x, *rest)
        return kernel(x.as_strided(x.shape, x.stride(), 0), *rest)

    return faulty


@fault("accuracy", "ops/*/layout_transposed", "ops/*/layout_sliced", also="guarded contained")
def strides_of_the_weight_ignored(kernel: Kernel) -> Kernel:
    """The weight is read as if its rows lay one behind the other."""

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        plain = torch.empty(w.shape, device="meta").stride()
        if w.stride() == plain or 0 in w.stride():
            return kernel(x, w, *rest)
        return kernel(x, w.as_strided(w.shape, plain, w.storage_offset()), *rest)

    return faulty


PREPARED = "accuracy guarded rows unharmed contained repeatable gradient"


@fault("current", "guards/*/values_replaced", also=PREPARED)
def weight_prepared_once(kernel: Kernel) -> Kernel:
    """A weight is prepared when it is first seen, and known again by its place in memory."""
    return _with_prepared(kernel, _place)


@fault("current", "guards/*/values_replaced", also=PREPARED)
def weight_prepared_until_its_version_moves(kernel: Kernel) -> Kernel:
    """A weight is prepared again when torch counts a change, which one through data is not."""
    return _with_prepared(kernel, lambda w: (*_place(w), w._version))


def _with_prepared(kernel: Kernel, known_by: Callable[[Tensor], Any]) -> Kernel:
    prepared: dict[Any, Tensor] = {}
    return lambda x, w, *rest: kernel(x, prepared.setdefault(known_by(w), w.clone()), *rest)


def _place(w: Tensor) -> tuple[Any, ...]:
    return w.data_ptr(), w.shape, w.stride(), w.dtype, w.device


@fault("guarded", "guards/*/nan_beside", also="rows contained")
def reads_past_the_row(kernel: Kernel) -> Kernel:
    """What lies behind a row is read, and counts zero times."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride())) + 1
        if x.numel() and end < x.untyped_storage().nbytes() // x.element_size():
            result += 0 * x.as_strided((1,), (1,), end).to(result.dtype)
        return result

    return faulty


@fault(
    "inputs_kept",
    "ops/*",
    op="rms_norm",
    also="accuracy guarded repeatable gradient unharmed contained current rows padded works",
)
def weight_widened_in_place(kernel: Kernel) -> Kernel:
    """The weight is changed where it lies, as by a kernel that prepares it there."""

    def faulty(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        result = kernel(x, w, eps)
        if w is not None:
            w[:1] *= 2
        return result

    return faulty


@fault("fresh", "ops/*", "gradients/*", op="add_norm",
       also="inputs_kept accuracy repeatable contained rows unharmed gradient guarded works "
            "current padded")  # fmt: skip
def sum_in_the_residual(kernel: Kernel) -> Kernel:
    """The sum is written over the residual."""

    def faulty(x: Tensor, residual: Tensor, *rest: Any) -> Any:
        y, total = kernel(x, residual, *rest)
        return y, total if 0 in residual.stride() else residual.copy_(total)

    return faulty


@fault("fresh", "ops/*", op="logprob", also="repeatable")
def results_in_one_storage(kernel: Kernel) -> Kernel:
    """Both results are views of one piece of memory."""

    def faulty(*args: Any) -> Any:
        return tuple(torch.stack(kernel(*args)))

    return faulty


def columns_beside(out: Tensor) -> Tensor:
    """``out`` with one column more, where there is memory for it."""
    return out.as_strided((*out.shape[:-1], out.shape[-1] + 1), out.stride())


@fault("placed", "ops/*", op="tiled_linear", role="into")
def written_too_far(kernel: Kernel) -> Kernel:
    """One column more is written than out has."""

    def into(*args: Any) -> None:
        *inputs, out = args
        out.copy_(kernel(*inputs, out.dtype))
        if out.numel() and out.dim() > 1 and out.stride(-2) > out.shape[-1]:
            columns_beside(out)[..., -1] = 0

    return into


@fault("placed", "ops/*", op="tiled_linear", role="into")
def partial_overwritten(kernel: Kernel) -> Kernel:
    """Where out is the partial sum it is written over, not added to."""

    def into(x: Tensor, w: Tensor, b: Any, partial: Tensor | None, out: Tensor) -> None:
        known = None if partial is out else partial
        out.copy_(kernel(x, w, b, known, out.dtype))

    return into


@fault("placed", "ops/*", op="tiled_linear", role="into")
def added_to_what_was_there(kernel: Kernel) -> Kernel:
    """The result is added to what out held, partial sum or not."""

    def into(x: Tensor, w: Tensor, b: Any, partial: Tensor | None, out: Tensor) -> None:
        found = kernel(x, w, b, partial, out.dtype)
        out.copy_(found if partial is not None else out + found)

    return into


@fault("placed", "ops/*", op="tiled_linear", role="into")
def rows_of_out_without_gaps(kernel: Kernel) -> Kernel:
    """The result is written as if out's rows lay one behind the other."""

    def into(*args: Any) -> None:
        *inputs, out = args
        plain = torch.empty(out.shape, device="meta").stride()
        out.as_strided(out.shape, plain).copy_(kernel(*inputs, out.dtype))

    return into


@fault("current", "guards/*/values_replaced",
       also="accuracy guarded unharmed contained fresh repeatable gradient")  # fmt: skip
def result_known_by_its_place(kernel: Kernel) -> Kernel:
    """A call with tensors that lie where those of an earlier call lay gives the earlier result."""
    known: dict[Any, Tensor] = {}

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        place = (x.data_ptr(), x.stride(), w.data_ptr(), w.stride(), x.dtype, x.shape, w.shape)
        return known.setdefault((*place, *rest[1:]), kernel(x, w, *rest)).clone()

    return faulty


@fault("undisturbed", "guards/*/torch_undisturbed", also="contained repeatable")
def one_thread_for_all(kernel: Kernel) -> Kernel:
    """Torch is left with another number of threads."""

    def faulty(*args: Any) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() % 2 + 1)
        return kernel(*args)

    return faulty


@fault("undisturbed", "guards/*/torch_undisturbed")
def random_numbers_spent(kernel: Kernel) -> Kernel:
    """Torch's random numbers are used up by an op that has a seed or none."""

    def faulty(*args: Any) -> Tensor:
        torch.rand(4)
        return kernel(*args)

    return faulty
