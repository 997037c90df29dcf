"""An accel backend in the place of DeepSpeed's accelerator.

    accel.deepspeed.set_deepspeed_accelerator()         # the one in force here, or a backend's name
    engine, *_ = deepspeed.initialize(model=model, ...)

DeepSpeed takes a subclass of its abstract class, whose members grow with its versions. So the
subclass is made when it is asked for, over the members that the installed one has. What accel's
accelerators answer under the same name is theirs; what only DeepSpeed has stands here.
"""

from __future__ import annotations

import functools
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from accel import selection
from accel.accelerator import Accelerator
from accel.deepspeed.builders import FOR_DEEPSPEED
from accel.errors import UnsupportedCapability
from accel.op_builder import FAMILIES

# DeepSpeed's package of builders, whose names are bound to those of one accelerator at its import.
_BUILDERS = "deepspeed.ops.op_builder"
# Of DeepSpeed's class, not ours: they choose between a pool of its own and what torch pins.
_DISPATCHING = frozenset({"pin_memory", "is_pinned", "unpin_memory"})


def set_deepspeed_accelerator(choice: str | Accelerator | None = None) -> Any:
    """Have DeepSpeed run on an accel backend, from now on and in this process.

    ``choice`` is a backend's name or an accelerator; by default the one that
    :func:`accel.get_accelerator` finds. Returns what DeepSpeed's ``get_accelerator()`` does then.
    Call it before ``deepspeed.initialize`` and before models are made under ``zero.Init``: what
    DeepSpeed has put on a device stays there.

    UnsupportedCapability where DeepSpeed is not installed, or torch.distributed has no backend for
    the device; then nothing was changed. What DeepSpeed asks of a device and it cannot do raises
    that too, when it is asked.
    """
    if choice is None:
        accelerator = selection.get_accelerator()
    else:
        with selection.use_accelerator(choice) as accelerator:
            pass
    accelerator.require("collectives")
    theirs = _deepspeed()
    made = adapted(accelerator)
    theirs.set_accelerator(made)
    _bind_builders_of(made)
    return made


def adapted(accelerator: Accelerator) -> Any:
    """``accelerator`` as an object of DeepSpeed's abstract class; DeepSpeed is told nothing of it.

    ``accelerator``, its attribute, is the one given. A member that a newer DeepSpeed has added and
    nobody here knows raises UnsupportedCapability when it is called.
    """
    base: Any = _deepspeed().DeepSpeedAccelerator
    members = {}
    for name in (n for n in dir(base) if not n.startswith("_") and n not in _DISPATCHING):
        if hasattr(_Answers, name):
            continue
        if hasattr(Accelerator, name):
            members[name] = _forwarded(name, isinstance(getattr(base, name), property))
        elif name in base.__abstractmethods__:
            members[name] = _unknown(name)
    body = {"__module__": __name__, **members}
    return type("AdaptedAccelerator", (_Answers, base), body)(accelerator)


class _Answers:
    """The members that DeepSpeed has and accel's accelerators have not, or mean otherwise."""

    BFloat16Tensor = property(lambda self: self._made(torch.bfloat16))
    ByteTensor = property(lambda self: self._made(torch.uint8))
    DoubleTensor = property(lambda self: self._made(torch.float64))
    FloatTensor = property(lambda self: self._made(torch.float32))
    HalfTensor = property(lambda self: self._made(torch.float16))
    IntTensor = property(lambda self: self._made(torch.int32))
    LongTensor = property(lambda self: self._made(torch.int64))

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._name = accelerator.device_type  # DeepSpeed moves tensors to it
        self._communication_backend_name = accelerator.communication_backend_name()
        # What DeepSpeed had before there was any of ours.
        own = _deepspeed().get_accelerator()
        self._deepspeeds_own = getattr(own, "_deepspeeds_own", own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.accelerator, name)

    def _made(self, dtype: torch.dtype) -> Any:
        return functools.partial(torch.tensor, dtype=dtype, device=self.accelerator.device())

    # -- devices and streams ---------------------------------------------------------------

    def set_device(self, device_index: int) -> None:
        """DeepSpeed numbers devices by local rank; what has no numbers is shared by all of them."""
        if self.accelerator.indexed:
            self.accelerator.set_device(device_index)

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """None, which DeepSpeed has where it made no stream, is the current one."""
        return nullcontext() if stream is None else self.accelerator.stream(stream)

    def is_current_stream_capturing(self) -> bool:
        found = getattr(self.accelerator.module, "is_current_stream_capturing", None)
        return bool(found()) if found is not None else False

    def lazy_call(self, callback: Any) -> None:
        """Call it, now: accel's devices start when they are used."""
        callback()

    # -- memory ----------------------------------------------------------------------------

    def empty_cache(self) -> None:
        """Give back what can be: ZeRO-3 hints at it, also where a device keeps nothing."""
        with suppress(UnsupportedCapability):
            self.accelerator.empty_cache()

    def memory_stats(self, device_index: int | None = None) -> dict[str, Any]:
        """The counters there are, which ZeRO-3 looks through at every step; of a device that counts
        nothing none. Figures asked for one by one are refused there."""
        counts = self.accelerator.supports("memory_stats")
        return self.accelerator.memory_stats(device_index) if counts else {}

    def memory_cached(self, device_index: int | None = None) -> int:
        return self.accelerator.memory_reserved(device_index)

    def max_memory_cached(self, device_index: int | None = None) -> int:
        return self.accelerator.max_memory_reserved(device_index)

    def reset_max_memory_cached(self, device_index: int | None = None) -> None:
        self.accelerator.reset_peak_memory_stats(device_index)

    def _torch_pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.pin_memory(tensor)

    def _torch_empty_pinned(self, tensor: torch.Tensor, shape: Any) -> torch.Tensor:
        return self.accelerator.pin_memory(tensor.new_empty(shape))

    def _torch_is_pinned(self, tensor: torch.Tensor) -> bool:
        return self.accelerator.is_pinned(tensor)

    # -- dtypes ----------------------------------------------------------------------------

    def is_fp64_supported(self) -> bool:
        return self.accelerator.supports("fp64")

    # -- builders --------------------------------------------------------------------------

    def op_builder_dir(self) -> str:
        return _BUILDERS

    def build_extension(self) -> Any:
        from torch.utils.cpp_extension import BuildExtension

        return BuildExtension

    def create_op_builder(self, class_name: str) -> Any:
        """An instance of :meth:`get_op_builder`'s."""
        return self.get_op_builder(class_name)()

    def get_op_builder(self, class_name: str) -> Any:
        """The class of that name: accel's own where it stands for what DeepSpeed means; else
        DeepSpeed's, where DeepSpeed knows the device; else one that says why there is none.

        Those that build a communication of DeepSpeed's own are none: torch.distributed
        communicates here.
        """
        if class_name in FOR_DEEPSPEED:
            return FOR_DEEPSPEED[class_name]
        if class_name in FAMILIES:
            return self.accelerator.get_op_builder(class_name)
        own = self._deepspeeds_own  # whose builders serve where it knows the device
        knows = torch.device(own.device_name()).type == self.accelerator.device_type
        if knows and not class_name.endswith("CommBuilder"):
            found = own.get_op_builder(class_name)
            if found is not None and "NotImplemented" not in found.__name__:
                return found
        return _absent(class_name, self.accelerator)


def _forwarded(name: str, is_property: bool) -> Any:
    """A member that asks the accelerator's of the same name."""

    def ask(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.accelerator, name)(*args, **kwargs)

    return property(lambda self: getattr(self.accelerator, name)) if is_property else ask


def _unknown(name: str) -> Any:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        import deepspeed

        raise UnsupportedCapability(
            f"DeepSpeed {deepspeed.__version__} asks its accelerator for {name}, which accel's "
            f"{self.accelerator.name!r} has not; a DeepSpeed without it, or another accelerator"
        )

    return refuse


def _absent(class_name: str, accelerator: Accelerator) -> Any:
    """A builder that is compatible with nothing and says so."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    said = (
        f"DeepSpeed's {class_name} has nothing to build for accel's {accelerator.name!r} (torch "
        f"device type {accelerator.device_type!r}): leave out what asks for it, or use a module of "
        "torch's, or accel.deepspeed's, in its place"
    )

    def load(self: Any, verbose: bool = True) -> Any:
        raise UnsupportedCapability(said)

    body = {
        "__module__": __name__,
        "BUILD_VAR": f"DS_BUILD_{class_name.upper()}",
        "NAME": class_name,
        "__init__": lambda self, name=None: OpBuilder.__init__(self, name or class_name),
        "absolute_name": lambda self: f"accel.deepspeed.{class_name}",
        "sources": lambda self: [],
        "is_compatible": lambda self, verbose=False: False,
        "load": load,
        "jit_load": load,
    }
    return type("NotImplementedBuilder", (OpBuilder,), body)


def _bind_builders_of(made: Any) -> None:
    """DeepSpeed binds builders' names to an accelerator's when it is imported: bind them again, in
    its package of builders and wherever they were taken from there."""
    package = sys.modules[_BUILDERS]
    old = {
        name: value
        for name, value in vars(package).items()
        if name.endswith("Builder") and name != "OpBuilder"  # which is the base of all
    }
    new = {name: made.get_op_builder(name) for name in old}
    for path, module in list(sys.modules.items()):
        if path == _BUILDERS or (path.startswith("deepspeed.") and not path.startswith(_BUILDERS)):
            for name, value in old.items():
                if vars(module).get(name, made) is value:
                    setattr(module, name, new[name])
    # Lists of what can be built, which were made of the old ones.
    sys.modules.pop(f"{_BUILDERS}.all_ops", None)
    vars(sys.modules["deepspeed.ops"]).pop("__compatible_ops__", None)


def _deepspeed() -> Any:
    """DeepSpeed's module of accelerators."""
    try:
        import deepspeed.accelerator as found
    except ImportError as error:
        raise UnsupportedCapability(
            f"accel's accelerators serve DeepSpeed where it is installed ({error}): "
            "pip install './accel[deepspeed]'"
        ) from error
    return found
