"""What a device can do, under one set of names with one meaning on every backend.

base.py          Accelerator: identity, devices, dtypes, builders, environment, compile backend
capabilities.py  the abilities a device may lack, and how that is asked and refused
streams.py       streams and events       memory.py  bytes allocated, reserved, free; pinning
rng.py           random number state      graphs.py  capture and replay
host.py          streams and events of a device that works synchronously
"""

from accel.accelerator.base import Accelerator, DeviceProperties
from accel.accelerator.capabilities import CAPABILITIES

__all__ = ["CAPABILITIES", "Accelerator", "DeviceProperties"]
