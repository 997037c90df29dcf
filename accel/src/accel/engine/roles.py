"""Roles: which module of a model does what, and whether it is what the spec takes it for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel.engine.forward import Forward, installed
from accel.engine.reading import AS_IT_IS
from accel.engine.spec import DecoderSpec
from accel.errors import UnsupportedModelError
from accel.refusal import Refusal

_CONV1D = ("Conv1D", "transformers.pytorch_utils")
# Where norms and activations come from that an architecture takes ready-made.
_LIBRARIES = (
    "torch.nn.modules.normalization",
    "torch.nn.modules.activation",
    "transformers.activations",
)
_LORA = ("Linear", "peft.tuners.lora.layer")


@dataclass(frozen=True)
class Role:
    """A module by its path in the model, what it does there, and in which layer (-1: in none)."""

    path: str
    kind: str
    layer: int = -1

    def reasons(self, module: nn.Module, source: str) -> Iterator[Refusal]:
        """Why the module cannot play the role. ``source`` is where the architecture is defined."""
        own = module.__dict__.get("forward")
        if own is not None and not isinstance(own, Forward):
            yield self._refusal("its class's forward", f"a forward of its own, {own!r:.80}")
        if self.kind in ("projection", "head"):
            yield from self._projection_reasons(module)
        elif self.kind == "embedding":
            yield from self._embedding_reasons(module)
        elif type(module).forward.__module__ not in (source, *_LIBRARIES):
            found = f"{type(module).__name__}, whose forward is {type(module).forward.__module__}'s"
            yield self._refusal(f"a module as {source} has it", found)

    def is_transposed(self, module: nn.Module) -> bool:
        """True if the module keeps its weight as ``[in, out]``."""
        return _is(module, _CONV1D)

    def is_lora(self, module: nn.Module) -> bool:
        """True for PEFT's LoRA layer around a linear projection."""
        return _is(module, _LORA)

    def _projection_reasons(self, module: nn.Module) -> Iterator[Refusal]:
        if self.kind == "projection" and self.is_lora(module):
            lora: Any = module
            if lora.lora_variant:
                yield self._refusal("plain LoRA", f"a variant of it ({sorted(lora.lora_variant)})")
            module = lora.base_layer
        if type(module).forward is not nn.Linear.forward and not self.is_transposed(module):
            yield self._refusal("a linear projection, with plain LoRA or without", _name(module))

    def _embedding_reasons(self, module: nn.Module) -> Iterator[Refusal]:
        if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
            yield self._refusal("a torch.nn.Embedding", _name(module))
        elif module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            yield self._refusal("an embedding without max_norm, scale_grad_by_freq and sparse",
                                repr(module))  # fmt: skip

    def _refusal(self, want: str, have: str) -> Refusal:
        return Refusal("module", f"{self.path or 'the model'} to be {want}", have, AS_IT_IS)


def roles(spec: DecoderSpec) -> Iterator[Role]:
    """Every module that is replaced, outermost first."""
    yield Role("", "model")
    yield Role(spec.decoder, "decoder")
    yield Role(spec.tokens, "embedding")
    if spec.positions:
        yield Role(spec.positions, "embedding")
    if spec.rotary:
        yield Role(spec.rotary, "rotary")
    layer = spec.layer
    projections = (*layer.qkv, layer.out, layer.gate, layer.up, layer.down)
    for index, path in enumerate(spec.layer_paths()):
        yield Role(path, "layer", index)
        yield Role(f"{path}.{layer.attention}", "attention", index)
        yield Role(f"{path}.{layer.mlp}", "mlp", index)
        yield Role(f"{path}.{layer.act}", "activation", index)
        for norm in (layer.attention_norm, layer.mlp_norm):
            yield Role(f"{path}.{norm}", "norm", index)
        for projection in filter(None, projections):
            yield Role(f"{path}.{projection}", "projection", index)
    yield Role(spec.final_norm, "norm")
    yield Role(spec.head, "head")


def require_current(model: nn.Module, spec: DecoderSpec) -> None:
    """UnsupportedModelError if a module was replaced after the model was hybridized."""
    for role in roles(spec):
        module = model.get_submodule(role.path)
        if installed(module) is None:
            raise UnsupportedModelError(
                f"{role.path or 'the model'} is now a {type(module).__name__} of its own; "
                "call accel.hybridize(model) again"
            )


def _is(module: nn.Module, known: tuple[str, str]) -> bool:
    name, source = known
    return type(module).__name__ == name and type(module).__module__ == source


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"
