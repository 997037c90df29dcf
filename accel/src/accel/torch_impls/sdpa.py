"""attention by torch's scaled_dot_product_attention and nothing else, for devices where it is fast.

Which of its kernels serves depends on lengths and masks, so a prefill and a decode step differ. The
spans are read on the host, which waits for the device: no graph can record it.
"""

from __future__ import annotations

from accel.contracts.checks import WIDE
from accel.op_builder import Kernel, Request
from accel.refusal import Refusal
from accel.torch_impls.attention import attention, recorded

KERNEL = Kernel(attention, recorded)


def reasons(request: Request) -> list[Refusal]:
    """What torch's own cannot do, by the contract's meaning of it."""
    asked, remedy = request.options, "use another implementation"
    if asked.get("softcap") is not None:
        have = f"softcap={asked['softcap']}"
        return [Refusal("softcap", "scores that are not capped", have, remedy)]
    if asked.get("dropout"):
        want = "no dropout, whose random numbers torch's own draws as it likes"
        return [Refusal("dropout", want, f"dropout={asked['dropout']}", remedy)]
    if asked.get("slopes") and request.dtype is not WIDE[request.dtype]:
        want = "no slopes, which torch's own takes in q's dtype, too coarse for distances"
        have = f"slopes beside {str(request.dtype).removeprefix('torch.')}"
        return [Refusal("slopes", want, have, remedy)]
    return []
