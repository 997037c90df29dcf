"""Inputs of attention: samples that every implementation must serve, and what must be refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import inputs
from accel.contracts.checks import WIDE
from accel.contracts.contract import BadInput, Sample
from accel.contracts.spans import Span

NAME = "attention"


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, m: int, n: int, heads: tuple[int, int], sizes: tuple[int, int],
             spans: list[Span], *, mask: tuple[int, ...] | None = None,
             never: tuple[Any, ...] = (), slopes: bool = False, causal: bool = True,
             scale: float | None = None, window: int | None = None,
             softcap: float | None = None, dropout: float = 0.0,
             layout: str = "plain") -> Sample:  # fmt: skip
        (h, g), (d, e) = heads, sizes

        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            if layout == "fused":  # slices of one projection's result
                qkv = draw.plain(f"{name}.qkv", (m, h + 2 * g, d), dtype, device)
                q, k, v = qkv.split((h, g, g), 1)
            else:
                q, k, v = (
                    draw.rows(f"{name}.{of}", shape, dtype, device, layout)
                    for of, shape in (("q", (m, h, d)), ("k", (n, g, d)), ("v", (n, g, e)))
                )
            table = torch.tensor(spans, dtype=torch.int64).reshape(-1, 4).to(device)
            if layout == "transposed":
                table = table.t().contiguous().t()
            added = None
            if mask is not None:
                added = draw.plain(f"{name}.mask", mask, dtype, device)
                for place in never:
                    added[place] = -torch.inf
            return (
                q, k, v, table, added,
                draw.plain(f"{name}.slopes", (h,), WIDE[dtype], device) if slopes else None,
                draw.integers(f"{name}.seed", (), 2**62, device) if dropout else None,
                causal, scale, window, softcap, dropout,
            )  # fmt: skip

        return Sample(name, make)

    yield case("even", 16, 16, (4, 4), (32, 32), [(0, 16, 0, 16)])
    yield case("odd", 7, 7, (3, 3), (37, 37), [(0, 7, 0, 7)])
    yield case("grouped", 9, 9, (6, 2), (24, 24), [(0, 9, 0, 9)])
    yield case("one_key_head", 9, 9, (5, 1), (24, 24), [(0, 9, 0, 9)])
    yield case("packed", 23, 23, (4, 2), (16, 16), [(0, 5, 0, 5), (5, 1, 5, 1), (6, 17, 6, 17)])
    yield case("decode", 3, 90, (8, 2), (64, 64), [(0, 1, 0, 33), (1, 1, 33, 1), (2, 1, 40, 50)])
    yield case("prefill_continued", 5, 40, (4, 2), (20, 20), [(0, 5, 3, 31)])
    yield case("shared_prefix", 6, 30, (4, 2), (20, 20), [(0, 3, 0, 12), (3, 3, 0, 25)])
    yield case("two_way", 11, 19, (4, 2), (20, 20), [(0, 4, 0, 9), (4, 7, 9, 3)], causal=False)
    yield case("scaled", 9, 9, (4, 2), (20, 20), [(0, 9, 0, 9)], scale=0.7)
    yield case("sharp", 9, 9, (4, 2), (64, 64), [(0, 9, 0, 9)], scale=1.0)
    # Spans of one length that lie one after another are served together.
    padded, pair = [(0, 4, 0, 6), (4, 4, 6, 6), (8, 4, 12, 6)], [(0, 5, 0, 6), (5, 3, 6, 4)]
    yield case("mask_of_keys", 12, 18, (4, 2), (16, 16), padded, mask=(3, 1, 1, 7), causal=False,
               never=((0, 0, 0, slice(4, None)), (2, 0, 0, slice(2, None))))  # fmt: skip
    yield case("mask_whole", 8, 10, (4, 2), (16, 16), pair, mask=(2, 4, 5, 6),
               never=((0, 1, 2), (1, slice(None), 1, 2)))  # fmt: skip
    yield case("slopes", 12, 18, (4, 4), (16, 16), padded, slopes=True)
    yield case("window", 8, 10, (4, 2), (16, 16), pair, window=2)
    yield case("window_two_way", 8, 10, (4, 2), (16, 16), pair, window=3, causal=False)
    yield case("softcap", 8, 10, (4, 2), (16, 16), pair, scale=1.0, softcap=1.5)
    yield case("dropout", 12, 18, (4, 2), (16, 16), padded, dropout=0.3)
    yield case("everything", 8, 10, (4, 2), (16, 16), pair, mask=(1, 4, 5, 6), slopes=True,
               scale=0.7, window=4, softcap=2.0, dropout=0.2,
               never=((0, 3, slice(None), 1),))  # fmt: skip
    yield case("values_longer", 6, 8, (4, 2), (16, 29), [(0, 6, 0, 8)])
    yield case("values_shorter", 6, 8, (4, 2), (16, 5), [(0, 6, 0, 8)])
    yield case("between_spans", 9, 12, (4, 2), (16, 16), [(0, 2, 1, 4), (5, 3, 6, 5)])
    yield case("more_queries", 7, 4, (4, 2), (16, 16), [(1, 6, 0, 4)])
    yield case("out_of_order", 8, 8, (4, 2), (16, 16), [(5, 3, 0, 3), (0, 5, 3, 5)])
    yield case("empty_spans", 5, 6, (4, 2), (16, 16), [(0, 0, 0, 3), (0, 5, 1, 5), (5, 0, 6, 0)])
    yield case("one", 1, 1, (1, 1), (1, 1), [(0, 1, 0, 1)])
    yield case("no_spans", 4, 4, (4, 2), (16, 16), [])
    yield case("no_rows", 0, 5, (4, 2), (16, 16), [(0, 0, 0, 5)])
    yield case("no_keys", 5, 0, (4, 2), (16, 16), [(0, 5, 0, 0)])
    yield case("no_heads", 5, 5, (0, 2), (16, 16), [(0, 5, 0, 5)])
    yield case("no_sum", 5, 5, (4, 2), (0, 16), [(0, 5, 0, 5)])
    yield case("no_columns", 5, 5, (4, 2), (16, 0), [(0, 5, 0, 5)])
    yield case("many_rows", 131, 131, (2, 1), (24, 24), [(0, 131, 0, 131)])
    yield case("long_sum", 2, 1500, (2, 1), (16, 16), [(0, 2, 0, 1500)])
    for layout in (*inputs.LAYOUTS, "fused"):
        yield case(f"layout_{layout}", 9, 9, (4, 2), (20, 20), [(0, 4, 0, 4), (4, 5, 4, 5)],
                   layout=layout)  # fmt: skip


def bad_inputs() -> Iterable[BadInput]:
    def spans(dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor([[0, 3, 0, 5]]).to(device)

    def seed(dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor(5).to(device)

    good = {
        "q": inputs.maker(NAME, "q", (3, 4, 8)),
        "k": inputs.maker(NAME, "k", (5, 2, 8)),
        "v": inputs.maker(NAME, "v", (5, 2, 6)),
        "spans": spans,
        "mask": inputs.maker(NAME, "mask", (1, 4, 3, 5)),
        "slopes": lambda dtype, device: torch.ones(4, dtype=WIDE[dtype]).to(device),
        "seed": seed,
        "causal": True,
        "scale": None,
        "window": 2,
        "softcap": 3.0,
        "dropout": 0.5,
    }
    yield inputs.spoil(good, "query_rank", "q must be", q=lambda q: q[0])
    yield inputs.spoil(good, "batched_keys", "k must be", k=lambda k: k[None])
    yield inputs.spoil(good, "value_rank", "v must be", v=lambda v: v[:, 0])
    yield inputs.spoil(good, "value_rows", "v must have k's rows", v=lambda v: v[:4])
    yield inputs.spoil(good, "value_heads", "v must have k's rows", v=lambda v: v[:, :1])
    yield inputs.spoil(good, "sizes_differ", "k must have q's last", k=lambda k: k[..., :7])
    yield inputs.spoil(good, "heads_differ", "divide q's heads", q=lambda q: q[:, :3])
    yield inputs.spoil(good, "mask_rank", "mask must be", mask=lambda mask: mask[0])
    yield inputs.spoil(good, "mask_heads", "mask must be", mask=lambda mask: mask[:, :2])
    yield inputs.spoil(good, "mask_spans", "mask must be", mask=lambda m: m.repeat(3, 1, 1, 1))
    yield inputs.spoil(good, "mask_dtype", "mask must have q's dtype", mask=lambda m: m.double())
    yield inputs.spoil(good, "mask_of_bools", "mask must have q's dtype", mask=lambda m: m > 0)
    yield inputs.spoil(good, "slopes_shape", "slopes must be", slopes=lambda slopes: slopes[:3])
    yield inputs.spoil(good, "slopes_dtype", "slopes must have", slopes=lambda s: s.bfloat16())
    yield inputs.spoil(good, "no_seed", "needs a seed", seed=None)
    yield inputs.spoil(good, "seed_shape", "seed must be", seed=lambda seed: seed[None])
    yield inputs.spoil(good, "short_seed", "seed must be", seed=lambda seed: seed.int())
    yield inputs.spoil(good, "no_window", "window must be at least 1", window=0)
    yield inputs.spoil(good, "negative_softcap", "softcap must be above 0", softcap=-1.0)
    yield inputs.spoil(good, "dropout_over_one", "dropout must be between", dropout=1.5)
    yield inputs.spoil(good, "no_heads", "divide", k=lambda k: k[:, :0], v=lambda v: v[:, :0])
    yield inputs.spoil(good, "span_rank", "spans must be", spans=lambda spans: spans[0])
    yield inputs.spoil(good, "span_columns", "spans must be", spans=lambda spans: spans[:, :3])
    yield inputs.spoil(good, "short_spans", "spans must be", spans=lambda spans: spans.int())
    yield inputs.spoil(good, "float_spans", "spans must be", spans=lambda spans: spans.float())
    yield inputs.spoil(good, "dtype_differs", "dtype", v=lambda v: v.double())
    yield inputs.spoil(good, "integers", "must be one of", q=lambda q: q.int())
    yield inputs.spoil(good, "other_device", "device", k=lambda k: k.to("meta"))
    yield inputs.spoil(good, "spans_elsewhere", "device", spans=lambda spans: spans.to("meta"))
