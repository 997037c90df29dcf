"""What the tests of the kernels run with: those kernels and no other, on one thread and on two."""

import pytest
import torch

from accel import ops


@pytest.fixture
def _native(request):
    """The implementations that the module names as ``NATIVE`` serve, without gradients."""
    with torch.no_grad(), ops.use(request.module.NATIVE):
        yield


@pytest.fixture(params=(1, 2), ids="{} threads".format)
def _threads(request):
    torch.set_num_threads(request.param)
