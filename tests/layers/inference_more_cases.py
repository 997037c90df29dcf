"""Cases of the inference ops that have no weights: see inference_cases."""

import numpy as np
from inference_cases import (
    B,
    Case,
    R,
    X,
    activate,
    context,
    gated,
    gemms,
    given,
    linears,
    norm,
    normal,
    padded,
    probabilities,
    residual_add,
)

from accel.layers import inference as ops
from accel.layers.inference import ActivationFuncType as Act
from accel.layers.inference import NormType


def sums():
    two = given(activation=X, bias=B)
    yield Case("", ops.BiasAddOp, two, lambda s, activation, bias: activation + bias, ("bias_act",))
    for op, act in ((ops.BiasGeluOp, "gelu_tanh"), (ops.BiasReluOp, "relu")):

        def want(s, activation, bias, act=act):
            return activate(activation + bias, act)

        yield Case("", op, two, want, ("bias_act",))
    three = given(output=X, residual=R, bias=B)
    yield Case("", ops.BiasResidualOp, three,
               lambda s, output, residual, bias: output + residual + bias,
               ("dropout_add",))  # fmt: skip
    for act in (Act.GATED_GELU, Act.GATED_SILU):
        make = given(activation=X, bias=B, activation_func_type=act)
        yield Case(act.name, ops.GatedActivationOp, make,
                   lambda s, activation, bias, activation_func_type:
                   gated(activation + bias, activation_func_type), ("bias_act",))  # fmt: skip
    yield Case("", ops.VectorAddOp, given(a=X, b=R, gamma=0.3),
               lambda s, a, b, gamma: gamma * a + b, ("dropout_add",))  # fmt: skip
    for name, coef in (("by_token", normal(2, 5, 2)), ("by_element", normal(1, 1, 48))):

        def moe(s, residual, coef, output):
            first, second = np.split(coef, 2, -1)
            return residual * first + output * second

        make = given(residual=X, coef=coef, output=R)
        yield Case(name, ops.MoEResMatmulOp, make, moe, ("dropout_add",))
    yield Case("", ops.EinsumSecSmEcmOp, given(Q=normal(11, 3, 4), W=normal(11, 6)),
               lambda s, Q, W: np.einsum("sec,sm->ecm", Q, W), ("linear",))  # fmt: skip


def residuals():
    whole = {"hidden_state": X, "residual": R, "add_bias": True, "attention_output": R,
             "residual_add": X, "attention_bias": B, "final_bias": B}  # fmt: skip
    after, rms = {"mlp_after_attn": False}, {"norm_type": NormType.RMSNorm}
    for name, settings, change in (
        ("pre", {}, {}),
        ("pre_shared", {"mp_size": 3}, {"residual_add": None}),
        ("post", {"pre_layer_norm": False}, {}),
        ("post_alone", {"pre_layer_norm": False}, {"residual_add": None}),
        ("parallel", after, {}),
        ("parallel_shared", {**after, "mp_size": 2}, {}),
        ("parallel_without_bias", after, {"add_bias": False}),
        ("no_bias", {"mp_size": 2}, {"final_bias": None, "attention_bias": None}),
        ("rms", rms, {"final_bias": None}),
    ):
        yield Case(name, ops.ResidualAddOp, given(**{**whole, **change}), residual_add,
                   ("dropout_add",), settings)  # fmt: skip


def norms():
    layer = {"vals": X, "gamma": B, "beta": B, "epsilon": 1e-5}
    yield Case("", ops.LayerNormOp, given(**layer),
               lambda s, vals, gamma, beta, epsilon: norm(vals, gamma, beta, epsilon),
               ("layer_norm",))  # fmt: skip
    rms = {"vals": X, "gamma": B, "epsilon": 1e-5}
    yield Case("", ops.RMSNormOp, given(**rms),
               lambda s, vals, gamma, epsilon: norm(vals, gamma, None, epsilon, True),
               ("rms_norm",))  # fmt: skip
    yield Case("", ops.PreRMSNormOp, given(residual=R, **rms),
               lambda s, vals, residual, gamma, epsilon:
               (norm(vals + residual, gamma, None, epsilon, True), vals + residual),
               ("add_norm",))  # fmt: skip

    def residual(s, vals, bias, res, gamma, beta, epsilon):
        total = vals + (0 if bias is None else bias) + res
        return norm(total, gamma, beta, epsilon), total

    for name, bias in (("", B), ("-no_bias", None)):
        make, through = given(**layer, bias=bias, res=R), ("dropout_add", "layer_norm")
        yield Case("residual" + name, ops.LayerNormOp, make, lambda *a, **k: residual(*a, **k)[0],
                   through, method="layer_norm_residual")  # fmt: skip
        yield Case("stored" + name, ops.LayerNormOp, make, residual, through,
                   method="layer_norm_residual_store_pre_ln_res")  # fmt: skip


def hiding(shape):
    """-inf at a third of the keys, and at all of the first row's."""

    def mask(rng):
        hidden = rng.random(shape) < 1 / 3
        hidden.reshape(-1, shape[-1])[0] = True
        return np.where(hidden, -np.inf, rng.standard_normal(shape))

    return mask


def attentions():
    scores = {"attn_scores": normal(2, 3, 5, 7), "attn_mask": None, "alibi": None,
              "triangular": False, "recompute": False, "local_attention": False, "window_size": 256,
              "async_op": False, "layer_scale": 1.0, "head_offset": 0}  # fmt: skip
    for name, settings, change in (
        ("plain", {}, {"layer_scale": 0.7}),
        ("causal", {}, {"triangular": True}),
        ("window", {}, {"local_attention": True, "window_size": 3}),
        ("causal_window", {}, {"triangular": True, "local_attention": True, "window_size": 2}),
        ("mask", {}, {"attn_mask": hiding((2, 1, 5, 7)), "triangular": True}),
        ("mask_of_keys", {}, {"attn_mask": hiding((2, 7))}),
        ("alibi", {}, {"alibi": normal(3, 1, 7), "attn_mask": hiding((2, 1, 1, 7))}),
        ("alibi_of_ranks", {"mp_size": 2}, {"alibi": normal(12, 1, 7), "head_offset": 3}),
    ):
        yield Case(name, ops.SoftmaxOp, given(**{**scores, **change}), probabilities, ("softmax",),
                   settings)  # fmt: skip

    whole = {"query_key_value": normal(2, 6, 48), "attn_mask": None, "heads": 4, "num_kv": -1,
             "norm_factor": 0.7, "no_masking": True, "layer_id": 0, "num_layers": 1,
             "alibi": None}  # fmt: skip
    half = {"rotate_half": True, "rotate_every_two": False}
    for name, settings, change in (
        ("plain", {}, {}),
        ("two_way", {"triangular_masking": False}, {}),
        ("window", {"local_attention": True, "window_size": 3}, {}),
        ("grouped", {}, {"query_key_value": normal(2, 6, 64), "num_kv": 2}),
        ("mask", {}, {"attn_mask": hiding((2, 1, 1, 6)), "no_masking": False}),
        ("no_masking", {}, {"attn_mask": hiding((2, 1, 1, 6))}),
        ("alibi", {}, {"alibi": normal(4, 1, 6)}),
        ("alibi_of_rows", {"triangular_masking": False}, {"alibi": normal(8, 6, 6)}),
        ("rotary", {"rotary_dim": 4}, {}),
        ("rotary_half", {"rotary_dim": 2, "rope_theta": 50.0, **half}, {}),
        ("positions", {"rotary_dim": 4, **half},
         {"position_ids": [[3, 4, 5, 6, 7, 8], [0, 1, 2, 2, 2, 9]]}),
    ):  # fmt: skip
        yield Case(name, ops.SoftmaxContextOp, given(**{**whole, **change}), context,
                   ("rotary", "attention"), settings)  # fmt: skip
    for padding in (False, True):
        make = given(query=normal(2, 5, 60), key=normal(2, 9, 60), value=normal(2, 9, 144),
                     heads=3, add_padding=padding)  # fmt: skip
        yield Case(f"padding_{padding}", ops.PadTransformOp, make, padded, ("bias_act",))


CASES = [*linears(), *gemms(), *sums(), *residuals(), *norms(), *attentions()]
