"""Autotuning: it chooses what is fastest, keeps it, and touches nothing that changes a result.

The clock is the tests' own, so that a busy machine cannot change what is fastest.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import filelock
import pytest
import torch

import accel
from accel import Impl, Knob, testing
from accel.errors import AccelWarning, OpArgumentError, PluginError
from accel.layers.inference import InferenceConfig, LinearOp, autotune, tuning_table
from accel.layers.inference.tuning_table import TuningTable, network_of

F32 = torch.float32
DEVICE = "accel.testing " + testing.HOST + ", fake 0"


class LinearBuilder(accel.OpBuilder):
    """By its own clock its kernel takes as many milliseconds as ``wait`` says, for more than four
    rows the more the less; a ``spoil`` of 1 changes the last bit of one element."""

    device_type = testing.HOST
    impls = (Impl("linear", "fake.slow", frozenset({F32}), priority=1000, shape_invariant=True),)
    lies = False
    seconds = 0.0

    def __init__(self):
        self.settings, self.calls = {}, 0

    def knobs(self, impl):
        more = (Knob("spoil", (0, 1)),) if self.lies else ()
        return (Knob("wait", (2, 1, 3)), *more)

    def turn(self, impl, dtype, shapes, settings):
        assert (impl.id, dtype) == ("fake.slow", F32)
        self.settings[shapes] = dict(settings)

    def load(self, impl):
        def kernel(x, w, b, act, out_dtype):
            self.calls += 1
            chosen = self.settings[tuple(x.shape), tuple(w.shape), None]
            wait = chosen["wait"] if len(x) <= 4 else 4 - chosen["wait"]
            LinearBuilder.seconds += wait / 1000
            y = torch.einsum("mk,nk->mn", x, w)
            if chosen.get("spoil"):
                y[0, 0] = torch.nextafter(y[0, 0], y.new_tensor(torch.inf))
            return y

        return kernel


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(autotune, "perf_counter", lambda: LinearBuilder.seconds)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def tuned(cache):
    """``tuned()`` tunes three and five rows in a new registry: (what it did, the builder)."""

    def run(**members):
        builder = type("LinearBuilder", (LinearBuilder,), members)
        with testing.installed(testing.fake_backend(builders=[builder])):
            mine = accel.ops.explain("linear").chosen.builder
            cases = [(torch.ones(m, 4), torch.ones(2, 4)) for m in (3, 5)]
            try:
                did = autotune.tune("linear", cases)
            except PluginError as error:
                did = error
            return did, mine

    return run


SHAPES = [((3, 4), (2, 4), None), ((5, 4), (2, 4), None)]
NAMES = ["linear fake.slow float32 3x4 2x4 -", "linear fake.slow float32 5x4 2x4 -"]
FASTEST = {SHAPES[0]: {"wait": 1}, SHAPES[1]: {"wait": 3}}
TABLE = {DEVICE: dict(zip(NAMES, FASTEST.values()))}


def test_the_fastest_is_chosen_by_shape_kept_and_known_again(tuned, cache):
    did, builder = tuned()
    assert did.settings == builder.settings == FASTEST
    assert (did.impl, builder.calls > 6) == ("fake.slow", True)
    assert "2 of 2 shapes were measured" in str(did)
    assert json.loads((cache / "tuning.json").read_text()) == TABLE
    did, builder = tuned()
    assert did.settings == builder.settings == FASTEST
    assert builder.calls == 0
    assert f"0 of 2 shapes were measured, the others known; kept in {cache}" in str(did)


def test_a_value_that_is_no_more_is_measured_again(tuned, cache):
    other = {NAMES[0]: {"wait": 7}, NAMES[1]: {"block": 1}}
    (cache / "tuning.json").write_text(json.dumps({DEVICE: other, "another": {"x": {"y": 1}}}))
    assert tuned()[0].settings == FASTEST
    kept = json.loads((cache / "tuning.json").read_text())
    assert kept == {**TABLE, "another": {"x": {"y": 1}}}


def test_a_knob_that_changes_a_result_is_named(tuned, cache):
    error, builder = tuned(lies=True)
    assert isinstance(error, PluginError)
    assert "the knob 'spoil' of fake.slow (linear) changes results: with 1" in str(error)
    assert builder.settings == {SHAPES[0]: {"wait": 2, "spoil": 0}}
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize("damage", ["{", "[]", '{"x": 1}', '{"x": {"y": 2}}', "\xff"])
def test_a_damaged_table_is_said_and_made_anew(tuned, cache, damage):
    file = cache / "tuning.json"
    file.write_bytes(damage.encode("latin-1"))
    with pytest.warns(AccelWarning, match="cannot be read, and is made anew"):
        assert tuned()[0].settings == FASTEST
    assert json.loads(file.read_text()) == TABLE


def test_on_a_network_nothing_is_written_unless_told(tuned, cache, monkeypatch):
    mounts = cache / "mounts"
    mounts.write_text(f"/dev/x / ext4 rw 0 0\nserver:/home {cache} nfs4 rw 0 0\n")
    monkeypatch.setattr(tuning_table, "MOUNTS", mounts)
    with pytest.warns(AccelWarning, match=r"network file system \(nfs4\).*ACCEL_TUNING_TABLE"):
        did, builder = tuned()
    assert builder.settings == FASTEST
    assert str(did).endswith("kept in memory")
    assert not (cache / "tuning.json").exists()
    monkeypatch.setenv("ACCEL_TUNING_TABLE", str(cache / "told" / "table.json"))
    tuned()
    assert json.loads((cache / "told" / "table.json").read_text()) == TABLE


def test_the_innermost_mount_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_table, "MOUNTS", tmp_path / "mounts")
    assert network_of(tmp_path) is None, "the system does not say"
    (tmp_path / "mounts").write_text(
        f"/dev/x / ext4 rw 0 0\nserver:/ {tmp_path} nfs rw 0 0\n/dev/y {tmp_path}/a ext4 rw 0 0\n"
    )
    (tmp_path / "link").symlink_to(tmp_path / "b")
    found = {name: network_of(tmp_path / name) for name in ("a/b/c", "ab", "b/c", "link/x")}
    assert found == {"a/b/c": None, "ab": "nfs", "b/c": "nfs", "link/x": "nfs"}
    assert network_of(tmp_path.parent) is None


def test_a_lock_that_is_held_costs_the_table_alone(tuned, cache, monkeypatch):
    monkeypatch.setattr(tuning_table, "LOCK_TIMEOUT", 0.05)
    held = filelock.FileLock(cache / "tuning.json.lock")
    with held, pytest.warns(AccelWarning, match=r"cannot be written.*ACCEL_TUNING_TABLE"):
        did, builder = tuned()
    assert builder.settings == FASTEST
    assert str(did).endswith("kept in memory")


def test_a_table_that_cannot_be_written_costs_itself_alone(tuned, cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("ACCEL_TUNING_TABLE", str(cache / "file" / "table.json"))
    with pytest.warns(AccelWarning, match="cannot be written"):
        assert tuned()[0].settings == FASTEST


def test_tables_written_at_once_are_all_there(cache):
    def add(n):
        TuningTable(f"device {n % 3}").add({f"shape {n}": {"knob": n}})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    whole = json.loads((cache / "tuning.json").read_text())
    assert whole == {
        f"device {d}": {f"shape {n}": {"knob": n} for n in range(d, 24, 3)} for d in range(3)
    }
    assert {file.name for file in cache.iterdir()} == {"tuning.json", "tuning.json.lock"}


def test_a_kernel_without_knobs_says_so(cache):
    with testing.installed(testing.fake_backend()), accel.ops.use(exact=False):
        did = LinearOp._triton_autotune(1, 8, 4, F32)
    assert (did.settings, str(did)) == ({}, "torch (linear) has no knobs to tune")


@pytest.mark.parametrize("sizes", [(0, 8, 4), (9, 8, 4), (1, 8, -1)], ids=str)
def test_sizes_that_cannot_be_are_refused(cache, sizes):
    with testing.installed(testing.fake_backend()):  # noqa: SIM117
        with pytest.raises(OpArgumentError, match="1 <= min_seqlen <= max_seqlen"):
            LinearOp._triton_autotune(*sizes)
    with pytest.raises(PluginError, match="'wait' needs a value"):
        Knob("wait", ())


def test_linear_tunes_once_per_model(cache):
    """Rows from 2 on, every 32nd, past what is asked for; torch's random numbers stay."""
    state = torch.get_rng_state()
    settings = {"hidden_size": 8, "dtype": F32, "max_out_tokens": 40}
    with testing.installed(testing.fake_backend(builders=[LinearBuilder])):
        ops = [
            LinearOp(InferenceConfig(**settings, triton_autotune=tune, layer_id=layer))
            for tune, layer in ((False, 0), (True, 1), (True, 0))
        ]
    assert [op.tuned is None for op in ops] == [True, True, False]
    assert list(ops[2].tuned.settings) == [((m, 8), (24, 8), None) for m in (2, 34, 66)]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("kind", "warns"), [("triton", False), ("plain", True)])
def test_triton_is_missed_with_a_word(kind, warns, recwarn):
    kernels = {"linear": testing.fake_kernel("linear")}
    builder = testing.fake_builder(kernels, id=f"fake.{kind}")
    with testing.installed(testing.fake_backend(builders=[builder])):
        config = InferenceConfig(use_triton=True, dtype=F32)
        if warns:
            with pytest.warns(AccelWarning, match=r"use_triton is set, and .* by fake\.plain"):
                LinearOp(config)
        else:
            LinearOp(config)
    assert not recwarn.list
