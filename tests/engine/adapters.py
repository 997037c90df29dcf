"""Adapters that do something: of DeepSpeed-Chat's kind, and a second one of PEFT's."""

import models
import torch
from peft import LoraConfig
from torch import nn

PROJECTIONS = ("q_proj", "v_proj", "gate_proj", "down_proj", "query_key_value", "fc1")


class ChatLinear(nn.Module):
    """As DeepSpeed-Chat's scripts have it: weight and adapter in one module, whose own ``train``
    tells the dropout alone and returns nothing."""

    def __init__(self, weight, bias, rank, alpha, dropout):
        super().__init__()
        rows, columns = weight.shape
        self.weight, self.bias = weight.requires_grad_(False), bias
        self.lora_right_weight = nn.Parameter(weight.new_empty(columns, rank))
        self.lora_left_weight = nn.Parameter(weight.new_empty(rank, rows))
        self.lora_scaling = alpha / rank
        self.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fuse_lora = False

    def train(self, mode=True):
        self.lora_dropout.train(mode)

    def forward(self, x):
        low = self.lora_dropout(x) @ self.lora_right_weight
        return nn.functional.linear(x, self.weight, self.bias) + (
            low @ self.lora_left_weight * self.lora_scaling
        )


def drawn(parameters, seed=1):
    """Small multiples of 1/64, whose products of a few are exact in every dtype but the shortest;
    in their place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        numbers = torch.randint(-12, 13, parameter.shape, generator=generator) / 64
        parameter.data.copy_(numbers)


def with_chat_lora(model, rank=4, alpha=8, dropout=0.0):
    """The model with such layers in its projections' place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path.endswith(PROJECTIONS):
            owner, _, name = path.rpartition(".")
            made = ChatLinear(module.weight, module.bias, rank, alpha, dropout)
            setattr(model.get_submodule(owner), name, made)
    drawn(p for name, p in model.named_parameters() if "lora_" in name)
    return model.eval()


def with_peft(model, **config):
    """In PEFT's hands, the numbers drawn as here."""
    wrapped = models.with_lora(model, **config)
    drawn(p for name, p in wrapped.named_parameters() if "lora_" in name)
    return wrapped


def add_second(model, name="second", **config):
    """Another adapter of PEFT's, on other projections too, and another scale."""
    usual = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"]}
    model.add_adapter(name, LoraConfig(**{**usual, **config}))
    drawn((p for path, p in model.named_parameters() if f".{name}." in path), seed=2)
    return model.eval()


def several(dtype=torch.float32):
    model = add_second(with_peft(models.llama(), lora_dropout=0.0))
    return model.to(dtype)


# -- the weights they stand for ----------------------------------------------------------------


def products(layer):
    """(scale, A [r, in], B [out, r]) of what is added to the layer's weight."""
    if hasattr(layer, "lora_left_weight"):
        yield layer.lora_scaling, layer.lora_right_weight.t(), layer.lora_left_weight.t()
    names = getattr(layer, "lora_A", {})
    acting = [name for name in layer.active_adapters if name in names] if names else []
    yield from ((layer.scaling[n], layer.lora_A[n].weight, layer.lora_B[n].weight) for n in acting)


def merged(model, plain):
    """The plain model with the weights that the other one's stand for: W and the sum of scale B A,
    added in fp32 or wider and rounded once; where numbers are such that nothing else is."""
    plain = plain.to(model.dtype)
    wide = torch.promote_types(model.dtype, torch.float32)
    for path, module in plain.named_modules():
        shares = [s * (b.double() @ a.double()) for s, a, b in products(adapted(model, path))]
        if shares:
            share = sum(shares)
            assert torch.equal(share, share.float().double()), "no rounding"
            module.weight.data = (module.weight.to(wide) + share.to(wide)).to(model.dtype)
    return plain


def adapted(model, path):
    inner = model.base_model.model if hasattr(model, "peft_config") else model
    return inner.get_submodule(path)
