"""A right backend to test the suite with: the host, with a kernel whose rows are independent."""

import torch

from accel import testing
from accel.accelerator import DeviceProperties
from accel.contracts import CONTRACTS

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
LINEAR, NORM = "host.linear", "host.norm"


class HostAccelerator(testing.FakeAccelerator):
    def refusal(self, capability):
        if capability in ("fp64", "rng_state", "generator"):
            return None
        return super().refusal(capability)

    def properties(self, device_index=None):
        return DeviceProperties("a host of tests", 1 << 33, 2)

    def get_rng_state(self, device_index=None):
        return torch.get_rng_state()

    def set_rng_state(self, new_state, device_index=None):
        torch.set_rng_state(new_state)

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def initial_seed(self):
        return torch.initial_seed()

    def default_generator(self, device_index=None):
        return torch.default_generator


def row_by_row(op):
    """The reference, one row at a time in memory of its own."""
    reference = CONTRACTS[op].reference

    def kernel(x, *rest):
        if any(t.device != x.device for t in rest if isinstance(t, torch.Tensor)):
            raise ValueError("a kernel is the one who looks at devices")
        if not x.numel():
            return reference(x, *rest)
        rows = x.reshape(-1, 1, x.shape[-1])
        found = torch.cat([reference(row.clone(), *rest) for row in rows])
        return found.reshape(*x.shape[:-1], found.shape[-1])

    return kernel


def plugin(accelerator="conformance_host:HostAccelerator", **backend):
    linear = testing.fake_builder({"linear": row_by_row("linear")}, id=LINEAR, dtypes=DTYPES)
    norm = testing.fake_builder(
        {"rms_norm": row_by_row("rms_norm")}, id=NORM, family="TransformerBuilder", dtypes=DTYPES
    )
    return testing.fake_backend(
        "host", builders=[linear, norm], accelerator=accelerator, host=True, **backend
    )
