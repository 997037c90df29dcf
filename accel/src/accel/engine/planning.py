"""Plan: what of a model the engine replaces, decided and shown before anything changes.

All or nothing: a model that cannot be served whole is refused with every reason. What is replaced
are forwards; parameters stay in their modules under their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from accel.engine import policy as policies
from accel.engine import sharding
from accel.engine.config import BITS, HybridEngineConfig
from accel.engine.forward import Forward
from accel.engine.gathering import Gathering, planned
from accel.engine.modules import quantized
from accel.engine.modules.encoder import Encoder
from accel.engine.modules.experts import Experts, RoutedMlp, Router
from accel.engine.modules.layer import Attention, DecoderLayer, Mlp
from accel.engine.modules.lora import ChatLora, LoraLinear, PeftLora
from accel.engine.modules.model import CausalLM, Decoder
from accel.engine.modules.parts import Embedding, Head, Norm, RotaryAngles
from accel.engine.modules.projection import FEWEST, Linear, Stacked, activation
from accel.engine.parallel import share
from accel.engine.parallel.ranks import Ranks
from accel.engine.policy import ModelPolicy
from accel.engine.reading import AS_IT_IS
from accel.engine.roles import Role, roles
from accel.engine.serving import served, what_differs
from accel.engine.spec import DecoderSpec, EncoderSpec, StackSpec
from accel.errors import UnsupportedModelError
from accel.refusal import Refusal

# Settings that an encoder could not honour.
_OF_ROLLOUTS = ("rollout_weights", "fuse_lora", "check_exact")


@dataclass(frozen=True)
class Replacement:
    """A module's forward and what takes its place."""

    path: str
    forward: Forward

    def __str__(self) -> str:
        module = type(self.forward.module).__name__
        return f"{self.path or '(the model)':44} {module:24} {type(self.forward).__name__}"


@dataclass(frozen=True)
class Plan:
    """What :func:`accel.hybridize` does to a model. Print it.

    ``model``         the language model found, which may lie inside wrappers
    ``replacements``  of its modules, outermost first
    ``served_by``     the implementation of each op it needs
    ``refusals``      why it cannot be served; empty if it can
    ``notes``         where training differs from generation on purpose, settings without effect
    ``gathering``     of a sharded model: how a rollout gathers its parameters, and why so
    """

    model: nn.Module
    policy: ModelPolicy | None
    spec: StackSpec | None
    replacements: tuple[Replacement, ...] = ()
    served_by: dict[str, str] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    gathering: Gathering | None = None

    @property
    def accepted(self) -> bool:
        return not self.refusals

    def __str__(self) -> str:
        name = type(self.model).__name__
        if self.refusals:
            return "\n".join([f"{name} is refused:", *(f"  {r}" for r in self.refusals)])
        assert self.policy is not None
        lines = [f"{name} as {self.policy.name}: {len(self.replacements)} forwards replaced"]
        lines += [f"  {replacement}" for replacement in self.replacements]
        lines += ["ops"] + [f"  {op:16} {impl}" for op, impl in self.served_by.items()]
        lines += [f"gathers {self.gathering}"] if self.gathering else []
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def require(self) -> StackSpec:
        """The spec; UnsupportedModelError with every reason if the model is refused."""
        if self.refusals or self.spec is None:
            raise UnsupportedModelError(str(self))
        return self.spec

    def apply(self) -> None:
        """Put every forward in its place."""
        self.require()
        for replacement in self.replacements:
            replacement.forward.install()


def plan(model: nn.Module, config: HybridEngineConfig | Mapping[str, Any] | None = None) -> Plan:
    """What would be replaced in ``model``, and by what; changes nothing. CapacityError if
    ``gather_bytes`` has no room for a layer."""
    config = HybridEngineConfig.of(config)
    found, policy = _language_model(model)
    if policy is None:
        known = ", ".join(sorted(p.name for p in policies.known()))
        refusal = Refusal("architecture", f"one that a policy reads: {known}", type(model).__name__,
                          "a plugin can bring a policy: accel_policies")  # fmt: skip
        return Plan(found, None, None, refusals=(refusal,))
    refusals = list(policy.reasons(found.config))
    refusals += _wrapper_reasons(model)
    if refusals:
        return Plan(found, policy, None, refusals=tuple(refusals))
    spec = policy.spec(found.config)
    replacements: list[Replacement] = []
    for role in roles(spec):
        try:
            module = found.get_submodule(role.path)
        except AttributeError:
            refusals.append(Refusal("module", f"a module {role.path}", "none", AS_IT_IS))
            continue
        refusals += role.reasons(module, policy.source)
        replacements += _forwards(role, module, spec, config)
    refusals += _parameter_reasons(found)
    refusals += sharding.reasons(found, spec, model, config.exact)
    copied = _copied(replacements) if config.rollout_weights else []
    bits = BITS.get(config.rollout_weights or "", 0)
    if bits and isinstance(spec, DecoderSpec):
        refusals += quantized.reasons(copied, bits)
    if config.inference_tp_size > 1:
        refusals += _parallel_reasons(found, spec, config)
    if isinstance(spec, EncoderSpec):
        asked = [name for name in _OF_ROLLOUTS if getattr(config, name)]
        refusals += [
            Refusal(name, "a decoder, which has rollouts", "an encoder", f"leave {name} out")
            for name in asked
        ]
    served_by: dict[str, str] = {}
    if not refusals:
        lora = any(isinstance(r.forward, LoraLinear) for r in replacements)
        served_by, refused = served(found, spec, config, lora=lora)
        refusals += refused
    notes = list(_notes(found, model, spec, config))
    if not config.exact and not refusals:
        notes.append(what_differs(found, spec, config, served_by, lora=lora))
    if bits and not refusals:
        notes.append(quantized.note(copied, str(config.rollout_weights), bits))
    return Plan(
        found, policy, spec, tuple(replacements), served_by, tuple(refusals), tuple(notes),
        None if refusals else planned(found, model, spec, config),
    )  # fmt: skip


def _language_model(model: nn.Module) -> tuple[nn.Module, ModelPolicy | None]:
    """The outermost module that a policy serves, and the policy."""
    known = list(policies.known())
    for module in model.modules():
        for policy in known:
            if policy.serves(module):
                return module, policy
    return model, None


def _forwards(
    role: Role, module: nn.Module, spec: StackSpec, config: HybridEngineConfig
) -> Iterator[Replacement]:
    """The role's forward, and those of the parts of a LoRA layer."""
    makers: dict[str, Callable[[], Forward]] = {
        "norm": lambda: Norm(module, spec),
        "layer": lambda: DecoderLayer(module, spec, role.layer),
        "attention": lambda: Attention(module, spec, role.layer),
        "mlp": lambda: Mlp(module, spec),
        "routed": lambda: RoutedMlp(module, spec.layer),
        "router": lambda: Router(module, spec.layer),
        "experts": lambda: Experts(module),
        "activation": lambda: activation(module, spec.act),
    }
    if isinstance(spec, EncoderSpec):
        makers |= {"encoder": lambda: Encoder(module, spec, config.exact)}
    if isinstance(spec, DecoderSpec):
        makers |= {
            "model": lambda: CausalLM(module, spec, config.exact),
            "decoder": lambda: Decoder(module, spec, config.exact),
            "tokens": lambda: Embedding(module, scale=spec.token_scale),
            "positions": lambda: Embedding(module, first=spec.first_position),
            "rotary": lambda: RotaryAngles(module),
            "head": lambda: Head(module, spec),
        }
    bits = FEWEST if role.layer >= 0 else None
    if role.kind in makers:
        yield Replacement(role.path, makers[role.kind]())
    elif role.is_lora(module):
        yield Replacement(role.path, PeftLora(module))
        parts: Any = module
        pairs = [(f"lora_A.{name}", part) for name, part in parts.lora_A.items()]
        pairs += [(f"lora_B.{name}", part) for name, part in parts.lora_B.items()]
        base = parts.base_layer
        yield Replacement(f"{role.path}.base_layer", Linear(base, role.is_transposed(base), bits))
        for name, part in pairs:
            yield Replacement(f"{role.path}.{name}", Linear(part))
    elif role.is_chat_lora(module):
        yield Replacement(role.path, ChatLora(module))
    else:
        yield Replacement(role.path, Linear(module, role.is_transposed(module), bits))


def _copied(replacements: list[Replacement]) -> list[Linear | Stacked]:
    """The projections whose weights rollouts may have copies of."""
    found: list[object] = []
    for forward in (replacement.forward for replacement in replacements):
        if isinstance(forward, Experts):
            found += [forward.gate_up, forward.down]
        else:
            found.append(forward.own if isinstance(forward, ChatLora) else forward)
    return [f for f in found if isinstance(f, (Linear, Stacked)) and f.least_bits is not None]


def _wrapper_reasons(model: nn.Module) -> Iterator[Refusal]:
    active = getattr(model, "active_peft_config", None)
    if active is not None and getattr(active, "is_prompt_learning", False):
        have = f"prompt learning ({active.peft_type})"
        yield Refusal("adapter", "LoRA, or no adapter", have, AS_IT_IS)


def _parameter_reasons(model: nn.Module) -> Iterator[Refusal]:
    """Refuses parameters without values, and more than one dtype or device."""
    base = [p for name, p in model.named_parameters() if "lora_" not in name]
    for what, seen in (
        ("device", {str(p.device) for p in base}),
        ("dtype", {str(p.dtype).removeprefix("torch.") for p in base}),
    ):
        if len(seen) > 1 or seen == {"meta"}:
            want, have = f"parameters of one {what}, with values", ", ".join(sorted(seen))
            yield Refusal(what, want, have, f"load all of the weights, with one {what}")


def _parallel_reasons(
    model: nn.Module, spec: StackSpec, config: HybridEngineConfig
) -> Iterator[Refusal]:
    """Why rollouts cannot be shared by ranks."""
    degree = config.inference_tp_size
    if not isinstance(spec, DecoderSpec):
        have = "an encoder"
        yield Refusal("inference_tp_size", "a decoder, which has rollouts", have, "leave it 1")
        return
    yield from share.reasons(spec, degree)
    yield from Ranks(degree, config.inference_tp_group).reasons()
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        want, have = "parameters that are whole, or sharded by fully_shard", "DeepSpeed's ZeRO-3"
        yield Refusal("inference_tp_size", want, have, "leave it 1")


def _notes(
    model: nn.Module, outer: nn.Module, spec: StackSpec, config: HybridEngineConfig
) -> Iterator[str]:
    if isinstance(spec, EncoderSpec):
        yield (
            f"an encoder has no generate; what lies outside {spec.encoder} stays transformers' "
            "own, and modules that only hold others together, inside its layers, are not called, "
            "nor hooks on them"
        )
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    experts = spec.layer.experts
    for noise, acts in (
        ("dropout", dropouts or spec.probability_dropout),
        ("router jitter", experts is not None and experts.jitter),
    ):
        if acts:
            yield (
                f"the model has {noise}, which acts in a training step: its values then differ "
                f"from those of generate and logprobs, where {noise} is off in any mode"
            )
    if config.fuse_lora:
        yield (
            "fuse_lora: a rollout reads W + scale B A, rounded once to the weights' dtype, from a "
            "second copy of the weights that have adapters; the values of its tokens then differ "
            "by that rounding from logprobs', where adapters are added on the fly"
        )
    if config.inference_tp_size > 1 and isinstance(spec, DecoderSpec):
        yield share.note(spec, config.inference_tp_size, config.inference_tp_sums)
    idle = config.without_effect()
    if idle and config.shard is None and sharding.units(model, spec, outer) is None:
        yield (
            f"{' and '.join(idle)}: without effect, the parameters are whole and nothing is pinned "
            "or gathered"
        )
