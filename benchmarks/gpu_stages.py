"""The stages of gpu_check.py: what each measures on the backend of ``ACCEL_BACKEND``.

A stage yields rows as it makes them, and each is on disk at once: one that is ended loses nothing.

    python gpu_stages.py STAGE FOLDER [--rehearse]    # inside gpu_check.py's environment
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import accel
from accel.bench import ceilings, page, products, run
from accel.bench.cases import CASES, cases
from accel.bench.contest import SERVES
from accel.bench.sizes import Size
from accel.bench.timing import Clock, in_rounds

Row = dict[str, Any]
Rows = Iterator[Row]

FEW, MANY = 32, 96  # tokens; their difference leaves the prompt out
PROMPT = 32
PATIENCE = 8.0  # seconds in all, of one length
LLAMA = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096,
    "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
TINY = {**LLAMA, "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
# Products as models of some billions have them.
ROWS = (1, 16, 128, 2048)
WIDE = [Size(f"M={m}", f"{m} rows", m, 1, 1, width=4096, inner=4096, cold=True) for m in ROWS]
HALF = (torch.bfloat16,)
BOTH = (torch.bfloat16, torch.float32)


def machine(folder: Path, rehearse: bool) -> Rows:
    accelerator = accel.get_accelerator()
    found = run.machine(accelerator)
    if rehearse:
        found["device"] += ", rehearsed"
    yield {**found, "memory": accelerator.total_memory()}


def conformance(folder: Path, rehearse: bool, op: str) -> Rows:
    import accel_conformance

    into = folder / "conformance" / op
    # The short one first: of a full run that is ended it tells something.
    for level in ("smoke",) if rehearse else ("smoke", "full"):
        started = time.monotonic()
        with row({"op": op, "level": level, "good": False}) as found:
            code = accel_conformance.run(
                accel.get_accelerator().name, ops=[op], level=level,
                dtypes=["float32"] if rehearse else None, report=into, quiet=True,
            )  # fmt: skip
            written = into / "report.json"
            totals = json.loads(written.read_text())["totals"] if written.exists() else {}
            written.unlink(missing_ok=True)  # the page holds it
            found |= {"good": code == 0, "seconds": time.monotonic() - started, "totals": totals}
        yield found


def exactness(folder: Path, rehearse: bool, name: str) -> Rows:
    """What generate says of each token it drew beside what one forward of all says, bitwise."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "engine"))
    for dtype in HALF if rehearse else BOTH:
        found = exact(name, dtype, 8 if rehearse else 24, graphs=None)
        yield found
        if "error" in found:  # whether it is the graphs
            yield exact(name, dtype, 24, graphs=False)


def exact(name: str, dtype: torch.dtype, new: int, *, graphs: bool | None) -> Row:
    device = accel.get_accelerator().device()
    about = {"model": name, "dtype": str(dtype)[6:], "graphs": graphs is None, "good": False}
    with row(about) as found:
        import models

        model = models.small(name).to(device, dtype)
        engine = accel.HybridEngine(model, config={"enable_cuda_graph": graphs})
        ids = torch.randint(1, models.VOCAB, (4, 12), device=device)
        mask = torch.ones_like(ids)
        for sequence, padded in enumerate((0, 3, 7, 11)):
            mask[sequence, :padded] = 0
        made = engine.generate(ids, mask, max_new_tokens=new, return_logprobs=True)
        scored = engine.logprobs(made.sequences, made.attention_mask)[:, -new:]
        found["good"] = torch.equal(scored, made.logprobs)
        found["differ"] = int((scored != made.logprobs).sum())
        found["served_by"] = sorted(set(engine.plan.served_by.values()))
        (-scored.mean()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found["trains"] = bool(gradients) and all(bool(g.isfinite().all()) for g in gradients)
    return found


@contextmanager
def row(found: Row) -> Iterator[Row]:
    """What the body raises stays in its row: the next is made all the same."""
    try:
        yield found
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"[:600]
        found["traceback"] = traceback.format_exc()[-3000:]


def decode(folder: Path, rehearse: bool) -> Rows:
    """A Llama of 1.2 B parameters in bf16, one sequence: seconds a token, and the share of what
    reading all weights once takes at the memory's measured speed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    accelerator = accel.get_accelerator()
    device, clock = accelerator.device(), Clock(accelerator)
    memory = ceilings.measure(accelerator, HALF, sides=()).memory
    few, many = (2, 6) if rehearse else (FEW, MANY)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**(TINY if rehearse else LLAMA))).to(HALF[0]).eval()
    read = sum(p.nbytes for p in model.parameters())  # tied: the head reads the embedding
    ids = torch.randint(1, 97, (1, PROMPT), device=device)
    peers = {"accel": hybrid, "static": static, "eager": eager, "accel, not recorded": unrecorded}
    for name, enter in peers.items():
        with row({"peer": name, "weights": read, "memory": memory}) as found:
            mine = copy.deepcopy(model)
            generate = enter(mine, ids, PROMPT + many)
            loops = {new: partial(repeated, generate, new) for new in (few, many)}
            started = time.monotonic()
            for new in (few, many, few):
                generate(new)
            found["warming"] = time.monotonic() - started
            times = in_rounds(loops, clock, 2 if rehearse else 7, PATIENCE)  # type: ignore[arg-type]
            took = median(b - a for a, b in zip(times[few], times[many])) / (many - few)
            found |= {"seconds": took, "tokens_per_second": 1 / took}
            found["share"] = read / memory / took
            del mine, generate, loops
        yield found
        accelerator.empty_cache()


Generate = Callable[[int], object]


def hybrid(model: Any, ids: torch.Tensor, most: int) -> Generate:
    accel.hybridize(model)
    return eager(model, ids, most)


def unrecorded(model: Any, ids: torch.Tensor, most: int) -> Generate:
    accel.hybridize(model, config={"enable_cuda_graph": False})
    return eager(model, ids, most)


def eager(model: Any, ids: torch.Tensor, most: int, **more: Any) -> Generate:
    def generate(new: int) -> None:
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, **more
        )
        assert made.shape[1] == ids.shape[1] + new

    return generate


def static(model: Any, ids: torch.Tensor, most: int) -> Generate:
    """With a static cache transformers compiles the forward by itself, on devices where it can."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=most)
    plain = eager(model, ids, most, past_key_values=cache)

    def generate(new: int) -> None:
        cache.reset()
        plain(new)

    return generate


def repeated(generate: Generate, new: int, repeats: int) -> None:
    for _ in range(repeats):
        generate(new)


def engine(folder: Path, rehearse: bool) -> Rows:
    import engine as benchmark  # beside this file

    yield from benchmark.rows(rehearse)


def linear(folder: Path, rehearse: bool) -> Rows:
    chosen = [[case for size in WIDE for case in products.linear(size)]]
    if rehearse:
        chosen = [list(cases(["linear"], ["tiny"]))]
    yield from bench(folder, "linear", chosen, BOTH, rehearse)


def layer(folder: Path, rehearse: bool) -> Rows:
    names, size = ["TransformerLayer", "transformer_layer"], "tiny" if rehearse else "train"
    chosen = [[case] for case in cases(names, [size], backward=True) if case.backward]
    chosen = chosen[-1:] if rehearse else chosen  # torch compiles the others for a minute
    yield from bench(folder, "layer", chosen, HALF, rehearse)


def logprob(folder: Path, rehearse: bool) -> Rows:
    size = "tiny" if rehearse else "long"
    chosen = [list(cases(["tiled_cross_entropy"], [size], backward=True))]
    yield from bench(folder, "logprob", chosen, HALF, rehearse)


def ops(folder: Path, rehearse: bool) -> Rows:
    """Every op beside torch, torch.compile, SDPA and what else is installed."""
    names = ["rms_norm"] if rehearse else CASES
    sizes = ["tiny"] if rehearse else ["decode", "prefill", "train"]
    yield from bench(folder, "ops", [list(cases([n], sizes)) for n in names], HALF, rehearse)


def bench(
    folder: Path, stage: str, groups: Sequence[Sequence[run.AnyCase]],
    dtypes: Sequence[torch.dtype], rehearse: bool,
) -> Rows:  # fmt: skip
    """Groups of ``accel bench``'s cases; after each the page and the data of all until then."""
    whole: Row = {}
    for group in filter(None, groups):
        with row({"case": group[0].op, "dtype": ""}) as failed:
            asked = HALF if rehearse else dtypes
            found = run.bench(
                accel.get_accelerator(), group, asked, rounds=2 if rehearse else 9,
                progress=lambda done, of, what: print(f"[{stage}] {what}", flush=True),
            )  # fmt: skip
            whole = {**found, "cases": whole.get("cases", []) + found["cases"]}
            (folder / f"{stage}.json").write_text(json.dumps(whole, indent=1))
            (folder / f"{stage}.html").write_text(page.page(whole), encoding="utf-8")
            yield from map(shortened, found["cases"])
        if "error" in failed:
            yield failed


def shortened(case: Row) -> Row:
    ours = next((c for c in case["contenders"] if c["kind"] == SERVES), None)
    return {
        "case": " ".join(filter(None, (case["op"], case["variant"], case["size"]))),
        "op": case["op"], "variant": case["variant"], "size": case["size"],
        "dtype": case["dtype"], "backward": case["backward"], "good": ours is not None,
        "serves": ours and ours["name"], "seconds": ours and ours["seconds"]["median"],
        "share": ours and ours["share"],
        "beside": {
            c["name"]: c["ratio"]["median"] for c in case["contenders"] if c["ratio"] is not None
        },
        "peak": {c["name"]: c["peak_bytes"] for c in case["contenders"] if c["peak_bytes"]},
        "refused": {r["name"]: r["reason"] for r in case["refused"]},
    }  # fmt: skip


STAGES: dict[str, Callable[..., Rows]] = {
    made.__name__: made
    for made in (machine, conformance, exactness, decode, linear, layer, logprob, engine, ops)
}


def main(stage: str, folder: str, *flags: str) -> None:
    name, *which = stage.split(":")
    at = Path(folder)
    with (at / f"{stage.replace(':', '-')}.jsonl").open("w", encoding="utf-8") as file:
        for made in STAGES[name](at, "--rehearse" in flags, *which):
            file.write(json.dumps(made, default=str) + "\n")
            file.flush()
            told = {k: v for k, v in made.items() if k not in ("refused", "traceback", "served_by")}
            print(f"[{stage}] {json.dumps(rounded(told), default=str)}", flush=True)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.4g}")
    return value


if __name__ == "__main__":
    main(*sys.argv[1:])
