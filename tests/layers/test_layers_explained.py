"""``accel explain`` tells of every layer and of every inference op, by its name."""

import sys

import pytest

from accel import cli, layers

pytestmark = pytest.mark.usefixtures("torch_serves")

LAYERS = [
    name
    for module in (layers, layers.inference)
    for name, member in vars(module).items()
    if isinstance(member, type) and issubclass(member, layers.OpLayer)
]


@pytest.fixture
def explain(monkeypatch, capsys):
    """The exit status and the output of ``accel explain name``."""

    def explain(name):
        monkeypatch.setattr(sys, "argv", ["accel", "explain", name])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return exited.value.code or 0, capsys.readouterr().out

    return explain


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_known(explain, name):
    code, out = explain(name)
    assert code == 0
    assert name in out or "priority" in out


def test_a_layer_that_uses_no_op_is_said_to(explain):
    assert explain("ResidualAddOp") == (
        0,
        "ResidualAddOp uses no op: torch's own functions compute it\n",
    )
