"""Roles: which module of a model does what, and whether it is what the spec takes it for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel.engine.forward import Forward, installed
from accel.engine.reading import AS_IT_IS
from accel.engine.spec import DecoderSpec, EncoderSpec, LayerSpec, StackSpec
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
_CHAT_LORA = ("weight", "lora_right_weight", "lora_left_weight", "lora_scaling", "bias")
_LORA_ON_PARAMETER = ("ParamWrapper", "peft.tuners.lora.layer")
# The parameters of a router and of experts, whose modules are the architecture's own.
_WEIGHTS = {"router": ("weight",), "experts": ("gate_up_proj", "down_proj")}


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
            yield from self._projection_reasons(module, source)
        elif self.kind in ("tokens", "positions"):
            yield from self._embedding_reasons(module, source)
        elif _is(module, _LORA_ON_PARAMETER):
            remedy = "adapt projections (target_modules), not parameters (target_parameters)"
            yield self._refusal("without LoRA", "an adapter on a parameter", remedy)
        elif type(module).forward.__module__ not in (source, *_LIBRARIES):
            found = f"{type(module).__name__}, whose forward is {type(module).forward.__module__}'s"
            yield self._refusal(f"a module as {source} has it", found)
        elif self.kind in _WEIGHTS:
            yield from self._weight_reasons(module)

    def is_transposed(self, module: nn.Module) -> bool:
        """True if the module keeps its weight as ``[in, out]``."""
        return _is(module, _CONV1D)

    def is_lora(self, module: nn.Module) -> bool:
        """True for PEFT's LoRA layer around a linear projection."""
        return _is(module, _LORA)

    def is_chat_lora(self, module: nn.Module) -> bool:
        """True for a linear layer with an adapter of its own, as DeepSpeed-Chat makes them: told by
        what it has, as its class is copied from script to script."""
        return all(hasattr(module, name) for name in _CHAT_LORA)

    def _projection_reasons(self, module: nn.Module, source: str) -> Iterator[Refusal]:
        if self.kind == "projection" and self.is_chat_lora(module):
            yield from self._chat_lora_reasons(module)
            return
        if self.kind == "projection" and self.is_lora(module):
            lora: Any = module
            for name, variant in sorted(lora.lora_variant.items()):
                have = f"a variant of it ({name!r} is a {type(variant).__name__})"
                yield self._refusal("plain LoRA", have, "train a plain LoRA adapter")
            module = lora.base_layer
        forward = type(module).forward
        own = isinstance(module, nn.Linear) and forward.__module__ == source
        if forward is not nn.Linear.forward and not own and not self.is_transposed(module):
            yield self._refusal("a linear projection, with plain LoRA or without", _name(module))

    def _chat_lora_reasons(self, module: Any) -> Iterator[Refusal]:
        weight, down, up = (getattr(module, name) for name in _CHAT_LORA[:3])
        if weight.dim() != 2:  # its values are away
            return
        if (down.shape[0], up.shape[1]) != (weight.shape[1], weight.shape[0]):
            have = f"{list(down.shape)} and {list(up.shape)} beside {list(weight.shape)}"
            want = "lora_right_weight [in, r] and lora_left_weight [r, out] beside a weight"
            yield self._refusal(f"LoRA with {want} [out, in]", have)

    def _embedding_reasons(self, module: nn.Module, source: str) -> Iterator[Refusal]:
        forward = type(module).forward
        known = forward is nn.Embedding.forward or forward.__module__ == source
        if not isinstance(module, nn.Embedding) or not known:
            yield self._refusal("a torch.nn.Embedding", _name(module))
        elif module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            yield self._refusal("an embedding without max_norm, scale_grad_by_freq and sparse",
                                repr(module))  # fmt: skip

    def _weight_reasons(self, module: nn.Module) -> Iterator[Refusal]:
        """Of modules that are no projection, and whose parameters are read nevertheless."""
        for name in _WEIGHTS[self.kind]:
            weight = module._parameters.get(name)
            if weight is None or not weight.is_floating_point():
                have = "none" if weight is None else str(weight.dtype).removeprefix("torch.")
                yield self._refusal(f"a module with a floating-point parameter {name}", have)
        if getattr(module, "_is_expert_parallel", False):
            yield self._refusal("all experts", "those of one process (expert parallelism)")

    def _refusal(self, want: str, have: str, remedy: str = AS_IT_IS) -> Refusal:
        return Refusal("module", f"{self.path or 'the model'} to be {want}", have, remedy)


def roles(spec: StackSpec) -> Iterator[Role]:
    """Every module that is replaced, outermost first."""
    if isinstance(spec, EncoderSpec):
        yield Role(spec.encoder, "encoder")
    if isinstance(spec, DecoderSpec):
        yield from _around(spec)
    for index, path in enumerate(spec.layer_paths()):
        yield Role(path, "layer", index)
        inside = _inside(spec.layer, index)
        yield from (Role(f"{path}.{part}", kind, index) for part, kind in inside if part)


def _around(spec: DecoderSpec) -> Iterator[Role]:
    """What a decoder has beside its layers."""
    yield Role("", "model")
    yield Role(spec.decoder, "decoder")
    yield Role(spec.tokens, "tokens")
    outside = (
        (spec.positions, "positions"),
        (spec.rotary if isinstance(spec.rotary, str) else None, "rotary"),
        (spec.embedding_norm, "norm"),
        (spec.embedding_in, "projection"),
        (spec.embedding_out, "projection"),
        (spec.final_norm, "norm"),
        (spec.head, "head"),
    )
    yield from (Role(path, kind) for path, kind in outside if path)


def _inside(layer: LayerSpec, index: int) -> Iterator[tuple[str | None, str]]:
    """Path and kind of what the layer of that index has."""
    yield layer.attention, "attention"
    if layer.experts is not None and layer.has_experts(index):
        yield layer.mlp, "routed"
        yield layer.experts.router, "router"
        yield layer.experts.experts, "experts"
        yield layer.experts.act, "activation"
    else:
        yield layer.mlp, "mlp"
        yield layer.act, "activation"
    yield from ((norm, "norm") for norm in layer.norms())
    yield from ((projection, "projection") for projection in layer.projections(index))


def require_current(model: nn.Module, spec: DecoderSpec) -> None:
    """UnsupportedModelError if a module was replaced after the model was hybridized. Not if the
    model's forward was, as trainers wrap it: whether theirs calls ours is seen when it is called
    (:meth:`accel.engine.call.Call.ask`)."""
    for role in roles(spec):
        module = model.get_submodule(role.path)
        wrapped = role.kind == "model" and "forward" in vars(module)
        if installed(module) is None and not wrapped:
            raise UnsupportedModelError(
                f"{role.path or 'the model'} is now a {type(module).__name__} of its own; "
                "call accel.hybridize(model) again"
            )


def _is(module: nn.Module, known: tuple[str, str]) -> bool:
    name, source = known
    return type(module).__name__ == name and type(module).__module__ == source


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"
