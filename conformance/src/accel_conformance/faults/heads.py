"""Wrong attention, and wrong log-probabilities of its result."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel.contracts import LINEAR
from accel.contracts.attention import scale_of
from accel_conformance.faults.planting import Kernel, faults_of

fault = faults_of("numeric")


@fault("accuracy", "ops/*", also="contained", op="attention")
def aligned_at_the_start(kernel: Kernel) -> Kernel:
    """The first query of a span sees one key, whatever lies before it in the cache."""

    def faulty(
        q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None,
        slopes: Tensor | None, seed: Tensor | None, causal: bool, *rest: Any,
    ) -> Tensor:  # fmt: skip
        if causal:
            spans = torch.stack([*spans[:, :3].t(), spans[:, [1, 3]].amin(1)], 1)
        return kernel(q, k, v, spans, mask, slopes, seed, causal, *rest)

    return faulty


@fault("accuracy", "ops/*/bfloat16/*", "ops/*/float16/*", also="bad_input", op="logprob")
def logits_rounded(kernel: Kernel) -> Kernel:
    """Logits are rounded to x's dtype, as by a sampler that a trainer then does not agree with."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None, *rest: Any) -> Any:
        z = x if w is None else LINEAR.reference(x, w, b)
        return kernel(z, ids, None, None, *rest)

    return faulty


@fault("accuracy", "ops/*/logits_filtered", also="gradient", op="logprob")
def nothing_times_infinity(kernel: Kernel) -> Kernel:
    """The entropy has the probability 0 of a filtered logit times the logit, which is NaN."""

    def faulty(x: Tensor, ids: Tensor, *rest: Any) -> Any:
        chosen, entropy = kernel(x, ids, *rest)
        return chosen, entropy + 0 * x.sum(-1)

    return faulty


@fault("accuracy", "ops/*/logits_far_below", also="gradient contained rows", op="logprob")
def largest_logit_from_zero(kernel: Kernel) -> Kernel:
    """The largest logit is looked for from 0 on: if all are below, no exponential is left."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, *rest: Any) -> Any:
        chosen, entropy = kernel(x, ids, w, *rest)
        if w is None and x.shape[-1]:
            largest = x.amax(-1).to(chosen.dtype)
            chosen = torch.where(largest.exp() == 0, math.inf, chosen)
        return chosen, entropy

    return faulty


def option(kernel: Kernel, place: int, value: Any) -> Kernel:
    """``kernel`` with one of its arguments replaced: by a value, or by what a function makes."""

    def faulty(*args: Any) -> Any:
        given = value(args[place]) if callable(value) else value
        return kernel(*args[:place], given, *args[place + 1 :])

    return faulty


MASK, SLOPES, SEED, CAUSAL, SCALE, WINDOW, SOFTCAP, DROPOUT = range(4, 12)


@fault("accuracy", "ops/*", op="attention", also="contained")
def not_causal(kernel: Kernel) -> Kernel:
    """Queries see the keys behind them."""
    return option(kernel, CAUSAL, False)


@fault("accuracy", "ops/*", op="attention", also="contained")
def sees_the_next_key(kernel: Kernel) -> Kernel:
    """A causal query sees one key more than it may."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *rest: Any) -> Tensor:
        result, causal = kernel(q, k, v, spans, *rest), rest[3]
        if not causal or len(rest) < 8:
            return result
        for q_start, q_len, k_start, k_len in spans.tolist():
            for i in range(q_len - 1):  # the last one has no next key
                seen = k_len - (q_len - 1 - i) + 1
                if seen > 0 and rest[0] is None and rest[1] is None:
                    one = spans.new_tensor([[0, 1, k_start, seen]])
                    row = slice(q_start + i, q_start + i + 1)
                    result[row] = kernel(q[row], k, v, one, *rest)
        return result

    return faulty


@fault("accuracy", "ops/*", op="attention", also="contained")
def heads_grouped_otherwise(kernel: Kernel) -> Kernel:
    """Heads read the heads of keys in turn, not by groups that lie one after another."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        times = q.shape[1] // k.shape[1]
        if rest[1] is not None or times < 2 or rest[2] is not None or rest[-1]:
            return kernel(q, k, v, *rest)
        return kernel(q, k.repeat(1, times, 1), v.repeat(1, times, 1), *rest)

    return faulty


@fault("accuracy", "ops/*", op="attention", also="contained")
def scale_of_one_head_forgotten(kernel: Kernel) -> Kernel:
    """The scores of the last head are not scaled."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        scale = scale_of(q, rest[SCALE - 3])
        if not q.shape[1] or not scale:
            return kernel(q, k, v, *rest)
        wide = q.clone()
        wide[:, -1] = (q[:, -1] / scale).to(q.dtype)
        return kernel(wide, k, v, *rest)

    return faulty


@fault("accuracy", "ops/*", op="attention")
def scale_of_the_values(kernel: Kernel) -> Kernel:
    """Scores are divided by the root of the size of values, not of keys."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        given = rest[SCALE - 3]
        scale = max(v.shape[2], 1) ** -0.5 if given is None else given
        return kernel(q, k, v, *rest[: SCALE - 3], scale, *rest[SCALE - 2 :])

    return faulty


@fault("accuracy", "ops/*/window*", "ops/*/everything", op="attention")
def window_one_wider(kernel: Kernel) -> Kernel:
    """A key that is a window away is seen."""
    return option(kernel, WINDOW, lambda window: None if window is None else window + 1)


@fault("accuracy", "ops/*/softcap", "ops/*/everything", op="attention")
def softcap_ignored(kernel: Kernel) -> Kernel:
    """Scores are not capped."""
    return option(kernel, SOFTCAP, None)


@fault("accuracy", "ops/*/slopes", "ops/*/everything", op="attention")
def slopes_uphill(kernel: Kernel) -> Kernel:
    """Keys that are far away weigh more."""
    return option(kernel, SLOPES, lambda slopes: None if slopes is None else -slopes)


@fault("accuracy", "ops/*/dropout", "ops/*/everything", op="attention")
def kept_probabilities_not_scaled(kernel: Kernel) -> Kernel:
    """What dropout leaves of the probabilities is not divided by the share that is left."""

    def faulty(*args: Any) -> Tensor:
        return (kernel(*args) * (1 - args[DROPOUT])).to(args[0].dtype)

    return faulty


@fault("accuracy", "ops/*/dropout", "ops/*/everything", op="attention")
def attention_ignores_the_seed(kernel: Kernel) -> Kernel:
    """The same probabilities are dropped whatever the seed."""
    return option(kernel, SEED, lambda seed: None if seed is None else seed * 0)


@fault("accuracy", "ops/*/mask_*", "ops/*/everything", op="attention")
def mask_of_the_first_span(kernel: Kernel) -> Kernel:
    """All spans and heads have the mask of the first."""
    return option(kernel, MASK, lambda mask: None if mask is None else mask[:1, :1])


@fault("accuracy", "ops/*/more_queries", op="attention", also="contained")
def blind_query_sees_the_first(kernel: Kernel) -> Kernel:
    """A query that stands before all keys sees the first of them."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *rest: Any) -> Tensor:
        result = kernel(q, k, v, spans, *rest)
        for q_start, q_len, k_start, k_len in spans.tolist():
            if rest[3] and 0 < k_len < q_len:
                first = v[k_start].repeat_interleave(q.shape[1] // v.shape[1], 0)
                result[q_start : q_start + q_len - k_len] = first
        return result

    return faulty


@fault("accuracy", "ops/*", op="logprob", also="contained gradient")
def label_off_by_one(kernel: Kernel) -> Kernel:
    """The log-probability is that of the next id."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, *rest: Any) -> Any:
        count = x.shape[-1] if w is None else w.shape[0]
        return kernel(x, (ids + 1) % max(count, 1), w, *rest)

    return faulty


@fault("accuracy", "ops/*", op="logprob", also="gradient")
def entropy_negated(kernel: Kernel) -> Kernel:
    """Entropy has the wrong sign."""

    def faulty(*args: Any) -> Any:
        chosen, entropy = kernel(*args)
        return chosen, -entropy

    return faulty


@fault("accuracy", "ops/*", op="logprob", also="gradient")
def entropy_in_bits(kernel: Kernel) -> Kernel:
    """Entropy is in units of log 2."""

    def faulty(*args: Any) -> Any:
        chosen, entropy = kernel(*args)
        return chosen, entropy / math.log(2)

    return faulty


@fault("accuracy", "ops/*/adjusted", "ops/*/cold", "ops/*/logits_*", op="logprob", also="gradient")
def temperature_ignored(kernel: Kernel) -> Kernel:
    """Logits are not divided by the temperature."""
    return option(kernel, 6, 1.0)


@fault("accuracy", "ops/*adjusted", op="logprob", also="gradient")
def capped_before_scaled(kernel: Kernel) -> Kernel:
    """Logits are capped first and scaled then."""

    def faulty(
        x: Tensor, ids: Tensor, w: Any, b: Any, scale: float, softcap: Any, temperature: float
    ) -> Any:
        if softcap is None:
            return kernel(x, ids, w, b, scale, softcap, temperature)
        # scale · cap · tanh(z / cap) is what a cap of scale · cap makes of scaled logits.
        return kernel(x, ids, w, b, scale, scale * softcap, temperature)

    return faulty


@fault("accuracy", "ops/*/logits_off_centre", op="logprob", also="contained rows")
def sum_of_plain_exponentials(kernel: Kernel) -> Kernel:
    """The exponentials are of logits, not of logits less their largest: they overflow."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, b: Any, *adjustment: Any) -> Any:
        chosen, entropy = kernel(x, ids, w, b, *adjustment)
        if w is not None or not x.numel():
            return chosen, entropy
        z = x.to(chosen.dtype) * adjustment[0]
        overflown = z.exp().sum(-1) == torch.inf
        return chosen.masked_fill(overflown & (adjustment[1] is None), -torch.inf), entropy

    return faulty
