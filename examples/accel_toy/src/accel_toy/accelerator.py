"""The toy device as accel asks it: what torch's module for it does not answer, and nothing else."""

import accel
from accel.accelerator import DeviceProperties
from accel_toy import dispatch, memory


class ToyAccelerator(accel.Accelerator):
    def __init__(self, backend: accel.Backend) -> None:
        # Registered with torch here and not in the probe: it is for the process's whole life.
        dispatch.register()
        super().__init__(backend)

    def properties(self, device_index: int | None = None) -> DeviceProperties:
        return DeviceProperties("toy", memory.TOTAL, compute_units=1)

    def refusal(self, capability: str) -> accel.Refusal | None:
        if capability == "fp64":
            return None
        return super().refusal(capability)
