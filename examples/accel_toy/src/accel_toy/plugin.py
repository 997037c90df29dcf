"""What accel loads. Importing it touches neither torch's device registry nor the device."""

import accel

ACCEL_API = "1.0"


def probe() -> list[accel.Refusal]:
    from accel_toy.dispatch import refusal

    found = refusal()
    if found is None:
        return []
    want = "a torch that takes a device written in Python"
    return [accel.Refusal("torch", want, found, "install torch 2.13")]


@accel.hookimpl
def accel_backend() -> accel.Backend:
    return accel.Backend(
        name="toy",
        vendor="Example",
        device_type="toy",
        version="0.1.0",
        rank=-10,  # never by itself, only when asked for
        probe=probe,
        accelerator="accel_toy.accelerator:ToyAccelerator",
    )


@accel.hookimpl
def accel_op_builders() -> list[type[accel.OpBuilder]]:
    from accel_toy.builders import LinearBuilder

    return [LinearBuilder]
