"""What the tests of the toy device share: it is registered, idle before a test and after it."""

import pytest

from accel_toy import dispatch

toy = dispatch.register()


@pytest.fixture(autouse=True)
def _quiet_device():
    toy.synchronize()
    toy.manual_seed(0)
    toy.reset_peak_memory_stats()
    yield
    toy.synchronize()
