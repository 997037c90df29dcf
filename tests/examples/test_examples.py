"""Each example runs for a few steps for real, and says what is true."""

import re
import xml.dom.minidom
from importlib.util import find_spec

import pytest


def test_grpo_runs_and_its_rollouts_are_what_it_trains_on(example, monkeypatch, capsys):
    monkeypatch.setenv("ACCEL_BACKEND", "cpu")
    example("grpo").main(["--reading", "2", "--steps", "1"])
    said = capsys.readouterr().out
    assert re.search(r"reading, step 0: 5\.\d+ nats/byte", said)
    assert re.search(r"^step 0: reward \d\.\d+, max \|delta logprob\| 0$", said, re.MULTILINE)
    assert re.search(r"never trained on: \d\.\d+ -> \d\.\d+$", said, re.MULTILINE)


def test_the_demo_runs_in_its_time_and_fails_where_the_reward_did_not_rise(script, tmp_path):
    """After a step of reading nothing it writes parses."""
    hasty = ("--seconds", 0.001, "--no-conformance", "--report", tmp_path)
    said = script("demo.py", *hasty, status=1)
    assert " 1 steps, loss" in said
    assert "training = 0" in said
    assert "is answered as in a batch" in said
    assert "times as fast" in said
    assert xml.dom.minidom.parse(str(tmp_path / "reward.svg")).getElementsByTagName("circle")


@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")
def test_trl_trains_on_what_the_engine_generates(example, monkeypatch):
    from accel.engine.generation.generate import Generate
    from accel.engine.modules.model import Decoder

    grpo_trl, served = example("grpo_trl"), []
    for forward in (Generate, Decoder):
        call = forward.__call__

        def counted(self, *args, _call=call, _forward=forward, **kwargs):
            served.append(_forward)
            return _call(self, *args, **kwargs)

        monkeypatch.setattr(forward, "__call__", counted)
    monkeypatch.setenv("ACCEL_BACKEND", "cpu")
    trainer = grpo_trl.main(["--reading", "2", "--steps", "2"])
    assert trainer.state.global_step == 2
    assert served.count(Generate) == 2
    # Reading, prompts and tokens before there is a graph, and a forward that trains of each step.
    assert served.count(Decoder) >= 2 + 2 * 3


# -- the reward --------------------------------------------------------------------------------

HEADER = b"def f(self, x):\n"
ANSWERS = {
    b"    a = x\n    b = a\n    c(b)\n    return b\n    x": 1.0,
    b"    a = x\n    a = x\n    retu": 0.25,
    b"    if x:\n        return 1\n    y = (\n    ": 0.25,
    b"    x\n    'a string'\n    x + 1\n": 0.0,
    b"    # a comment\n    pass\n": 0.25,
    b"    pass": 0.0,
    b"return 1\n": 0.0,
    b"    a = \x00\n": 0.0,
    b"    a = '\xff'\n": 0.0,
    b"\n" * 96: 0.0,
    b"(" * 96 + b"\n": 0.0,
}


@pytest.mark.parametrize(("answer", "wanted"), ANSWERS.items(), ids=range(len(ANSWERS)))
def test_the_reward_counts_different_statements_that_parse(example, answer, wanted):
    assert example("grpo").reward(HEADER, answer) == wanted


def test_held_out_functions_are_others_and_all_of_them_parse(example):
    import ast

    data = example("python_bytes")
    kept, held_out = data.functions(), data.functions(held_out=True)
    assert len(kept) > len(held_out) > 100
    for header in data.headers(kept)[::50]:
        assert ast.parse(header + b"    pass")
