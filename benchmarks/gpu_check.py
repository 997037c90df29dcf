"""Everything that only a GPU can tell, in one run of ten minutes, from the checkout as it is.

    python benchmarks/gpu_check.py                    # on a machine with an NVIDIA GPU
    python benchmarks/gpu_check.py --rehearse         # every stage, tiny, on the CPU

Conformance of the backend, exactness of the engine for every policy, and speed beside torch eager,
torch.compile, SDPA and transformers' generate. Nothing has to be installed but torch, triton,
transformers, peft and the core's small dependencies. Each stage is a process with a time limit, so
that one that fails loses no other; --only some kinds of them gives these all the time. Writes
check.json, check.md, and the bench's and conformance's pages into benchmarks/results/<device>/.
Exit code 0: every stage came to its end and all is correct; 1: not so; 2: there is no such device,
or something to run with is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gpu_environment import environment, installed
from gpu_goals import Goal, goals
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
STAGES = Path(__file__).with_name("gpu_stages.py")
MINUTES = 10.0
TOGETHER = 220  # seconds, of all stages that run side by side, where others follow
KINDS = ("conformance", "exactness", "decode", "linear", "layer", "logprob", "engine", "ops")


@dataclass
class Stage:
    """One process: what became of it, after how many seconds, and the rows it wrote."""

    name: str
    limit: float
    outcome: str = "not started"
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def good(self) -> bool:
        """It came to its end, and nothing it checked was wrong."""
        return self.outcome == "done" and all(
            row.get("good", True) and "error" not in row for row in self.rows
        )


def checks(ops: Sequence[str], models: Sequence[str]) -> list[Stage]:
    """Those that check, side by side: compiling kernels is most of their time. Ops and models in
    turn, so that what is cut off at the end is some of both."""
    named = ([f"conformance:{op}" for op in ops], [f"exactness:{name}" for name in models])
    turns = zip_longest(*named)
    return [Stage(name, 3600.0) for turn in turns for name in turn if name is not None]


def measurements() -> list[Stage]:
    """Those that measure, one after another, what matters most first."""
    limits = {"decode": 150, "linear": 60, "layer": 110, "logprob": 45, "engine": 60, "ops": 240}
    return [Stage(name, limit) for name, limit in limits.items()]


class Runner:
    """Starts stages as processes, ends those that outrun their limit, and collects their rows."""

    def __init__(self, into: Path, env: dict[str, str], until: float, rehearse: bool) -> None:
        self.into, self.env, self.until, self.rehearse = into, env, until, rehearse
        self.ended: Callable[[], object] = lambda: None  # called after each

    def run(self, stages: Sequence[Stage], at_once: int = 1, most: float = 1e9) -> None:
        """Up to so many at once; what has not started after ``most`` seconds never does."""
        until = min(self.until, time.monotonic() + most)
        waiting, running = list(stages), list[tuple[Stage, subprocess.Popen[bytes], float]]()
        # Oracles compute on the host, where as many are at work.
        threads = {} if at_once == 1 else {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
        while waiting or running:
            while waiting and len(running) < at_once:
                stage = waiting.pop(0)
                if time.monotonic() < until:
                    running.append((stage, self._started(stage, threads), time.monotonic()))
            for one in list(running):
                stage, process, since = one
                stage.seconds = time.monotonic() - since
                late = stage.seconds > stage.limit or time.monotonic() > until
                if process.poll() is None and not late:
                    continue
                running.remove(one)
                self._ended(stage, process)
            time.sleep(0.1)

    def _started(self, stage: Stage, more: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(STAGES), stage.name, str(self.into)]
        command += ["--rehearse"] * self.rehearse
        env = self.env | more
        return subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)

    def _ended(self, stage: Stage, process: subprocess.Popen[bytes]) -> None:
        code = process.poll()
        # Its group too: compilers and workers that it has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        stage.outcome = "timed out" if code is None else "done" if code == 0 else f"failed ({code})"
        written = self.into / f"{stage.name.replace(':', '-')}.jsonl"
        if written.exists():
            stage.rows = list(_rows(written.read_text(encoding="utf-8")))
            written.unlink()
        state = "" if stage.good or stage.outcome != "done" else ", with errors"
        print(f"[{stage.name}] {stage.outcome}{state}, {stage.seconds:.0f} s", flush=True)
        self.ended()


def _rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the last, of a process that was ended while it wrote
            return


def main() -> int:
    asked = _arguments()
    backend = "cpu" if asked.rehearse else asked.backend
    if not installed():
        return 2
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "path").mkdir()
        env = environment(Path(made) / "path", backend)
        working = Path(made) / "results"
        working.mkdir()
        runner = Runner(working, env, time.monotonic() + asked.minutes * 60, asked.rehearse)
        machine = _machine(runner, env)
        if machine is None:
            return 2
        ops, models = asked.ops, asked.models
        if asked.rehearse:
            ops, models = ops or ["linear"], models or ["llama"]
        # Ops that are made of others come last in the table and take longest: they start first.
        checking = checks(
            ops or _known(env, _OPS)[::-1] or ["linear"],
            models or _known(env, _MODELS) or ["llama"],
        )
        measuring = measurements()
        at_once = 1 if asked.rehearse else max(1, min(10, (os.cpu_count() or 2) * 2 // 3))
        device = re.sub(r"[^A-Za-z0-9.]+", "-", machine["device"]).strip("-")
        into = asked.out / device
        checking, measuring = (
            [stage for stage in stages if not asked.only or stage.kind in asked.only]
            for stages in (checking, measuring)
        )
        everything = [*checking, *measuring]
        runner.ended = lambda: write(working, into, machine, everything)
        runner.run(checking, at_once, TOGETHER if measuring else 1e9)
        runner.run(measuring)
        runner.ended()
    Console().print(table(goals(everything)))
    bad = [stage for stage in everything if not stage.good]
    for stage in bad:
        print(f"{stage.name}: {stage.outcome}; {_first_error(stage)}")
    print(f"written: {into}")
    return 1 if bad else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="cuda", help="an accel backend (default: cuda)")
    parser.add_argument("--rehearse", action="store_true", help="every stage, tiny, on the CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only", nargs="+", choices=KINDS, help="these kinds of stages alone")
    parser.add_argument("--ops", nargs="+", help="conformance of these alone")
    parser.add_argument("--models", nargs="+", help="exactness of these alone")
    return parser.parse_args()


def _machine(runner: Runner, env: dict[str, str]) -> dict[str, Any] | None:
    """What the backend runs on; None, and a sentence, where it does not."""
    asking = "import accel; print(accel.get_accelerator().name)"
    asked = subprocess.run([sys.executable, "-c", asking], env=env, capture_output=True, text=True)
    if asked.returncode:
        why = asked.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(
            f"gpu_check: asked for backend {env['ACCEL_BACKEND']!r}, found {why[0]}; possible: run "
            f"it where there is such a device, or --rehearse on this one",
            file=sys.stderr,
        )
        return None
    stage = Stage("machine", 120)
    runner.run([stage])
    return stage.rows[0] if stage.rows else {"device": env["ACCEL_BACKEND"]}


_OPS = "from accel.contracts import CONTRACTS as found"
_MODELS = f"import sys; sys.path.append({str(ROOT / 'tests' / 'engine')!r})\n" \
    "from models import EVERY as found"  # fmt: skip


def _known(env: dict[str, str], where: str) -> list[str]:
    """Names of what there is; none where that cannot be imported, which a stage will tell of."""
    script = f"{where}\nimport json; print(json.dumps(list(found)))"
    done = subprocess.run([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE)
    found: list[str] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
    return found


def write(working: Path, into: Path, machine: dict[str, Any], stages: Sequence[Stage]) -> None:
    """What is known by now: a run that is ended early loses nothing."""
    into.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(shutil.Error):  # of what others are writing, or have taken away
        shutil.copytree(working, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.jsonl"))
    found = goals(stages)
    facts = {
        "machine": machine,
        "goals": [vars(goal) | {"met": goal.met} for goal in found],
        "stages": [vars(stage) | {"good": stage.good} for stage in stages],
    }
    (into / "check.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    lines = [f"# {machine['device']}", "", "| what | goal | found | |", "|---|---|---|---|"]
    lines += [f"| {g.what} | {g.text} | {g.shown} | {g.verdict} |" for g in found]
    lines += ["", "| stage | outcome | seconds | first error |", "|---|---|---|---|"]
    lines += [f"| {s.name} | {s.outcome} | {s.seconds:.0f} | {_first_error(s)} |" for s in stages]
    (into / "check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _first_error(stage: Stage) -> str:
    for row in stage.rows:
        if "error" in row:
            return " ".join(row["error"].split())[:200].replace("|", "/")
        if not row.get("good", True):
            kept = {k: row[k] for k in ("op", "model", "case", "dtype", "differ") if k in row}
            return f"wrong: {kept}"
    return ""


def table(found: Sequence[Goal]) -> Table:
    shown = Table("what", "goal", "found", "", title="gpu_check")
    for goal in found:
        shown.add_row(goal.what, goal.text, goal.shown, goal.verdict)
    return shown


if __name__ == "__main__":
    sys.exit(main())
