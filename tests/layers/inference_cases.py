"""The inference ops in numpy's float64, and arguments for each: one case per form an op has.

A case's arguments are arrays, or anything else as it is; ``want`` gets them and the settings. What
it means is written from the formulas of DeepSpeed's ops, without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from accel.layers import inference as ops
from accel.layers.inference import ActivationFuncType as Act
from accel.layers.inference import NormType
from accel_conformance.oracles.activation import activate

EPS = 1e-12  # DeepSpeed's default

ACTS = {Act.GELU: "gelu_tanh", Act.ReLU: "relu", Act.GATED_GELU: "gelu", Act.GATED_SILU: "silu"}


@dataclass(frozen=True)
class Case:
    """``through``: the contracts whose roundings a result has; ``quantized``: weights that are
    int8."""

    name: str
    op: type
    make: Callable[[Any], dict[str, Any]]
    want: Callable[..., Any]
    through: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    quantized: tuple[str, ...] = ()
    method: str = "forward"

    def __str__(self):
        return f"{self.op.__name__}-{self.name}"


def normal(*shape):
    def draw(rng):
        return rng.standard_normal(shape)

    return draw


def given(**arguments):
    """Arguments whose callables draw from a generator."""

    def make(rng):
        return {name: v(rng) if callable(v) else v for name, v in arguments.items()}

    return make


# -- what ops are ------------------------------------------------------------------------------


def norm(x, gamma, beta, eps, rms=False):
    x = x if rms else x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return y * (1 if gamma is None else gamma) + (0 if beta is None else beta)


def rows(weight, transposed_mode=False, **_):
    """A weight as [in, out]."""
    return weight.T if transposed_mode else weight


def gated(x, act):
    h, g = np.split(x, 2, -1)
    return h * activate(g, ACTS[act])


def linear(settings, input, weight, bias, add_bias, do_flash_attn, num_heads, **_):
    y = input @ rows(weight, **settings) + (bias if add_bias else 0)
    if not do_flash_attn:
        return y
    size = y.shape[-1] // (3 * num_heads)
    heads = y.reshape(*y.shape[:2], 3, num_heads, size).transpose(2, 0, 3, 1, 4)
    padded = {8: 32, 40: 64, 64: 64, 96: 128}[size]
    return np.pad(heads, [(0, 0)] * 4 + [(0, padded - size)])


def qkv_gemm(settings, input, weight, bias, gamma, beta):
    rms = settings.get("norm_type") == NormType.RMSNorm
    n = norm(input, gamma, beta, settings.get("layer_norm_eps", EPS), rms)
    return n @ rows(weight, **settings) + (0 if bias is None else bias), n


def mlp_gemm(
    settings, input, residual, weight_interm, weight_out, input_bias=None, bias=None, gamma=None,
    beta=None,
):  # fmt: skip
    rms = settings.get("norm_type") == NormType.RMSNorm
    act = settings.get("mlp_act_func_type", Act.GELU)
    total = input + residual + (0 if input_bias is None else input_bias)
    if not rms and not settings.get("mlp_after_attn", True):
        total = input
    n = norm(total, gamma, beta, EPS, rms)
    inner = n @ rows(weight_interm, **settings) + (0 if bias is None else bias)
    inner = gated(inner, act) if act >= Act.GATED_GELU else activate(inner, ACTS[act])
    return inner @ rows(weight_out, **settings), total if rms else n


def gelu_gemm(settings, input, weight, bias, weight_out):
    inner = activate(input @ rows(weight, **settings) + bias, "gelu_tanh")
    return inner @ rows(weight_out, **settings)


def residual_add(
    settings, hidden_state, residual, add_bias, attention_output=None, residual_add=None,
    attention_bias=None, final_bias=None,
):  # fmt: skip
    pre = settings.get("pre_layer_norm", True)
    rms = settings.get("norm_type") == NormType.RMSNorm
    share = 1 / settings.get("mp_size", 1)
    if residual_add is not None and (rms or not pre):
        residual = residual_add
    if final_bias is None:
        return hidden_state + residual * share
    if not settings.get("mlp_after_attn", True):
        bias = attention_bias if add_bias else 0
        return hidden_state + attention_output + (residual + bias + final_bias) * share
    if pre:
        stream = residual + attention_output + attention_bias + final_bias
        return hidden_state + stream * share
    return hidden_state + residual + final_bias


def seen(queries, keys, causal, window):
    i, j = np.arange(queries)[:, None] + keys - queries, np.arange(keys)
    ok = np.ones((queries, keys), bool) if not causal else j <= i
    return ok if window is None else ok & (j > i - window)


def softmax(scores):
    """0 in rows that are all -inf."""
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0))
    return e / np.maximum(e.sum(-1, keepdims=True), 1e-300)


def probabilities(
    settings, attn_scores, attn_mask, alibi, triangular, local_attention, window_size, layer_scale,
    head_offset, **_,
):  # fmt: skip
    z = attn_scores * layer_scale
    heads, queries, keys = z.shape[1:]
    if alibi is not None:
        every = alibi.reshape(-1, heads * settings.get("mp_size", 1), *alibi.shape[1:])
        z = z + every[:, head_offset : head_offset + heads]
    if attn_mask is not None:
        z = z + (attn_mask[:, None, None] if attn_mask.ndim == 2 else attn_mask)
    ok = seen(queries, keys, triangular, window_size if local_attention else None)
    return softmax(np.where(ok, z, -np.inf))


def context(
    settings, query_key_value, attn_mask, heads, num_kv, norm_factor, no_masking, alibi,
    position_ids=None, queries=None, **_,
):  # fmt: skip
    """Of the last ``queries`` tokens (default all), beside all."""
    kv = num_kv if num_kv > 0 else heads
    batch, tokens, width = query_key_value.shape
    size = width // (heads + 2 * kv)
    split = query_key_value.reshape(batch, tokens, heads + 2 * kv, size).transpose(0, 2, 1, 3)
    q, k, v = split[:, :heads], split[:, heads : heads + kv], split[:, heads + kv :]
    places = np.arange(tokens)[None] if position_ids is None else np.asarray(position_ids)
    q, k = (turned(t, places, **settings) for t in (q, k))
    queries = tokens if queries is None else queries
    z = np.zeros((batch, heads, queries, tokens))
    for h in range(heads):
        z[:, h] = norm_factor**2 * q[:, h, -queries:] @ k[:, h // (heads // kv)].swapaxes(1, 2)
    if alibi is not None:
        z = z + alibi.reshape(-1, heads, *alibi.shape[1:])
    if not no_masking:
        z = z + attn_mask
    window = settings.get("window_size", 256) if settings.get("local_attention") else None
    ok = seen(queries, tokens, settings.get("triangular_masking", True), window)
    p = softmax(np.where(ok, z, -np.inf))
    y = np.stack([p[:, h] @ v[:, h // (heads // kv)] for h in range(heads)], 2)
    return y.reshape(batch, queries, heads * size), k, v


def turned(x, places, rotary_dim=-1, rotate_half=False, rope_theta=10000, **_):
    """Pairs of a head's first elements, as complex numbers turned by their angle."""
    if rotary_dim <= 0:
        return x
    half = np.arange(rotary_dim // 2)
    angles = places[:, None, :, None] * rope_theta ** (-2.0 * half / rotary_dim)
    first, second = (half, half + len(half)) if rotate_half else (2 * half, 2 * half + 1)
    z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)
    y = x.copy()
    y[..., first], y[..., second] = z.real, z.imag
    return y


def padded(settings, query, key, value, heads, add_padding):
    def one(t, rows):
        batch, length, width = t.shape
        size = width // heads
        out = np.zeros((batch, heads, max(rows, length), {20: 32, 48: 64}[size]))
        out[:, :, :length, :size] = t.reshape(batch, length, heads, size).transpose(0, 2, 1, 3)
        return out

    rows = 128 if add_padding else 0
    return one(query, 0), one(key, rows), one(value, rows)


# -- cases -------------------------------------------------------------------------------------

X, R, B = normal(2, 5, 24), normal(2, 5, 24), normal(24)


def linears():
    base = {"input": X, "bias": normal(96), "add_bias": True, "do_flash_attn": False,
            "num_heads": 4}  # fmt: skip
    by = {"[in, out]": (False, normal(24, 96)), "[out, in]": (True, normal(96, 24))}
    for name, (transposed, weight) in by.items():
        mode = {"transposed_mode": transposed}
        for quantized in ((), ("weight",)):
            through = ("quantized_linear",) if quantized else ("linear",)
            kind = f"{name}-int8" if quantized else name
            for more, change in {
                "": {}, "-no_bias": {"add_bias": False}, "-heads_of_8": {"do_flash_attn": True},
            }.items():  # fmt: skip
                make = given(**{**base, "weight": weight, **change})
                yield Case(kind + more, ops.LinearOp, make, linear, through, mode, quantized)
    for size in (40, 64, 96):
        make = given(**{**base, "weight": normal(24, 3 * size), "bias": normal(3 * size),
                        "do_flash_attn": True, "num_heads": 1})  # fmt: skip
        yield Case(f"heads_of_{size}", ops.LinearOp, make, linear, ("linear",))
    make = given(input=normal(3, 24), weight=normal(24, 7), async_op=False)
    yield Case("plain", ops.VectorMatMulOp, make, lambda s, input, weight, **_: input @ weight,
               ("linear",))  # fmt: skip


def gemms():
    rms = {"norm_type": NormType.RMSNorm}
    whole = {"input": X, "weight": normal(24, 31), "bias": normal(31), "gamma": B, "beta": B}
    for name, settings, change, norm_op in (
        ("layer", {}, {}, "layer_norm"),
        ("eps", {"layer_norm_eps": 0.5}, {}, "layer_norm"),
        ("out_in", {"transposed_mode": True}, {"weight": normal(31, 24)}, "layer_norm"),
        ("rms", rms, {"bias": None, "beta": None}, "rms_norm"),
    ):
        yield Case(name, ops.QKVGemmOp, given(**{**whole, **change}), qkv_gemm,
                   (norm_op, "linear"), settings)  # fmt: skip
    yield Case("int8", ops.QKVGemmOp, given(**whole), qkv_gemm, ("layer_norm", "quantized_linear"),
               {"enable_qkv_quantization": True}, ("weight",))  # fmt: skip

    mlp = {"input": X, "residual": R, "weight_interm": normal(24, 40), "weight_out": normal(40, 24),
           "input_bias": B, "bias": normal(40), "gamma": B, "beta": B}  # fmt: skip
    two = {"weight_interm": normal(24, 80), "bias": normal(80)}
    swapped = {"weight_interm": normal(40, 24), "weight_out": normal(24, 40)}
    no_beta = {"beta": None, "gamma": B}
    layer = ("dropout_add", "layer_norm", "linear", "linear")
    for name, settings, change, through in (
        ("gelu", {}, {}, layer),
        ("relu", {"mlp_act_func_type": Act.ReLU}, {}, layer),
        ("no_bias", {}, {"input_bias": None, "bias": None}, ("add_norm", "linear", "linear")),
        ("out_in", {"transposed_mode": True, "intermediate_size": 40}, swapped, layer),
        ("parallel", {"mlp_after_attn": False}, {}, layer[1:]),
        ("gated", {"mlp_act_func_type": Act.GATED_GELU}, two, (*layer, "bias_act")),
        ("rms", rms, no_beta, ("bias_act", "add_norm", "linear", "linear")),
        ("rms_gated", {**rms, "mlp_act_func_type": Act.GATED_SILU},
         {**two, **no_beta, "input_bias": None}, ("add_norm", "linear", "bias_act", "linear")),
    ):  # fmt: skip
        make = given(**{**mlp, **change})
        yield Case(name, ops.MLPGemmOp, make, mlp_gemm, through, settings)
    int8 = ("dropout_add", "layer_norm", "quantized_linear", "quantized_linear")
    yield Case("int8", ops.MLPGemmOp, given(**mlp), mlp_gemm, int8, {},
               ("weight_interm", "weight_out"))  # fmt: skip
    two = {"input": X, "bias": normal(40)}
    for name, mode, shapes in (("in_out", False, ((24, 40), (40, 9))),
                               ("out_in", True, ((40, 24), (9, 40)))):  # fmt: skip
        make = given(**two, weight=normal(*shapes[0]), weight_out=normal(*shapes[1]))
        yield Case(name, ops.GELUGemmOp, make, gelu_gemm, ("linear", "linear"),
                   {"transposed_mode": mode})  # fmt: skip
