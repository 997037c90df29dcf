"""accel bench: who takes part, who is refused and why, what is paired, and what is written."""

import json
import statistics
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import accel
from accel import cli, testing
from accel.bench import case, cases, ceilings, contest, judging, run, sizes, timing
from accel.bench.offers import Peer
from accel.contracts import CONTRACTS

FP32 = torch.float32


@pytest.fixture
def backend(monkeypatch):
    """A fake backend whose kernel is the reference; ceilings that take no time."""
    monkeypatch.setattr(ceilings.measure, "__defaults__", (1 << 16, (32,)))
    monkeypatch.setattr(timing, "ROUND", 1e-6)

    def installed(kernel=None, peers=()):
        builder = testing.fake_builder({"linear": kernel or testing.fake_kernel("linear")})
        builder.peers = lambda self: peers
        return testing.installed(testing.fake_backend("solo", builders=[builder]))

    return installed


@pytest.fixture
def bench(monkeypatch, capsys):
    """Run ``accel bench`` at the smallest size; returns its exit status and what it printed."""

    def bench(*arguments, small=True):
        least = ["--sizes", "tiny", "--dtypes", "fp32", "--rounds", "3"] if small else []
        monkeypatch.setattr(sys, "argv", ["accel", "bench", *least, *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        printed = capsys.readouterr()
        return SimpleNamespace(status=exited.value.code or 0, out=printed.out, err=printed.err)

    return bench


def peer(compute, name="other"):
    return Peer("linear", name, lambda x, w, *rest: partial(compute, x, w))


def product(x, w):
    return x @ w.t()


def refused(row):
    return {r["name"]: r["reason"] for r in row["refused"]}


def of_linear(report, variant=""):
    return next(r for r in report["cases"] if r["op"] == "linear" and r["variant"] == variant)


# -- the command -------------------------------------------------------------------------------


def test_figures_of_every_contender_are_written(bench, backend, tmp_path):
    with backend(peers=[peer(product)]):
        done = bench("--ops", "linear", "--json", tmp_path / "f", "--report", tmp_path)
    assert done.status == 0, done.out + done.err
    report = json.loads((tmp_path / "f").read_text())
    assert report["schema"] == run.SCHEMA
    assert report["machine"]["backend"] == "solo"
    assert {c["what"] for c in report["ceilings"]} == {"read", "copy", "float32"}
    row = of_linear(report)
    assert {c["name"]: c["kind"] for c in row["contenders"]} == {
        "fake.kernel": "serves", "torch": "implementation", "F.linear": "plain", "other": "library",
    }  # fmt: skip
    cost = CONTRACTS["linear"].cost(torch.ones(4, 64), torch.ones(64, 64), None, None, None)
    assert (row["bytes"], row["flops"], row["from"]) == (cost.bytes, cost.flops, "cache")
    for contender in row["contenders"]:
        seconds = contender["seconds"]["median"]
        assert seconds == statistics.median(contender["rounds"])
        assert contender["gflops"] == cost.flops / seconds / 1e9
    for name in ("fake.kernel", "F.linear", "other"):
        assert name in done.out
        assert name in (tmp_path / "bench.html").read_text().replace("<wbr>", "")


def test_a_ratio_is_of_the_times_of_one_round(bench, backend, tmp_path):
    with backend():
        bench("--ops", "linear", "--json", tmp_path / "f", "--rounds", "5")
    row = of_linear(json.loads((tmp_path / "f").read_text()))
    by_name = {c["name"]: c for c in row["contenders"]}
    ours, plain = by_name["fake.kernel"], by_name["F.linear"]
    pairs = [p / o for p, o in zip(plain["rounds"], ours["rounds"])]
    assert plain["ratio"]["median"] == statistics.median(pairs)
    assert plain["ratio"]["low"] <= plain["ratio"]["median"] <= plain["ratio"]["high"]
    assert ours["ratio"] is None


def test_a_peer_that_is_not_installed_is_named(bench, backend, tmp_path):
    with backend():
        done = bench("--ops", "layer_norm", "--sizes", "decode", "--json", tmp_path / "f")
    (row,) = json.loads((tmp_path / "f").read_text())["cases"]
    for name, install in (("liger-kernel", "pip install liger-kernel"), ("apex", "its sources")):
        assert "not installed" in refused(row)[name]
        assert install in refused(row)[name]
        assert f"not measured: {name}, layer_norm" in done.out


def broken(*args):
    raise OSError("no such library")


def test_a_peer_that_computes_something_else_or_raises_is_refused(bench, backend, tmp_path):
    peers = [
        peer(lambda x, w: product(x, w) * 1.001, "off"),
        peer(lambda x, w: product(x, w)[:1], "short"),
        peer(lambda x, w: product(x, w) * float("nan"), "nan"),
        peer(broken, "raises"),
        Peer("linear", "unprepared", broken),
        Peer("linear", "picky", broken, lambda request: [accel.Refusal("dtype", "int8", "fp32")]),
    ]
    with backend(peers=peers):
        assert bench("--ops", "linear", "--json", tmp_path / "f").status == 0
    row = of_linear(json.loads((tmp_path / "f").read_text()))
    why = refused(row)
    assert "computes something else" in why["off"]
    assert "where the contract has" in why["short"]
    assert "computes something else: inf" in why["nan"]
    assert why["raises"] == why["unprepared"] == "OSError: no such library"
    assert why["picky"] == "[dtype] needs int8, found fp32"
    assert not {p.name for p in peers} & {c["name"] for c in row["contenders"]}


@pytest.mark.parametrize("kernel", [broken, lambda x, w, *rest: product(x, w) + 1])
def test_what_serves_and_is_wrong_fails_the_run(bench, backend, tmp_path, kernel):
    with backend(kernel):
        done = bench("--ops", "linear", "--json", tmp_path / "f")
    assert done.status == 1
    row = of_linear(json.loads((tmp_path / "f").read_text()))
    assert "fake.kernel" in refused(row)
    assert all(c["ratio"] is None for c in row["contenders"])


def test_list_names_every_op_and_layer_and_measures_nothing(bench, backend, monkeypatch):
    monkeypatch.setattr(run, "bench", broken)
    with backend():
        done = bench("--list", "--sizes", "decode,prefill,train", small=False)
    assert done.status == 0
    listed = {line.split()[0] for line in done.out.splitlines()}
    assert listed == {*CONTRACTS, *cases.LAYERS}
    assert "linear decode: 1x1024 -> 4096, beside F.linear" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ops", "linaer"], "no op or layer 'linaer'; did you mean 'linear'"),
        (["--sizes", "prefil"], "no size 'prefil'; did you mean 'prefill'"),
        (["--dtypes", "int32"], "no dtype int32; known: float"),
        (["--dtypes", "fp7"], "'fp7' is no torch dtype"),
        (["--device", "absent"], "absent"),
    ],
)
def test_what_there_is_not_is_said(bench, backend, arguments, says):
    with backend():
        done = bench("--ops", "linear", *arguments)
    assert done.status == 2
    assert says in done.err


# -- cases -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::accel.errors.VarianceWarning")
@pytest.mark.parametrize(
    "made", [*cases.cases(None, ["tiny"], backward=True)], ids=lambda c: c.name
)
def test_what_one_writes_in_torch_computes_what_the_contract_says(made, backend):
    """Of every case: plain torch, and for layers torch's modules."""
    with backend(), accel.use_accelerator("solo") as accelerator:
        if isinstance(made, case.Case):
            found = contest.contest(made, FP32, accelerator)
        else:
            found = made.contest(FP32, accelerator)
        here = [c for c in found.contenders if c.kind in ("serves", "plain")]
        found = contest.Contest(here, [], found.work, found.wanted)
        passed, refused = judging.checked(found, made.tolerance(FP32), accelerator)
    assert not refused
    assert {c.kind for c in here} == {"serves", "plain"}
    assert all((check.error is None) == (found.wanted is None) for check in passed.values())


def test_sets_of_arguments_are_taken_in_turn_by_all_contenders(backend, monkeypatch):
    """So that none finds in a cache what it, or another, has just read."""
    seen = []

    def plain(x, w, *rest):
        seen.append(w.data_ptr())
        return product(x, w)

    size = sizes.Size("one", "", 1, 1, 8, 64, 64, 4, 64, cold=True)
    (made, _) = cases.cases(["linear"], ["tiny"])
    made = case.Case("linear", size, "", made.make, plain, "plain")
    monkeypatch.setattr(case, "COLD", 1 << 17)
    with backend(peers=[peer(plain)]), accel.use_accelerator("solo") as accelerator:
        found = contest.contest(made, FP32, accelerator)
    assert found.work.cold
    first, second = (c.timed() for c in found.contenders if c.kind in ("plain", "library"))
    sets = len(found.contenders[0].calls)
    assert sets > 4
    seen.clear()
    for _ in range(sets):
        first(1)
        second(2)
    assert len(set(seen)) == sets
    assert all(seen[i] == seen[i % sets] for i in range(len(seen)))
