"""The exceptions and warnings of accel.

    AccelError
    ├── ConfigError              (ValueError)    a setting, variable or order that cannot be read
    ├── BackendError             (RuntimeError)  no accelerator could be chosen
    │   ├── NoBackendError                       nothing usable is installed
    │   ├── BackendNotFoundError                 the backend asked for is not installed
    │   ├── BackendUnavailableError              it is installed, and refused
    │   ├── BackendConflictError                 two distributions claim its name
    │   └── AmbiguousBackendError                two available backends have the same rank
    ├── PluginError              (RuntimeError)  a plugin broke a rule of the hooks
    ├── UnsupportedCapability    (NotImplementedError)  the device cannot do what was asked
    ├── UnsupportedModelError    (ValueError)    the engine cannot serve this model, and why
    ├── CapacityError            (MemoryError)   more memory or positions needed than permitted
    ├── NonFiniteError           (ArithmeticError)  a loss or gradient is inf or nan
    ├── ExactnessError           (ArithmeticError)  a token's value is not the one it was made with
    ├── CheckpointError          (RuntimeError)  a checkpoint is torn, or of something else
    ├── RankError                (RuntimeError)  another process failed, or asked for something else
    ├── OpError
    │   ├── UnknownOpError       (LookupError)   no op, builder or implementation of that name
    │   ├── OpArgumentError      (ValueError, RuntimeError)  an argument breaks the op's contract
    │   ├── OpRefusedError       (RuntimeError)  the implementation asked for refuses this request
    │   └── OpResolutionError    (RuntimeError)  no implementation serves this request
    └── BuildError               (RuntimeError)  native code could not be built
        ├── BuildTimeoutError    (TimeoutError)  another process held the build for too long
        └── CacheError           (OSError)       the build cache cannot be read or written

    AccelWarning                 (UserWarning)
    ├── FallbackWarning          something other than the first choice serves
    ├── IgnoredWarning           a setting in force does not act where it was met
    └── VarianceWarning          no shape-invariant implementation serves an exact request

Messages say what was asked, what was found and what is possible.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AccelError(Exception):
    """Root of everything accel raises on purpose."""


class ConfigError(AccelError, ValueError):
    """A setting, environment variable or order that cannot be read."""


class BackendError(AccelError, RuntimeError):
    """No accelerator could be chosen."""


class NoBackendError(BackendError):
    """No backend is installed, or none of those installed can be used."""


class BackendNotFoundError(BackendError):
    """The backend asked for by name is not installed."""


class BackendUnavailableError(BackendError):
    """The backend asked for is installed and was refused."""


class BackendConflictError(BackendError):
    """Two distributions claim one backend name."""


class AmbiguousBackendError(BackendError):
    """Two available backends have the same rank, and nobody said which to take."""


class PluginError(AccelError, RuntimeError):
    """A plugin broke a rule of the hooks."""


class UnsupportedCapability(AccelError, NotImplementedError):
    """The device lacks the ability that was used."""


class UnsupportedModelError(AccelError, ValueError):
    """The hybrid engine cannot serve this model; the message has the reasons."""


class CapacityError(AccelError, MemoryError):
    """More memory or positions would be needed than there are or were permitted."""


class NonFiniteError(AccelError, ArithmeticError):
    """A loss or a gradient is inf or nan; no parameter was changed by it."""


class ExactnessError(AccelError, ArithmeticError):
    """A token's log-probability is not, bit for bit, the one it was generated with."""


class CheckpointError(AccelError, RuntimeError):
    """A checkpoint cannot be saved or read, is torn, or is of another model or training."""


class RankError(AccelError, RuntimeError):
    """Another process of those that work together failed, is gone, or asked for something else."""


class OpError(AccelError):
    """Root of what goes wrong around ops."""


class UnknownOpError(OpError, LookupError):
    """No op, builder or implementation has the name asked for."""


class OpArgumentError(OpError, ValueError, RuntimeError):
    """An argument breaks the op's contract (both ValueError and torch's RuntimeError)."""


class OpRefusedError(OpError, RuntimeError):
    """The implementations asked for by name all refuse the request."""


class OpResolutionError(OpError, RuntimeError):
    """No implementation serves the request; the message has every candidate's reasons."""


class BuildError(AccelError, RuntimeError):
    """Native code could not be built."""


class BuildTimeoutError(BuildError, TimeoutError):
    """Another process held the build lock for longer than the timeout."""


class CacheError(BuildError, OSError):
    """The build cache cannot be read or written."""


class AccelWarning(UserWarning):
    """Root of accel's warnings."""


class FallbackWarning(AccelWarning):
    """Something other than the first choice serves, and why."""


class IgnoredWarning(AccelWarning):
    """A setting in force does not act where it was met, and what to set instead."""


class VarianceWarning(AccelWarning):
    """An exact request is served by an implementation whose rows depend on their neighbours."""


def close_matches(word: str, known: Iterable[str]) -> str:
    """A sentence that offers the names nearest to ``word``, or all of them if none is near."""
    names = sorted(set(known))
    return did_you_mean(word, names) or "known: " + (", ".join(names) if names else "none")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that offers the names nearest to ``word``; empty if none is near."""
    near = difflib.get_close_matches(word, sorted(set(known)), n=3, cutoff=0.5)
    return "did you mean " + " or ".join(repr(name) for name in near) + "?" if near else ""
