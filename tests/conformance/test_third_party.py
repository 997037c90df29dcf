"""A stranger's way: a backend from the text of CONTRIBUTING.md alone is installed and conforms;
broken in one line it does not, and what is said of it leads back to the line."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from accel import testing
from accel_conformance.rules import RULES

ROOT = Path(__file__).parents[2]
# What the text leaves to the vendor: a project, the driver, the kernel.
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "accel-mychip"
version = "0.1.0"

[tool.hatch.build.targets.wheel]
packages = ["accel_mychip"]
"""
DRIVER = """\
import torch

def driver_is_there():
    return True

has_matrix_unit = driver_is_there

"""
# No device here is a mychip: the host stands in for one, which torch has no module for.
HOST_DEVICE = """\
import torch

from accel import testing
from accel.accelerator import DeviceProperties

class HostDevice(testing.FakeAccelerator):
    def properties(self, device_index=None):
        return DeviceProperties("mychip", 1 << 33, 2)

"""
KERNELS = """\
import math

import torch
import torch.nn.functional as F

# Of an infinity torch's own gelu makes NaN with AVX-512 (2.13).
ACTS = {
    None: lambda y: y, "relu": torch.relu, "silu": lambda y: y * torch.sigmoid(y),
    "gelu": lambda y: 0.5 * y * (1 + torch.erf(y * math.sqrt(0.5))),
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
}

def linear(x, w, b, act, out_dtype):
    if len({t.device for t in (x, w, b) if t is not None}) > 1:
        raise RuntimeError("operands on different devices; move them together")
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = x.new_empty(len(rows), len(w))
    for row, out in zip(rows, y):
        z = (w * row).sum(-1)
        # Of fp32 torch's sigmoid has other bits behind the last whole vector.
        out.copy_(ACTS[act]((z if b is None else z + b).double()))
    return y.reshape(*x.shape[:-1], len(w)).to(out_dtype or x.dtype)
"""


def written(heading):
    """The blocks of code in a section of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    indent = 7 if "\n1. " in section else 4
    groups, block = [], []
    for line in section.splitlines():
        if line.startswith(" " * indent) or (block and not line):
            block.append(line)
        elif block:
            groups.append(block)
            block = []
    return [textwrap.dedent("\n".join(group)).strip("\n") + "\n" for group in [*groups, block]]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the backend installed in it."""
    project = tmp_path_factory.mktemp("accel-mychip")
    entry, plugin, accelerator, *_ = written("Add a backend")
    builder, *_ = written("Add kernels to a backend, or to somebody else's")
    plugin, builder = (
        text.replace('device_type="mychip"', f'device_type="{testing.HOST}"').replace(
            'device_type = "mychip"', f'device_type = "{testing.HOST}"'
        )
        for text in (plugin, builder)
    )
    package = project / "accel_mychip"
    package.mkdir()
    (project / "pyproject.toml").write_text(PROJECT + "\n" + entry)
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(DRIVER + plugin + "\n" + builder)
    (package / "accelerator.py").write_text(
        HOST_DEVICE + accelerator.replace("accel.Accelerator", "HostDevice")
    )
    (package / "kernels.py").write_text(KERNELS)
    site = tmp_path_factory.mktemp("site")
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", *install, "--target", str(site), str(project)], check=True
    )
    return site


def run(site, *command):
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run(
        [program, *command[1:]], env=env, cwd=site, capture_output=True, text=True
    )


def conform(site, *options):
    return run(site, "accel", "conform", "--backend", "mychip", "--quiet", *options)


def test_it_conforms(site):
    cases = ("accelerator/*", "builders/LinearBuilder", "*/linear/accel_mychip.fast/*")
    told = conform(site, *(word for case in cases for word in ("--case", case)))
    assert told.returncode == 0, told.stdout + told.stderr
    assert "mychip (accel-mychip 0.1.0) conforms" in told.stdout


BROKEN = {
    "(w * row).sum(-1)": ("(w * row)[:, :-1].sum(-1)", "accuracy", "odd"),
    "z + b": ("z + b * len(rows)", "rows", "many_rows"),
    "row, out in zip(rows, y)": ("row, out in zip(rows.neg_(), y)", "inputs_kept", "even"),
}
first, *others = BROKEN


# Each starts two processes that import torch and make all cases.
@pytest.mark.parametrize(
    "line", [first, *(pytest.param(line, marks=pytest.mark.slow) for line in others)]
)
def test_broken_in_one_line_it_is_told_the_rule_the_op_the_sample_and_how_to_see_it(site, line):
    instead, rule, sample = BROKEN[line]
    kernels = site / "accel_mychip" / "kernels.py"
    kernels.write_text(KERNELS.replace(line, instead))
    area = "rows" if rule == "rows" else "ops"
    id = f"{area}/linear/accel_mychip.fast/float32/{sample}"
    try:
        told = conform(site, "--case", id)
        assert told.returncode == 1
        assert f"FAILED {id}\n    [{RULES[rule]}]" in told.stdout
        (command,) = re.findall(r"^    (pytest .*)$", told.stdout, re.M)
        seen = run(site, *shlex.split(command))
        assert seen.returncode == 1
        assert f"[{RULES[rule]}]" in seen.stdout
    finally:
        kernels.write_text(KERNELS)
