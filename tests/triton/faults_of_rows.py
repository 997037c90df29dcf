"""Faults in the kernels of rows, attention and logprob, and a case that must see each."""

from planted import Fault

OF_ROWS = [
    Fault("own_key_hidden", "ops/attention/odd", "attention_rows",
          "seen = seen & (j <= at)", "seen = seen & (j < at)"),
    Fault("splits_not_rescaled", "ops/attention/long_sum", "attention_forward",
          "total = total * factor + other_total * other_factor", "total = total + other_total"),
    Fault("largest_not_taken_away", "ops/softmax/steep", "softmax",
          'top = tl.where(top == float("-inf"), 0.0, top)', "top = 0.0"),
    Fault("what_is_behind_the_row_counts", "ops/layer_norm/odd", "norm",
          "squares += tl.where(inside, value * value, 0.0)", "squares += value * value"),
    Fault("bits_of_another_column", "ops/dropout_add/odd", "random",
          "pair = (column // 2 + 1)", "pair = (column // 2 + 2)"),
    Fault("segments_not_rescaled", "ops/logprob/logits_many", "logprob_rows",
          "whole = tl.sum(total * shrink)", "whole = tl.sum(total)"),
]  # fmt: skip

# These take longer, or are much like others.
MORE_OF_ROWS = [
    Fault("window_a_key_too_long", "ops/attention/window", "attention_rows",
          "seen = seen & (j > at - window)", "seen = seen & (j >= at - window)"),
    Fault("blocks_not_rescaled", "ops/attention/long_sum", "attention_forward",
          "total = total * factor + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
    Fault("heads_of_another_group", "ops/attention/grouped", "attention_forward",
          "head = tl.where(valid, g * group + r % group", "head = tl.where(valid, r % group"),
    Fault("keys_by_the_number_of_queries", "rows/attention/decode", "attention",
          '"KEYS": _keys(max(d, e), self.q.dtype)',
          '"KEYS": _keys(max(d, e), self.q.dtype) // (2 if len(self.q) == 1 else 1)'),
    Fault("eps_left_out", "ops/rms_norm/large_eps", "norm",
          "tl.sqrt_rn(square + eps)", "tl.sqrt_rn(square)"),
    Fault("turned_the_other_way", "ops/rotary/odd", "rotary",
          "(b * c + a * s)", "(b * c - a * s)"),
    Fault("cap_left_out", "ops/logprob/logits_adjusted", "logprob_rows",
          "z = softcap * tanh(tl.div_rn(z, softcap))", "z = z"),
]  # fmt: skip
