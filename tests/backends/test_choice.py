"""Which backend is chosen with all three installed, on a machine without a GPU."""

import importlib.metadata

import pytest
import torch

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or torch.xpu.is_available(), reason="there is a GPU"
)

_CHOOSE = """
    import warnings

    import accel, torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        acc = accel.get_accelerator()
        assert accel.get_accelerator() is acc
    print(acc.name)
    for warning in caught:
        print(warning.category.__name__, warning.filename, warning.message)
    assert not torch.cuda.is_initialized() and not torch.xpu.is_initialized()
"""


def test_all_three_are_installed_as_plugins():
    entries = importlib.metadata.entry_points(group="accel.backends")
    assert {"cpu", "cuda", "xpu"} <= entries.names


def test_the_host_is_chosen_with_one_warning_that_names_the_causes(fresh):
    chosen, *warned = fresh(_CHOOSE).stdout.splitlines()
    assert chosen == "cpu"
    assert warned[0].startswith("AccelWarning <string> accel runs on 'cpu'")
    assert sum(line.startswith("AccelWarning") for line in warned) == 1
    causes = {line.split(":")[0].strip(): line for line in warned[1:]}
    for name, title in (("cuda", "CUDA"), ("xpu", "XPU")):
        if getattr(torch.version, name, None) is None:
            assert f"found torch {torch.__version__}, built without" in causes[name]
            assert title in causes[name]


def test_asking_for_the_host_is_silent(fresh):
    assert fresh(_CHOOSE, ACCEL_BACKEND="cpu").stdout.splitlines() == ["cpu"]


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_asking_for_a_gpu_raises_and_says_why(fresh, name):
    code = """
        import accel, os, pytest, torch

        name = os.environ["ACCEL_BACKEND"]
        with pytest.raises(accel.errors.BackendUnavailableError) as refused:
            accel.get_accelerator()
        print(refused.value)
        for ask in (accel.set_accelerator, lambda n: accel.use_accelerator(n).__enter__()):
            with pytest.raises(accel.errors.BackendUnavailableError, match="cannot be used"):
                ask(name)
    """
    said = fresh(code, ACCEL_BACKEND=name).stdout
    assert said.startswith(f"ACCEL_BACKEND={name}: backend '{name}' of accel-{name} ")
    assert "is installed and cannot be used: [" in said
    if getattr(torch.version, name, None) is None:
        assert f"found torch {torch.__version__}, built without" in said
        assert "install one: https://" in said


def test_a_fork_after_the_probes_works_and_no_device_was_started(fresh):
    fresh("""
        import os, signal

        import accel_cuda.probe, accel_xpu.probe, torch

        refused = accel_cuda.probe.probe(), accel_xpu.probe.probe()
        assert all(refused)
        assert not torch.cuda.is_initialized() and not torch.xpu.is_initialized()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            assert (accel_cuda.probe.probe(), accel_xpu.probe.probe()) == refused
            assert not torch.cuda._is_in_bad_fork() and not torch.xpu._is_in_bad_fork()
            ones = torch.ones(512, 512)
            os._exit(0 if float((ones @ ones).sum()) == 512.0**3 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """)
