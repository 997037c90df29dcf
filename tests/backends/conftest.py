"""Stand-ins for machines and devices, shared by the tests of the backends."""

import inspect
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """No GPU is hidden from outside, and a warning in a fresh process is an error."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
                 "ZE_AFFINITY_MASK"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "error::UserWarning")


@pytest.fixture
def tree(tmp_path):
    """Write files below a folder that stands for the root of a file system."""

    def write(files):
        for name, text in files.items():
            place = tmp_path / Path(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tmp_path

    return write


@pytest.fixture
def stand_in(monkeypatch):
    """Put functions in place of a torch device module's own, which need a device.

    Every call is held against the signature of the function it stands in for, and noted in the
    list returned.
    """

    def put(module, functions):
        calls = []

        def checked(name, real, function):
            signature = inspect.signature(real)

            def call(*args, **kwargs):
                signature.bind(*args, **kwargs)
                calls.append((name, *args, *kwargs.items()))
                return function(*args, **kwargs)

            return call

        for name, function in functions.items():
            monkeypatch.setattr(module, name, checked(name, getattr(module, name), function))
        return calls

    return put
