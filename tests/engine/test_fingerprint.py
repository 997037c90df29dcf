"""What tells that a model's values are others than they were."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.engine.fingerprint import fingerprint


class Holding(torch.nn.Module):
    def __init__(self, values):
        super().__init__()
        self.register_buffer("values", values)


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool]),
    st.integers(1, 70_000), st.integers(0, 3), st.randoms(),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_one_bit_anywhere_makes_another_fingerprint(dtype, count, start, drawn):
    whole = torch.randint(0, 2 if dtype is torch.bool else 100, (start + count,)).to(dtype)
    values = whole[start:]
    model = Holding(values)
    before = fingerprint(model)
    assert before.differs(fingerprint(model)) is None
    bits = values.view(torch.uint8)
    place = drawn.randrange(len(bits))
    bits[place] ^= 1 if dtype is torch.bool else 1 << drawn.randrange(8)
    assert before.differs(fingerprint(model)) == "values"


def test_shapes_dtypes_and_names_are_part_of_it():
    values = torch.arange(12.0)
    one = fingerprint(Holding(values))
    for other in (values.view(3, 4), values.view(torch.int32), torch.cat((values, values[:1]))):
        assert one.differs(fingerprint(Holding(other))) == "values"
    assert one.differs(fingerprint(torch.nn.Linear(2, 2))) == "values"
    assert fingerprint(torch.nn.Module()).differs(one) == "values"
    empty = fingerprint(Holding(values[:0]))
    assert empty.differs(fingerprint(Holding(values[:0]))) is None
    by_columns = fingerprint(Holding(values.view(3, 4).t()))
    assert by_columns.differs(fingerprint(Holding(values.view(3, 4).t().contiguous()))) is None
