"""NativeLibrary: sources and flags become a loaded shared library. NativeOpBuilder: its kernels."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch

from accel.native import cache, toolchain
from accel.native.toolchain import Source
from accel.op_builder import Impl, OpBuilder, Request
from accel.refusal import Refusal


class NativeLibrary:
    """A shared library compiled on first use and kept in the cache.

    ``headers`` are files the sources include: part of the key, not compiled. ``libraries`` are
    linked by name from torch's folder (``"c10"``, ``"torch_cpu"``).
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[Source],
        *,
        headers: Sequence[Path] = (),
        flags: Sequence[str] = ("-O3", "-ffp-contract=off"),
        libraries: Sequence[str] = ("c10",),
    ) -> None:
        self.name = name
        self.sources = tuple(sources)
        self.headers = tuple(headers)
        self.flags = tuple(flags)
        self.libraries = tuple(libraries)
        self._loaded: ctypes.CDLL | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[[], NativeLibrary], tuple[()]]:
        """Another process gets what it is made of, and builds and loads it by itself."""
        made = partial(
            type(self), self.name, self.sources, headers=self.headers, flags=self.flags,
            libraries=self.libraries,
        )  # fmt: skip
        return made, ()

    @cached_property
    def entry(self) -> cache.Entry:
        """Its place in the cache, named by everything it is built from."""
        parts: list[bytes | str] = [*toolchain.fingerprint(), *self.flags, *self.libraries]
        for source in self.sources:
            parts += [source.path.name, *source.flags, str(source.torch), source.path.read_bytes()]
        for header in self.headers:
            parts += [header.name, header.read_bytes()]
        return cache.Entry(self.name, cache.key(parts), f"lib{self.name}.so")

    def is_built(self) -> bool:
        return self._loaded is not None or self.entry.is_sound()

    def refusals(self) -> list[Refusal]:
        """Why it cannot be had; empty if it is built or can be."""
        return [] if self.is_built() else [*toolchain.refusals(), *cache.refusals()]

    def build(self) -> Path:
        """Its path, compiled first where it is not in the cache; progress goes to stderr."""
        return self.entry.ensure(self._make)

    def load(self) -> ctypes.CDLL:
        """The library loaded into this process, with the torch ops it registers."""
        with self._lock:
            if self._loaded is None:
                path = self.build()
                try:
                    self._loaded = ctypes.CDLL(str(path))
                except OSError as error:
                    raise ImportError(f"{path} was built and cannot be loaded: {error}") from error
            return self._loaded

    def _make(self, folder: Path) -> None:
        start = time.perf_counter()

        def progress(done: int, total: int) -> None:
            _show(f"accel: compiling {self.name} [{done}/{total}]", last=False)

        _show(f"accel: compiling {self.name} ({len(self.sources)} files, once)", last=False)
        toolchain.build(folder, self.entry.file, self.sources, self.flags, self.libraries, progress)
        _show(f"accel: compiled {self.name} in {time.perf_counter() - start:.1f} s", last=True)


def _show(text: str, *, last: bool) -> None:
    """One line that is written over on a terminal; elsewhere only how it ended."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


class NativeOpBuilder(OpBuilder):
    """A builder whose kernels come from a :class:`NativeLibrary`.

    The library registers its kernels as torch ops (``TORCH_LIBRARY``) in a namespace of its own;
    ``load`` returns ``torch.ops.<namespace>.<op>_<kind>``. Without a compiler it refuses.
    """

    library: NativeLibrary
    namespace: str

    def native(self, impl: Impl) -> bool:
        """True if ``impl`` comes from the library; override where a builder has others too."""
        return True

    def reasons(self, impl: Impl, request: Request) -> list[Refusal]:
        return self.library.refusals() if self.native(impl) else []

    def needs_build(self) -> bool:
        return not self.library.is_built()

    def build(self) -> None:
        self.library.build()

    def load(self, impl: Impl) -> torch._ops.OpOverload:
        self.library.load()
        kind = impl.id.rpartition(".")[2]
        packet = getattr(getattr(torch.ops, self.namespace), f"{impl.op}_{kind}")
        return packet.default  # type: ignore[no-any-return]
