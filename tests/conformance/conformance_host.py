"""A right backend to test the suite with: the host, with a kernel whose rows are independent."""

import torch

from accel import testing
from accel.accelerator import DeviceProperties
from accel.contracts import CONTRACTS
from accel.refusal import Refusal

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
# One id of each op's implementation.
LINEAR, NORM, ATTENTION, LOGPROB = "host.linear", "host.norm", "host.attention", "host.logprob"


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


def plain_attention(impl, request):
    """query_by_query serves what the native kernels do."""
    asked = {"mask": False, "slopes": False, "window": None, "softcap": None, "dropout": 0.0}
    return [
        Refusal("option", f"no {name}", f"{name}={request.options[name]}")
        for name, plain in asked.items()
        if request.options[name] != plain
    ]


def query_by_query(q, k, v, spans, mask, slopes, seed, causal, scale, *others):
    """attention, every query by itself, summed without products of matrices."""
    if len({q.device, k.device, v.device, spans.device}) > 1:
        raise ValueError("a kernel is the one who looks at devices")
    found = q.new_zeros(len(q), q.shape[1], v.shape[2])
    scale = max(q.shape[2], 1) ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (t.to(wide).contiguous() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    for q_start, q_len, k_start, k_len in spans.tolist():
        for i in range(q_len):
            seen = slice(k_start, k_start + k_len - (q_len - 1 - i if causal else 0))
            if seen.stop > seen.start:
                scores = (q[q_start + i] * k[seen]).sum(-1) * scale
                p = (scores - scores.amax(0)).exp()
                found[q_start + i] = ((p / p.sum(0)).unsqueeze(-1) * v[seen]).sum(0)
    return found


def logprob_by_row(x, ids, *rest):
    """logprob's reference, one row at a time in memory of its own."""
    if any(t.device != x.device for t in (ids, *rest) if isinstance(t, torch.Tensor)):
        raise ValueError("a kernel is the one who looks at devices")
    reference, rows = CONTRACTS["logprob"].reference, x.reshape(ids.numel(), 1, x.shape[-1])
    if not len(rows):
        return reference(x, ids, *rest)
    found = [reference(row.clone(), i, *rest) for row, i in zip(rows, ids.reshape(-1, 1))]
    return tuple(torch.cat(parts).reshape(ids.shape) for parts in zip(*found))


def plugin(accelerator="conformance_host:HostAccelerator", **backend):
    linear = testing.fake_builder({"linear": row_by_row("linear")}, id=LINEAR, dtypes=DTYPES)
    norm = testing.fake_builder(
        {"rms_norm": row_by_row("rms_norm")}, id=NORM, family="TransformerBuilder", dtypes=DTYPES
    )
    attention = testing.fake_builder(
        {"attention": query_by_query}, id=ATTENTION, family="TransformerBuilder", dtypes=DTYPES,
        reasons=plain_attention,
    )  # fmt: skip
    logprob = testing.fake_builder(
        {"logprob": logprob_by_row}, id=LOGPROB, family="TilingBuilder", dtypes=DTYPES
    )
    builders = [linear, norm, attention, logprob]
    return testing.fake_backend(
        "host", builders=builders, accelerator=accelerator, host=True, **backend
    )
