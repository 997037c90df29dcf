"""The plain MLP that TiledMLP is held against, and what their tests share."""

import torch
import torch.nn.functional as F
from agreement import assert_agree
from torch import nn

from accel.layers.tiled_mlp import TiledMLP

F32, F64 = torch.float32, torch.float64
ACTS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


class Plain(nn.Module):
    """The twin, as one writes it."""

    def __init__(self, hidden=5, inner=7, act="silu", gated=True, bias=False, dtype=F64):
        super().__init__()
        of = {"bias": bias, "dtype": dtype}
        if gated:
            self.gate_proj = nn.Linear(hidden, inner, **of)
        self.up_proj = nn.Linear(hidden, inner, **of)
        self.down_proj = nn.Linear(inner, hidden, **of)
        self.act_fn = ACTS[act]

    def forward(self, x):
        if not hasattr(self, "gate_proj"):
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def tiled(plain, *, act="silu", tile_rows=3):
    """A TiledMLP with copies of the twin's values, under the twin's names."""
    of = {"dtype": plain.up_proj.weight.dtype, "bias": plain.up_proj.bias is not None}
    layer = TiledMLP(
        plain.up_proj.in_features, plain.up_proj.out_features, act=act,
        gated=hasattr(plain, "gate_proj"), tile_rows=tile_rows, **of,
    )  # fmt: skip
    layer.load_state_dict(plain.state_dict())
    return layer


def made(*shape, dtype=F64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=F64, generator=generator).to(dtype)


def gradients(module, x):
    """Of x and of every parameter by name, where each element of the result counts differently."""
    x, named = x.clone().requires_grad_(), dict(module.named_parameters())
    y = module(x)
    found = torch.autograd.grad(y, [x, *named.values()], made(*y.shape, dtype=y.dtype))
    return y.detach(), dict(zip(["x", *named], found))


def assert_equal(one, other):
    assert_agree(one, other)
