"""How torch's operations reach the toy device, and how the device is registered with torch.

Two thousand operations, one kernel. It has torch's meta kernels say what an operation returns,
allocates that, and queues the operation on the current stream; there, torch's CPU kernel does the
arithmetic over the device's memory. Views compute nothing, so they are made at once.

What torch (2.13) leaves a device written in Python without:

- `torch.accelerator.synchronize`, its `memory_*` functions and `torch.Generator("toy")` raise, and
  its `current_stream()` is a stand-in: ask `torch.get_device_module("toy")`. There is one device.
- A storage cannot be resized (`untyped_storage().resize_()`): a tensor that `resize_` makes larger
  gets a new one, which its views do not see.
- `torch.compile` works with `backend="aot_eager"`; inductor has no code for the device.
- `pin_memory()` raises: pinned memory needs C++. `.to("cpu", non_blocking=True)` blocks.
- `torch.library.opcheck` has no `test_autograd_registration` for a private device.
- LSTM and GRU raise, since torch wants fused kernels for them, which the CPU does not have; so do
  EmbeddingBag, whose meta and CPU kernels disagree, and sparse tensors.
- A process has one private device, for good; it becomes `torch.accelerator.current_accelerator()`.
- `Tensor.record_stream` takes torch's own streams only. Nor is it needed: queued work keeps its
  memory alive, so the fault that it is there against, memory reused too early, is not simulated.

An operation takes about half a millisecond: the device is for tests.
"""

import contextlib
import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch.amp.autocast_mode import _cast
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from accel_toy import memory, runtime

aten = torch.ops.aten
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

_SETUP = "_setup_privateuseone_for_python_backend"

# Once their results are allocated, nothing is left to compute.
_ALLOCATIONS = {aten.empty.memory_format, aten.empty_strided.default, aten.resize_.default}

# What autocast computes in its lower precision, and what in float32.
_MATMULS = ["linear", "matmul", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm"]
_LOWER = [*_MATMULS, "convolution", "scaled_dot_product_attention"]
_FLOAT32 = ["layer_norm", "softmax.int", "log_softmax.int", "nll_loss", "mse_loss"]

# A registration lasts as long as the library object it was made through.
_libraries: list[torch.library.Library] = []


@functools.cache
def _is_known(op: torch._ops.OpOverload) -> bool:
    computes = torch._C._dispatch_has_computed_kernel_for_dispatch_key(op.name(), "CPU")
    return op.namespace == "aten" and computes


@functools.cache
def _is_view(op: torch._ops.OpOverload) -> bool:
    aliases = [result.alias_info for result in op._schema.returns if result.alias_info]
    return op._schema.name == "aten::set_" or any(not alias.is_write for alias in aliases)


@functools.cache
def _needs_values(op: torch._ops.OpOverload) -> bool:
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(op.tags)


def _span(tensor: torch.Tensor) -> int:
    """How many elements of its storage `tensor` reaches over, from its first to its last."""
    steps = zip(tensor.size(), tensor.stride())
    return 1 + sum((n - 1) * stride for n, stride in steps) if tensor.numel() else 0


def _empty_like(image: torch.Tensor) -> torch.Tensor:
    raw = memory.allocate(_span(image) * image.element_size())
    flat = aten.view.dtype.redispatch(_CPU, raw, image.dtype)
    return aten.as_strided.default.redispatch(_CPU, flat, image.size(), image.stride())


def _resize(tensor: torch.Tensor, image: torch.Tensor) -> None:
    """Give `tensor` the geometry that an operation gave its image: `resize_`, or some `out=`."""
    storage, offset = tensor.untyped_storage(), tensor.storage_offset()
    nbytes = (offset + _span(image)) * image.element_size()
    if nbytes > storage.nbytes():
        larger = memory.allocate(nbytes)
        old = torch.empty(0, dtype=torch.uint8, device="toy").set_(storage)
        _copy(old, larger[: storage.nbytes()])
        storage = larger.untyped_storage()
    set_storage = aten.set_.source_Storage_storage_offset
    set_storage.redispatch(_CPU, tensor, storage, offset, image.size(), image.stride())


def _is_toy(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "toy"


def _on_meta(leaf: object) -> object:
    if _is_toy(leaf):
        return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def _on_host(leaf: object) -> object:
    if _is_toy(leaf):
        return memory.host_alias(leaf)
    if isinstance(leaf, torch.Tensor):
        return leaf.clone()  # its value now: the host may change it before the device gets there
    if isinstance(leaf, torch.Generator):
        return None  # it has given its seed already
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _on_toy(results: object, images: list[object], leaves: list[object]) -> object:
    """Results on the device: an operand, where its image was given back, or else new memory."""
    operand = {id(image): leaf for image, leaf in zip(images, leaves)}
    return pytree.tree_map_only(
        torch.Tensor, lambda r: operand[id(r)] if id(r) in operand else _empty_like(r), results
    )


def _put(target: object, result: object) -> None:
    if isinstance(target, torch.Tensor) and isinstance(result, torch.Tensor) and result.numel():
        target.copy_(result)


def _call(
    op: torch._ops.OpOverload, spec: pytree.TreeSpec, seed: int | None, leaves: list[object]
) -> object:
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    with contextlib.nullcontext() if seed is None else torch.random.fork_rng(devices=()):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        return op(*args, **kwargs)


def _callable(op: torch._ops.OpOverload, args: tuple[object, ...]) -> Callable:
    """`op`, or its packet of overloads where a number stands in place of a tensor.

    Of `x.remainder_(2)` torch makes `remainder_.Tensor`, and hands that to Python with the number
    2 again, which the overload itself may not take. The packet finds one that does.
    """
    for value, declared in zip(args, op._schema.arguments):
        if isinstance(declared.type, torch.TensorType) and isinstance(value, int | float | complex):
            return op.overloadpacket
    return op


def _foresee(
    op: torch._ops.OpOverload, call: Callable, leaves: list[object]
) -> tuple[list[object], object] | None:
    """Images of the operands on meta, and what they give; None where only values can tell."""
    if not _needs_values(op):
        with contextlib.suppress(NotImplementedError):  # meta has no kernel for it
            images = [_on_meta(leaf) for leaf in leaves]
            return images, call(images)
    return None


def _kernel(op: torch._ops.OpOverload, *args: object, **kwargs: object) -> object:
    """The kernel of every operation that has no other."""
    if not _is_known(op):
        raise NotImplementedError(f"{op} has no kernel for the toy device")
    if _is_view(op):
        return op.redispatch(_CPU, *args, **kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for device in leaves:
        if isinstance(device, torch.device):
            runtime.set_device(device)  # which refuses toy:1
    strangers = [x for x in leaves if isinstance(x, torch.Tensor) and x.is_cpu and x.dim()]
    if strangers and "index" not in op._schema.name:
        raise RuntimeError(f"{op}: expected all tensors on toy:0, but at least one is on cpu")
    seed = None
    if torch.Tag.nondeterministic_seeded in op.tags:
        seed = runtime.draw_seed(next((x for x in leaves if isinstance(x, torch.Generator)), None))
    call = functools.partial(_call, _callable(op, args), spec, seed)
    stream = runtime.current_stream()

    foreseen = _foresee(op, call, leaves)
    if foreseen:
        images, results = foreseen
    else:
        stream.synchronize()
        images = [_on_host(leaf) for leaf in leaves]
        results = runtime.run(call, images)
    outputs = _on_toy(results, images, leaves)
    for leaf, image in zip(leaves, images):
        if _is_toy(leaf) and (leaf.shape, leaf.stride()) != (image.shape, image.stride()):
            _resize(leaf, image)

    if op not in _ALLOCATIONS:
        hosts, targets = [_on_host(leaf) for leaf in leaves], pytree.tree_map(_on_host, outputs)
        stream.submit(lambda: pytree.tree_map(_put, targets, call(hosts) if foreseen else results))
    return outputs


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """`target.copy_(source)`, where at least one of the two is on the device."""
    stream, values = runtime.current_stream(), _on_host(source)
    if target.is_cpu:
        stream.synchronize()
        runtime.run(target.copy_, values)
    else:
        stream.submit(functools.partial(memory.host_alias(target).copy_, values))
    return target


def _to_copy(
    x: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """`x.to(...)`, always blocking: torch's own would pin memory for `non_blocking`."""
    memory_format = memory_format or torch.preserve_format
    return torch.empty_like(x, dtype=dtype, device=device, memory_format=memory_format).copy_(x)


def _layer_norm(*args: object) -> object:
    """As the CPU has it; torch's own for any device rounds half precision at every step."""
    return _kernel(aten.native_layer_norm.default, *args)


def _convolution(*args: object) -> object:
    return _kernel(aten.convolution.default, *args)


def _convolution_backward(
    grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, *args: object
) -> object:
    return _kernel(aten.convolution_backward.default, grad, input, weight, [grad.size(1)], *args)


def _autocast(name: str, dtype: torch.dtype | None) -> Callable:
    """Operation `name` with its operands cast to `dtype`, or else to what autocast is set to."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(aten, packet), overload or "default")

    def kernel(*args: object, **kwargs: object) -> object:
        to = dtype or torch.get_autocast_dtype("toy")
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*_cast(args, "toy", to), **_cast(kwargs, "toy", to))

    return kernel


def refusal() -> str | None:
    """Why this process cannot have the toy device, or None. Asking changes nothing."""
    if not (hasattr(torch._C, "_acc") and hasattr(backend_registration, _SETUP)):
        return f"torch {torch.__version__} cannot register a device written in Python; 2.13 can"
    name = torch._C._get_privateuse1_backend_name()
    if name != "privateuseone" and getattr(torch, name, None) is not runtime:
        return f"torch allows one private device in a process, and {name!r} is registered already"
    return None


@functools.cache
def register() -> ModuleType:
    """Make "toy" a device of this process, for good; return its device module. Once is enough."""
    if reason := refusal():
        raise RuntimeError(reason)
    getattr(backend_registration, _SETUP)("toy", runtime)
    every, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((every, library))
    fall_through = torch.library.fallthrough_kernel
    every.fallback(_kernel, "PrivateUse1")
    every.fallback(fall_through, "AutocastPrivateUse1")
    library.impl("_copy_from", _copy, "PrivateUse1")
    for bit in ("Conjugate", "Negative"):  # else torch resolves the bit by a copy, without end
        library.impl("_copy_from", fall_through, bit)
    library.impl("_to_copy", _to_copy, "PrivateUse1")
    library.impl("native_layer_norm", _layer_norm, "PrivateUse1")
    library.impl("convolution_overrideable", _convolution, "PrivateUse1")
    library.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    for name in _LOWER + _FLOAT32:
        dtype = torch.float32 if name in _FLOAT32 else None
        library.impl(name, _autocast(name, dtype), "AutocastPrivateUse1")
    torch.UntypedStorage.__new__ = memory.new_storage
    return runtime
