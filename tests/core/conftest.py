"""Distributions made by hand: real entry points without an installer."""

import importlib
import sys
import textwrap
from importlib.metadata import PathDistribution

import pytest

from accel import plugins

PLUGIN = """
import accel

ACCEL_API = "1.0"

@accel.hookimpl
def accel_backend():
    return accel.Backend(
        name="{name}", vendor="tests", device_type="cpu", version="1", rank={rank},
        probe=lambda: [], accelerator="accel.testing:FakeAccelerator",
    )
"""


class Site:
    """A folder like site-packages."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch

    def install(self, distribution, code, *, entry="backend", version="1.0"):
        """One distribution with one module, named by one entry point."""
        module = distribution.replace("-", "_")
        (self.folder / f"{module}.py").write_text(textwrap.dedent(code))
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{entry} = {module}\n")
        self.monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    def discover(self):
        """The candidates found here; what else is installed on this machine is left out."""
        here = {
            f"{dist.name} {dist.version}"
            for dist in map(PathDistribution, self.folder.glob("*.dist-info"))
        }
        return [c for c in plugins.discover() if c.distribution in here]


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Site(tmp_path, monkeypatch)
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def plugin_code():
    """The text of a plugin that works."""
    return lambda name="mine", rank=1: PLUGIN.format(name=name, rank=rank)
