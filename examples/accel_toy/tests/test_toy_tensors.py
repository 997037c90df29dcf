"""Tensors of the toy device behave as torch's do.

Registering a device changes the process for good: run these tests in a pytest process of their own.
"""

import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from accel_toy import dispatch

toy = dispatch.register()
MIB = 1 << 20


def test_views_share_storage_and_keep_strides():
    x = torch.arange(24.0, device="toy").view(2, 3, 4)
    views = [
        x.transpose(0, 2),
        x[:, 1:, ::2],
        x.unfold(2, 2, 1),
        x.diagonal(),
        x.expand(2, 2, 3, 4),
        x.view(torch.int32),
    ]
    on_cpu = x.cpu()
    same = [on_cpu.transpose(0, 2), on_cpu[:, 1:, ::2], on_cpu.unfold(2, 2, 1), on_cpu.diagonal()]
    for view, expected in zip(
        views, [*same, on_cpu.expand(2, 2, 3, 4), on_cpu.view(torch.int32)], strict=True
    ):
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert (view.stride(), view.storage_offset()) == (
            expected.stride(),
            expected.storage_offset(),
        )
        assert torch.equal(view.cpu(), expected)


def test_writing_through_views():
    x = torch.zeros(3, 4, device="toy", requires_grad=True)
    y = x * 1
    y[:, 1].add_(2)
    y.t()[2] = 3
    y[y > 2] *= 2
    assert y[0].tolist() == [0, 2, 6, 0]
    y.sum().backward()
    assert x.grad[0].tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    "index",
    [
        lambda x: x[torch.tensor([2, 0], device=x.device)],
        lambda x: x[torch.tensor([2, 0])],
        lambda x: x[x > 5],
        lambda x: x[..., None, -1],
        lambda x: x.nonzero(),
        lambda x: x.masked_fill(x > 3, -1).gather(
            1, torch.zeros(3, 1, dtype=torch.long, device=x.device)
        ),
        lambda x: torch.cat([x, x[:1]]).unique(dim=0, return_counts=True)[1],
        lambda x: x.clone().index_put_((torch.tensor([1], device=x.device),), torch.tensor(9.0)),
        lambda x: torch.where(x > 2, x, 0.0).argmax(-1),
        lambda x: x.long().remainder_(3),
        lambda x: torch.fft.fft(x).conj().real,
        lambda x: torch.add(x, x, out=torch.empty(0, device=x.device)),
        lambda x: x.clone().resize_(4, 3)[:3],
        lambda x: x.clone().resize_(5, 4)[:3],
    ],
)
def test_operations_agree_with_the_cpu(index):
    x = torch.arange(12.0).view(3, 4)
    result = index(x.to("toy"))
    assert result.device == torch.device("toy:0")
    assert_close(result.cpu(), index(x))


def test_copies_to_the_host_wait():
    x = torch.ones(2, device="toy") + 1
    assert x.to("cpu", torch.int32, non_blocking=True).tolist() == [2, 2]
    y = torch.zeros(3, 2)
    assert y.copy_(x).tolist() == [[2, 2]] * 3


def test_host_values_are_taken_when_the_operation_is_called():
    host, scalar = torch.ones(2), torch.tensor(3.0)
    x = host.to("toy") * scalar
    host.zero_(), scalar.zero_()
    assert x.tolist() == [3, 3]


def test_tensors_print_compare_copy_and_pickle():
    x = torch.tensor([1.5, 2.0], device="toy")
    assert repr(x) == "tensor([1.5000, 2.0000], device='toy:0')"
    assert_close(x, torch.tensor([1.5, 2.0], device="toy"))
    with pytest.raises(AssertionError):
        assert_close(x, x + 1)
    model = nn.Linear(2, 2).to("toy")
    twin = copy.deepcopy(model)
    twin.weight.data.zero_()
    assert twin.weight.device == model.weight.device == torch.device("toy:0")
    assert (model.weight.any(), twin.weight.any()) == (True, False)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert_close(torch.load(file)["weight"], model.weight.data)


def test_what_the_device_cannot_do_raises():
    x = torch.ones(2, 2, device="toy")
    with pytest.raises(RuntimeError, match="at least one is on cpu"):
        x @ torch.ones(2, 2)
    with torch.library._scoped_library("accel_toy_test", "FRAGMENT") as library:
        library.define("only_on_cpu(Tensor x) -> Tensor")
        library.impl("only_on_cpu", torch.neg, "CPU")
        with pytest.raises(NotImplementedError, match="no kernel for the toy device"):
            torch.ops.accel_toy_test.only_on_cpu(x)


def test_modes_of_the_caller_do_not_reach_queued_work():
    x, w = torch.ones(2, 3, device="toy"), torch.full((3, 3), 1 + 2**-10, device="toy")
    with torch.inference_mode():
        y = x + 1
    z = x @ w
    with torch.autocast("cpu", torch.bfloat16), torch.device("toy"):
        toy.synchronize()
        assert y.add(torch.ones(3)).tolist() == [[3, 3, 3], [3, 3, 3]]
    assert_close(z.cpu(), torch.full((2, 3), 3 + 3 * 2**-10), rtol=0, atol=0)
