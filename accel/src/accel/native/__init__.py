"""Native code compiled on first use, kept in a cache that crashes and races cannot spoil.

library.py    NativeLibrary: sources and flags -> a loaded shared library; NativeOpBuilder
toolchain.py  the compiler and ninja: what is there, and the build itself
cache.py      where built libraries lie: key, lock, atomic publication, cleaning
"""

from accel.native.library import NativeLibrary, NativeOpBuilder
from accel.native.toolchain import Source

__all__ = ["NativeLibrary", "NativeOpBuilder", "Source"]
