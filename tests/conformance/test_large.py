"""A large call is as large as it says."""

import torch

from accel_conformance.case import Evidence
from accel_conformance.subject import find
from accel_conformance.suite import large


def test_a_million_results_are_asked_for(monkeypatch):
    monkeypatch.setattr(large, "RESULTS", 10**6)
    (target,) = (t for t in find("host").targets if (t.op, t.impl.id) == ("rms_norm", "reference"))
    counted = []
    monkeypatch.setattr(
        type(target), "call", lambda self, args: counted.append(args[0]) or args[:1]
    )
    large._run(large.rows, target, torch.float32, find("host").accelerator, Evidence())
    assert counted[0].numel() >= 10**6
    assert counted[0].shape[-1] > 2048
    assert {x.shape[0] for x in counted} >= {1, 7, 33, 257}
    assert counted[0].isfinite().all()
