"""accel bench: times in rounds, ratios, ceilings, shares and goals."""

from types import SimpleNamespace

import torch

from accel.bench import agreement, ceilings, contest, judging, run, timing
from accel.bench.offers import Ceiling
from accel.contracts import CONTRACTS

FP32 = torch.float32

# -- timing ------------------------------------------------------------------------------------


class Clock:
    """Takes as long as it is told for a contender, and writes down who was timed."""

    def __init__(self, seconds):
        self.taken, self.log = seconds, []

    def seconds(self, loop, repeats=1):
        name = loop(repeats)
        self.log.append(name)
        return self.taken[name]


def test_every_round_has_every_contender_in_an_order_of_its_own():
    clock = Clock({"a": 0.02, "b": 0.03, "c": 0.04})
    loops = {name: lambda repeats, name=name: name for name in clock.taken}
    found = timing.in_rounds(loops, clock, rounds=8)
    assert {name: len(times) for name, times in found.items()} == {"a": 8, "b": 8, "c": 8}
    rounds = [tuple(clock.log[i : i + 3]) for i in range(3, 27, 3)]
    assert all(set(order) == {"a", "b", "c"} for order in rounds)
    assert len(set(rounds)) > 1


def test_a_slow_contender_is_in_the_first_rounds_alone():
    clock = Clock({"fast": 1e-3, "slow": timing.PATIENCE / 2.5, "slowest": 100.0})
    loops = {name: lambda repeats, name=name: name for name in clock.taken}
    found = timing.in_rounds(loops, clock, rounds=9)
    counts = [len(found[name]) for name in ("fast", "slow", "slowest")]
    assert counts == [9, 2, 1]
    assert timing.ratio(found["slowest"], found["fast"]).median == 100.0 / 1e-3


def test_where_all_were_refused_nobody_is_timed():
    assert timing.in_rounds({}, Clock({}), rounds=3) == {}


def test_quartiles_are_of_the_ratios_and_not_of_the_times():
    ours, theirs = [1.0, 2.0, 4.0, 8.0, 16.0], [3.0, 6.0, 12.0, 24.0, 48.0]
    assert timing.ratio(theirs, ours) == timing.Spread(3.0, 3.0, 3.0)
    assert timing.Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == timing.Spread(3.0, 2.0, 4.0)


# -- ceilings ----------------------------------------------------------------------------------

ROOF = ceilings.Ceilings(
    (
        Ceiling("read", 10e9, "one"), Ceiling("read", 20e9, "two"), Ceiling("copy", 15e9, "one"),
        Ceiling("float32", 100e9, ceilings.BY_TORCH), Ceiling("float32", 200e9, "loop"),
        Ceiling("bfloat16", 1e9, ceilings.BY_TORCH), Ceiling("bfloat16", 200e9, "loop"),
    )
)  # fmt: skip


def rates(**row):
    row = {"dtype": "float32", "from": "memory", "contenders": [{"seconds": {"median": 1.0}}]} | row
    return judging.rated(row, ROOF)["contenders"][0]


def test_the_highest_of_several_ways_is_the_ceiling():
    assert ROOF.memory == 20e9
    assert ROOF.product("float32") == 200e9
    assert [c["method"] for c in ROOF.to_list() if c["best"]] == ["two", "one", "loop", "loop"]
    slower = ceilings.Ceilings(tuple(Ceiling(c.what, c.rate / 2, c.method) for c in ROOF.measured))
    assert set(slower.and_again(ROOF).measured) == set(ROOF.measured)


def test_the_share_is_of_the_ceiling_that_binds():
    memory = rates(bytes=int(5e9), flops=int(5e9))
    assert (memory["binds"], memory["share"], memory["gbytes"]) == ("memory", 0.25, 5.0)
    computed = rates(bytes=int(5e9), flops=int(100e9))
    assert (computed["binds"], computed["share"], computed["gflops"]) == ("product", 0.5, 100.0)


def test_there_is_no_ceiling_for_what_comes_from_a_cache_or_is_not_counted():
    cached = rates(bytes=int(5e9), flops=int(5e9), **{"from": "cache"})
    assert (cached["binds"], cached["share"]) == (None, None)
    assert rates(bytes=int(5e9), flops=int(150e9), **{"from": "cache"})["binds"] == "product"
    nothing = rates(bytes=None, flops=None)
    assert (nothing["gflops"], nothing["gbytes"], nothing["share"]) == (None, None, None)


def test_a_dtype_that_takes_minutes_is_left_out_with_a_word_unless_asked_for():
    (why,) = run._slow(ROOF, [FP32, torch.bfloat16]).values()
    assert "1 GFLOP/s in it beside 100 in float32; --dtypes bfloat16 measures it" in why
    assert not run._slow(ROOF, [FP32])


def test_an_error_is_in_units_of_the_result_and_the_worst_of_several():
    wanted = torch.full((4,), 2.0, dtype=torch.float64)
    off = wanted.clone()
    off[0] += 0.5
    assert agreement.error([off, wanted], [wanted, wanted]) == agreement.Error(0.125, 0.25)
    budget = CONTRACTS["linear"].tolerance[FP32]
    assert agreement.Error(budget.rms, 0.0).used(budget, 1.0) == 1.0
    assert agreement.Error(0.0, float("nan")).used(budget, 8.0) == float("inf")


def test_an_element_of_a_row_that_stands_out_is_held_to_its_row():
    wanted = torch.full((100, 4), 0.01)
    wanted[0] = 1.0
    size = float(wanted.square().mean().sqrt())
    for row, unit in ((0, 1.0), (1, size)):
        got = wanted.clone()
        got[row, 2] += 0.5
        assert abs(agreement.error([got], [wanted]).peak - 0.5 / unit) < 1e-5


def test_goals_are_times_of_a_peers_time_and_memory():
    row = {
        "contenders": [
            {"name": "ours", "kind": "serves", "peak_bytes": 10, "ratio": None},
            {"name": "plain", "kind": "plain", "peak_bytes": 40, "ratio": {"median": 2.0}},
        ]
    }
    goals = [contest.Goal("plain", "time", 1.1), contest.Goal("plain", "memory", 0.1)]
    assert [g["is"] for g in judging.reached(row, goals)] == [0.5, 0.25]
    assert not judging.reached(row, [contest.Goal("absent", "time", 1.1)])


class Device:
    """An accelerator whose events say how long work took on it."""

    def __init__(self, works_on):
        self.works_on, self.log = works_on, []

    def use_host_timers(self):
        return not self.works_on

    def supports(self, capability):
        return capability == "event_timing"

    def synchronize(self):
        self.log.append("synchronize")

    def Event(self, enable_timing):
        return SimpleNamespace(
            record=lambda: self.log.append("record"),
            synchronize=lambda: None,
            elapsed_time=lambda end: 8000.0,  # milliseconds
        )


def test_a_device_that_works_on_is_timed_by_its_events():
    device = Device(works_on=True)
    assert timing.Clock(device).seconds(lambda n: device.log.append(n), 4) == 2.0
    assert device.log == ["synchronize", "record", 4, "record"]


def test_the_host_waits_for_a_device_without_them():
    device = Device(works_on=False)
    assert timing.Clock(device).seconds(lambda n: device.log.append(n), 2) >= 0
    assert device.log == ["synchronize", 2, "synchronize"]
