"""A report with failures and more, of a plugin that is broken, and rude in what it says."""

import json

import torch

import accel_conformance
from accel import testing
from accel.contracts import CONTRACTS
from accel_conformance.rules import RULES

# What would do harm, if anything on the page took it for markup.
RUDE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
KERNEL = "mychip.fast"
CASES = (
    f"ops/linear/{KERNEL}/*", "ops/linear/reference/float*", "ops/rms_norm/reference/*",
    f"bad_inputs/linear/{KERNEL}/*", "builders/linear/*", "accelerator/is_available",
    "accelerator/computes/*",
)  # fmt: skip
EXPECTED = f"""
[[expect]]
id = "ops/linear/{KERNEL}/bfloat16/*"
outcome = "fail"
reason = "the tail is lost; fixed in 0.3"
expires = 2999-06-30

[[expect]]
id = "ops/linear/{KERNEL}/float32/nothing_like_it"
outcome = "fail"
reason = "left over"
expires = 2999-06-30
"""


def without_tail(x, w, b, act, out_dtype):
    """linear without the last column of x, and without silu."""
    if act == "silu":
        raise RuntimeError(RUDE)
    return CONTRACTS["linear"].reference(x[..., :-1], w[..., :-1], b, act, out_dtype)


def plugin():
    dtypes = frozenset({torch.float32, torch.bfloat16})
    linear = testing.fake_builder(
        {"linear": without_tail}, id=KERNEL, dtypes=dtypes, shape_invariant=False
    )
    return testing.fake_backend(
        "mychip", vendor=RUDE, builders=[linear], host=True,
        accelerator="conformance_host:HostAccelerator",
    )  # fmt: skip


def write(folder):
    """The report's two files and a self-test's; what report.json says."""
    folder.mkdir(exist_ok=True)
    expectations = folder / "expectations.toml"
    expectations.write_text(EXPECTED)
    (folder / "self-test.json").write_text(json.dumps(SELF_TEST))
    with testing.installed(plugin()):
        accel_conformance.run(
            "mychip", report=folder, cases=CASES, expectations=expectations, quiet=True
        )
    return json.loads((folder / "report.json").read_text("utf-8"))


def fault(name, kind, verdict):
    rule = RULES["accuracy"]
    killers = ["ops/linear/planted/float32/odd"] if verdict == "killed" else []
    return {
        "name": name, "kind": kind, "says": f"What {name} does.", "rule": rule.name,
        "number": rule.number, "where": ["ops/*"], "also": [], "op": "linear",
        "implementation": "reference", "dtypes": ["float32"], "cases": 30, "seconds": 0.1,
        "killed_by": killers, "verdict": verdict,
        "problems": [] if killers else ["no case like ops/* says that accuracy is broken"],
    }  # fmt: skip


SELF_TEST = {
    "schema": 1,
    "verdict": "failed",
    "suite": "0.1.0",
    "seconds": 1.0,
    "unfaulted": [
        {"op": "linear", "implementation": "reference", "dtypes": ["float32"], "cases": 30,
         "seconds": 0.1, "problems": []},
    ],
    "faults": [
        fault("dropped_tail", "numeric", "killed"),
        fault("bias_twice", "numeric", "killed"),
        fault("stale_buffer", "memory", "survived"),
    ],
}  # fmt: skip
