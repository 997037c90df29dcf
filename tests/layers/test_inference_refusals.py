"""The inference ops refuse what does not fit, and say what does."""

import pytest
import torch

import accel
from accel import testing
from accel.errors import ConfigError, OpArgumentError
from accel.layers import inference
from accel.layers.inference import InferenceConfig

F32 = torch.float32


@pytest.fixture(autouse=True)
def _torch_serves():
    with testing.installed(testing.fake_backend()), accel.ops.use(exact=False):
        yield


def linear(**settings):
    return inference.LinearOp(InferenceConfig(dtype=F32, **settings))


def mlp(act, **settings):
    return inference.MLPGemmOp(InferenceConfig(dtype=F32, mlp_act_func_type=act, **settings))


def softmax(scores, mask):
    return inference.SoftmaxOp()(
        scores, mask, None, False, False, False, 1, False, layer_scale=1.0, head_offset=0
    )


x, w, wide = torch.ones(2, 3, 8), torch.ones(8, 24), torch.ones(8, 480)
GELU, GATED = inference.ActivationFuncType.GELU, inference.ActivationFuncType.GATED_SILU
RMS = inference.NormType.RMSNorm

REFUSED = {
    "weight's dtype": (lambda: linear()(x, w.half(), None, False, False, 1), "float32, the config"),
    "input's dtype": (lambda: linear()(x.half(), w, None, False, False, 1), "must have x's dtype"),
    "weight's rank": (lambda: linear()(x, w[0], None, False, False, 1), "must be [in, out]"),
    "weight's sides": (
        lambda: linear(transposed_mode=True)(x, w, None, False, False, 1), "in = 24",
    ),
    "device": (lambda: linear()(x, w.to("meta"), None, False, False, 1), "device"),
    "no bias": (lambda: linear()(x, w, None, True, False, 1), "add_bias=True needs a bias"),
    "heads": (lambda: linear()(x, w, None, False, True, 5), "3 * num_heads * size; found 24"),
    "no heads": (lambda: linear()(x, w, None, False, True, 0), "at least 1"),
    "flash rank": (lambda: linear()(x[0], w, None, False, True, 1), "[B, S, in]"),
    "flash size": (lambda: linear()(x, wide, None, False, True, 1), "multiple of 64; found 160"),
    "flash groups": (
        lambda: linear(heads=4, num_kv=2)(x, w, None, False, True, 4), "num_kv=2",
    ),
    "async": (lambda: inference.VectorMatMulOp()(x, w, async_op=True), "async_op=True is not"),
    "beta": (
        lambda: inference.QKVGemmOp(InferenceConfig(dtype=F32, norm_type=RMS))(x, w, None, None, x),
        "an RMS norm has no such term",
    ),
    "inner size": (lambda: mlp(GELU)(x, x, w, torch.ones(23, 8)), "found 24 and 23"),
    "inner size, gated": (lambda: mlp(GATED)(x, x, w, torch.ones(24, 8)), "give 2 * I"),
    "inner size, known": (
        lambda: mlp(GELU, intermediate_size=48, mp_size=4)(x, x, w, torch.ones(24, 8)), "48 / 4",
    ),
    "gate": (lambda: inference.GatedActivationOp()(x, None, GELU), "possible are GATED_GELU"),
    "odd gate": (lambda: inference.GatedActivationOp()(x[..., :7], None, GATED), "two halves"),
    "coef": (lambda: inference.MoEResMatmulOp()(x, x, x), "[2, 3, 2] or [2, 3, 16]"),
    "coef's rows": (lambda: inference.MoEResMatmulOp()(x, x[:, :2, :2], x), "coef must be [2, 3"),
    "coef's dtype": (
        lambda: inference.MoEResMatmulOp()(x, x[..., :2].half(), x), "must have residual's dtype",
    ),
    "scores' dtype": (lambda: softmax(torch.ones(2, 2, 3, 3).long(), None), "float32"),
    "softmax's mask": (
        lambda: softmax(torch.ones(2, 2, 3, 3), torch.ones(2, 4)), "must be for 1 or 3 queries",
    ),
    "MLP's weight's rank": (lambda: mlp(GELU)(x, x, w[0], w.t()), "weight_interm must be [in"),
    "MLP's order": (lambda: mlp(GELU)(x, x, x[0, 0], w, w.t()), "weight_interm must be [in"),
    "workspace's heads": (
        lambda: inference.WorkspaceOp().allocate_workspace(8, 0, 1, 1, 1), "num_heads=0",
    ),
    "no activation's number": (
        lambda: inference.GatedActivationOp()(x, None, 99), "possible are GATED_GELU",
    ),
    "sum's shape": (lambda: inference.VectorAddOp()(x, x[0], 1.0), "must have"),
    "sum's dtype": (lambda: inference.VectorAddOp()(x, x.half(), 1.0), "dtype"),
    "residual": (lambda: inference.ResidualAddOp()(x, x[:1], True), "residual must have"),
    "final bias": (
        lambda: inference.ResidualAddOp()(x, x, True, final_bias=w[0]), "final_bias must be [8]",
    ),
    "einsum": (lambda: inference.EinsumSecSmEcmOp()(x, w), "[S, E, C] and W [S, M]"),
    "padding": (
        lambda: inference.PadTransformOp()(x, torch.ones(2, 129, 8), x, 2, True), "128 rows",
    ),
    "padding's heads": (lambda: inference.PadTransformOp()(x, x, x, 3, False), "heads=3"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    call, says = REFUSED[name]
    with pytest.raises(OpArgumentError) as error:
        call()
    assert says in str(error.value)


NO_TENSORS = {
    "weight": lambda: linear()(x, None, None, False, False, 1),
    "weight_out": lambda: mlp(GELU)(x, x, w, None),
    "activation": lambda: inference.GatedActivationOp()([1.0], None, GATED),
    "attn_mask": lambda: softmax(torch.ones(2, 2, 3, 3), [[1, 0, 1]]),
}


@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_is_no_tensor_is_a_type_error(name):
    with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, not (list|NoneType)"):
        NO_TENSORS[name]()


def test_settings_come_as_a_config():
    with pytest.raises(TypeError, match="LinearOp: config must be an InferenceConfig, not dict"):
        inference.LinearOp({"dtype": F32})


def test_an_activation_is_known():
    with pytest.raises(ConfigError, match="UNKNOWN: 0> is no activation; possible are GELU, ReLU"):
        mlp(inference.ActivationFuncType.UNKNOWN)


def test_an_int8_weight_needs_its_scales():
    op = inference.GELUGemmOp(
        InferenceConfig(dtype=torch.int8, quantization_scales={"weight": torch.ones(24, 1)})
    )
    with pytest.raises(ConfigError, match=r"needs quantization_scales\['weight_out'\].*'weight'"):
        op(x, w.char(), torch.ones(24), w.t().char())
    with pytest.raises(OpArgumentError, match="int8, the config's dtype; found float32"):
        op(x, w, torch.ones(24), w.t())
