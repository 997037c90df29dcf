"""How processes come together for a test, and part."""

import os
import sys
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


def leave():
    """End this process, whose work is done, without Python's own end. Then a thread of torch's gloo
    may be about to drop a tensor, and without an interpreter that is SIGABRT (torch 2.13,
    ProcessGroupGloo::runLoop; once in some ten runs on a busy machine)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def and_leave(rank, work, *given):
    """What one of several processes does."""
    work(rank, *given)
    leave()
