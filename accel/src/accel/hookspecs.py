"""The plugin contract, one page.

A plugin is a module named by an entry point of the group ``accel.backends``. It says which
version of this page it was written for, and implements any of the three hooks::

    import accel

    ACCEL_API = "1.0"

    @accel.hookimpl
    def accel_backend():
        return accel.Backend(
            name="toy", vendor="Example", device_type="toy", version="0.1.0", rank=-10,
            probe=probe, accelerator="accel_toy.accelerator:ToyAccelerator",
        )

    @accel.hookimpl
    def accel_op_builders():
        from accel_toy.builders import LinearBuilder
        return [LinearBuilder]

A plugin without ``accel_backend`` is a kernel pack: its builders name the device they are for.
Hooks are called when something is chosen, never per op call. They only ever gain arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from accel.refusal import Refusal

if TYPE_CHECKING:
    from accel.op_builder import OpBuilder

GROUP = "accel.backends"

# major: a plugin must have the same; minor: a plugin may have an older one.
API = (1, 0)

hookspec = pluggy.HookspecMarker("accel")
hookimpl = pluggy.HookimplMarker("accel")


@dataclass(frozen=True)
class Backend:
    """What a plugin says of its device before anything of it is imported or touched.

    ``name``         what users write: ``ACCEL_BACKEND=name``; unique among what is installed
    ``vendor``       who stands behind it
    ``device_type``  the torch device type it serves
    ``version``      of the plugin
    ``rank``         the highest rank among available backends is chosen
    ``probe``        returns the reasons why the device cannot be used; none means available.
                     Cheap: no device context, no compiler, no vendor import beyond need
    ``accelerator``  ``"module:Class"`` of its :class:`accel.Accelerator`, imported when chosen
    ``supersedes``   names of backends that step aside while this one is available
    ``expectations`` file with its expected conformance outcomes: a path, or ``"package:file"``
    ``host``         the device is the host processor itself: what is left when no device works
    ``variables``    ``ACCEL_*`` environment variables of its own
    ``caveat``       what to know before trusting it, such as that no device has run it yet;
                     ``accel info`` shows it
    """

    name: str
    vendor: str
    device_type: str
    version: str
    rank: int
    probe: Callable[[], Sequence[Refusal]]
    accelerator: str
    supersedes: tuple[str, ...] = ()
    expectations: str | None = None
    host: bool = False
    variables: tuple[str, ...] = ()
    caveat: str = ""


@hookspec
def accel_backend() -> Backend:
    """The backend this plugin provides."""
    raise NotImplementedError


@hookspec
def accel_op_builders() -> Sequence[type[OpBuilder]]:
    """Op-builder classes, for this plugin's device or for another's."""
    raise NotImplementedError


@hookspec
def accel_policies() -> Sequence[type[Any]]:
    """Model policies for the hybrid engine: classes that read a model architecture."""
    raise NotImplementedError
