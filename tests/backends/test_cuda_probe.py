"""accel_cuda without a GPU: why there is none to use, told truly and without starting anything."""

import ctypes
import os
from types import SimpleNamespace

import pytest
import torch

from accel_cuda import nvml, plugin, probe

NODE = {"dev/nvidiactl": "", "dev/nvidia0": ""}


def libcuda(version=13000):
    def cuDriverGetVersion(to):
        to._obj.value = version
        return 0

    return SimpleNamespace(cuDriverGetVersion=cuDriverGetVersion)


def libnvml(code=0):
    def nvmlSystemGetDriverVersion(to, size):
        to.value = b"580.65.06"
        return 0

    def nvmlErrorString(code_):
        return b"Driver/library version mismatch"

    return SimpleNamespace(
        nvmlInit_v2=lambda: code,
        nvmlShutdown=lambda: 0,
        nvmlSystemGetDriverVersion=nvmlSystemGetDriverVersion,
        nvmlErrorString=nvmlErrorString,
    )


@pytest.fixture
def machine(monkeypatch, tree):
    """A Linux machine with the given files and libraries, and a torch built for it."""

    def made(files=(), libraries=(), cuda="13.0", hip=None, count=None):
        def load(name):
            if name in libraries:
                return libraries[name]
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(probe, "ROOT", tree(dict.fromkeys(files, "")))
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        for name in ("_device_count_nvml", "_device_count_amdsmi"):
            if count is not None:
                monkeypatch.setattr(torch.cuda, name, lambda: count)
        for name in ("is_available", "device_count", "init", "_lazy_init"):
            forbidden = _forbidden(name)
            monkeypatch.setattr(torch.cuda, name, forbidden)
        nvml._library.cache_clear()

    yield made
    nvml._library.cache_clear()


def _forbidden(name):
    def call(*args):
        raise AssertionError(f"the probe called torch.cuda.{name}, which may start the driver")

    call.__module__ = "torch.cuda"
    return call


ALL = {"libcuda.so.1": libcuda(), "libnvidia-ml.so.1": libnvml()}


class TestProbe:
    def refused(self):
        (refusal,) = probe.probe()
        return refusal

    @pytest.mark.skipif(bool(torch.version.cuda or torch.version.hip), reason="torch has CUDA")
    def test_this_torch_is_built_without(self):
        assert self.refused().code == "torch"
        assert self.refused().have == f"torch {torch.__version__}, built without"
        assert not torch.cuda.is_initialized()

    @pytest.mark.skipif(bool(torch.version.cuda or torch.version.hip), reason="torch has CUDA")
    @pytest.mark.parametrize("home", ["torch_other.npu", "torch.cuda"])
    def test_another_vendors_device_in_place_of_torch_cuda(self, monkeypatch, home):
        def is_available():
            return True

        is_available.__module__ = home
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        assert self.refused().code == "spoof"
        assert f"played by {home}" in self.refused().have

    def test_no_driver(self, machine):
        machine()
        assert self.refused().code == "driver"
        assert self.refused().have.startswith("none: neither libcuda.so.1 nor a device file")

    def test_a_driver_whose_library_is_missing(self, machine):
        machine(NODE)
        assert "cannot be loaded: libcuda.so.1: cannot open" in self.refused().have

    def test_a_library_without_a_device_file(self, machine):
        machine((), ALL)
        assert self.refused().have.startswith("its library libcuda.so.1, but no device file")
        assert "--gpus all" in self.refused().remedy

    def test_a_driver_that_nvml_cannot_talk_to(self, machine):
        machine(NODE, {**ALL, "libnvidia-ml.so.1": libnvml(code=18)})
        assert self.refused().have == "NVML error 18: Driver/library version mismatch"

    def test_a_driver_too_old_for_torch(self, machine):
        machine(NODE, {**ALL, "libcuda.so.1": libcuda(12080)})
        assert self.refused().want == "a driver for CUDA 13.0"
        assert self.refused().have == "one for CUDA 12.8"

    def test_no_gpu_behind_the_driver(self, machine):
        machine(NODE, ALL, count=0)
        assert self.refused().have == "a driver that sees none"

    @pytest.mark.parametrize("value", ["", "-1"])
    def test_gpus_hidden_by_the_environment(self, machine, monkeypatch, value):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        machine(NODE, ALL)  # counted by torch's own function
        assert self.refused().have == f"none that CUDA_VISIBLE_DEVICES={value!r} leaves visible"

    @pytest.mark.parametrize("nodes", [NODE, ["dev/dxg"], ["dev/nvmap"]])
    def test_a_gpu_is_there(self, machine, nodes):
        machine(nodes, ALL, count=2)
        assert probe.probe() == []

    def test_a_part_of_a_gpu_cannot_be_counted_and_is_believed(self, machine, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0123")
        machine(NODE, ALL)
        assert probe.probe() == []

    def test_without_nvml_a_driver_with_device_files_is_believed(self, machine):
        machine(NODE, {"libcuda.so.1": libcuda()})
        assert probe.probe() == []

    def test_a_torch_whose_counting_function_has_gone_is_believed(self, machine, monkeypatch):
        machine(NODE, ALL)
        monkeypatch.delattr(torch.cuda, "_device_count_nvml")
        assert probe.probe() == []

    def test_elsewhere_torch_is_asked(self, machine, monkeypatch):
        machine()
        monkeypatch.setattr(probe.sys, "platform", "win32")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert probe.probe() == []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        assert self.refused().code == "device"

    def test_amd(self, machine, monkeypatch):
        amd = {"cuda": None, "hip": "7.0"}
        machine(**amd)
        assert self.refused().have == "none: no device file /dev/kfd"
        machine(["dev/kfd"], **amd, count=1)
        assert probe.probe() == []
        assert plugin.accel_backend().vendor == "AMD"
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert "groups render and video" in self.refused().remedy

    def test_amd_gpus_hidden_by_the_environment(self, machine, monkeypatch):
        monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
        machine(["dev/kfd"], cuda=None, hip="7.0", count=0)
        assert self.refused().have == "none that HIP_VISIBLE_DEVICES='' leaves visible"


def test_nvml_tells_the_drivers_version(machine):
    machine(libraries=ALL)
    assert nvml.driver_version() == "580.65.06"


def test_nvml_that_is_not_installed(machine):
    machine()
    assert nvml.driver_version() is None
