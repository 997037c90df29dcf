"""How processes come together for a test, and part."""

from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


def join(rank, port, world=2, seconds=120):
    """One of ``world`` processes that speak over gloo, with one thread; who waits for another for
    longer than ``seconds`` is told, so that a hang ends as a failure."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world,
        timeout=timedelta(seconds=seconds),
    )  # fmt: skip


@contextmanager
def joined(*given, **settings):
    """As :func:`join`, until the block ends."""
    join(*given, **settings)
    try:
        yield
    finally:
        dist.destroy_process_group()
