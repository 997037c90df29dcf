"""The transformer layer in plain torch, and what its tests share."""

import torch
import torch.nn.functional as F
from torch import nn

from accel.contracts import random
from accel.layers.transformer import TransformerLayer, TransformerLayerConfig

F64 = torch.float64
ACTS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
FLAGS = ("normalize_invertible", "gelu_checkpoint", "attn_dropout_checkpoint")


def config(**settings):
    return TransformerLayerConfig(
        **({"hidden_size": 8, "intermediate_size": 12, "heads": 2} | settings)
    )


def made(settings, dtype=F64):
    """A layer whose every parameter matters: none is 0 or 1."""
    torch.manual_seed(5)
    layer = TransformerLayer(settings, dtype=dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            centre = 1.0 if name in ("norm_w", "attn_nw") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, dtype=F64))
    return layer


def drawn(*shape, dtype=F64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=F64, generator=generator).to(dtype)


def additive(mask):
    """What is added to the scores, of a bool mask."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=F64).masked_fill(~mask, float("-inf"))


class Twin(nn.Module):
    """The layer of torch's own modules and functions, in float64, with a layer's weights."""

    def __init__(self, layer):
        super().__init__()
        self.config = config = layer.config
        hidden, inner = config.hidden_size, config.intermediate_size
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.attn_norm, self.norm = (nn.LayerNorm(hidden, config.layer_norm_eps) for _ in range(2))
        self.double()
        with torch.no_grad():
            for mine, its in zip(self.of_layer(), layer.parameters(), strict=True):
                mine.copy_(its)

    def of_layer(self):
        """The parameters in the layer's order."""
        for part in (self.qkv, self.out, self.attn_norm, self.up, self.down, self.norm):
            yield from (part.weight, part.bias)

    def forward(self, x, mask=None, seeds=None):
        a = self.attended(self.norm(x) if self.config.pre_layer_norm else x, mask, seeds)
        a = x + self.dropped(a, seeds, 1)
        normed = self.attn_norm(a)
        y = self.down(ACTS[self.config.act](self.up(normed)))
        y = (a if self.config.pre_layer_norm else normed) + self.dropped(y, seeds, 2)
        return y if self.config.pre_layer_norm else self.norm(y)

    def attended(self, x, mask, seeds):
        (batch, length, hidden), heads = x.shape, self.config.heads
        q, k, v = self.qkv(x).view(batch, length, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / (hidden // heads) ** 0.5
        if mask is not None:
            scores = scores + additive(mask)
        if self.config.causal:
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        p = scores.softmax(-1)
        if seeds is not None and self.config.attn_dropout_ratio > 0:
            rows = torch.arange(batch * heads).view(batch, heads, 1) * 2**32 + torch.arange(length)
            p = p * survivors(seeds[0], rows, length, self.config.attn_dropout_ratio)
        return self.out((p @ v).transpose(1, 2).reshape(batch, length, hidden))

    def dropped(self, x, seeds, which):
        if seeds is None or self.config.hidden_dropout_ratio <= 0:
            return x
        rows = torch.arange(x.shape[0]).view(-1, 1) * 2**32 + torch.arange(x.shape[1])
        return x * survivors(seeds[which], rows, x.shape[2], self.config.hidden_dropout_ratio)


def survivors(seed, rows, columns, p):
    return random.kept(seed, rows, columns, p).double() / (1 - p)


def drops(seed):
    """The numbers that a forward after ``torch.manual_seed(seed)`` draws."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    numbers = torch.randint(2**63 - 1, (3,))
    torch.set_rng_state(state)
    return numbers


def saved_bytes(layer, function):
    """Bytes that autograd keeps of a forward, each storage once, parameters left out."""
    own, kept = {p.untyped_storage().data_ptr() for p in layer.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return sum(kept.values()), result
