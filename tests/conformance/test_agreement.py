"""logprob of hidden rows against logprob of the logits that linear of the same id has of them."""

import conformance_host
import pytest
import torch

from accel import testing
from accel.contracts import CONTRACTS

ID = "head.kernel"


def other_logits(x, ids, w, b, *adjustment):
    """Rows that do not depend on each other, whose logits are not those of linear."""
    if w is not None:
        x, w, b = (t if t is None else t.double() for t in (x, w, b))
    found = CONTRACTS["logprob"].reference(x, ids, w, b, *adjustment)
    return tuple(result.float() for result in found)


@pytest.mark.parametrize(
    ("logprob", "status"), [(conformance_host.logprob_by_row, 0), (other_logits, 1)]
)
def test_what_does_not_agree_with_linear_is_caught(conform, logprob, status):
    settings = {"id": ID, "dtypes": frozenset({torch.float32, torch.bfloat16})}
    linear = {"linear": conformance_host.linear_one_by_one}
    builders = [
        testing.fake_builder(linear, **settings),
        testing.fake_builder({"logprob": logprob}, family="TilingBuilder", **settings),
    ]
    head = testing.fake_backend("head", builders=builders)
    del head.accel_backend
    found, report = conform(plugins=[head], impls=[ID], cases=["agreement/*"])
    assert found == status
    for case in report["cases"]:
        assert [broken["rule"] for broken in case["broken"]] in (
            [],
            ["agreement"],
            2 * ["agreement"],
        )
