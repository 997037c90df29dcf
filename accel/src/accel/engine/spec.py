"""DecoderSpec: what the engine must know of a decoder-only model, whatever its name.

A policy reads it from a model. Paths are dotted names of submodules, the parameters stay in them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: ``h + attention(norm(h))``, then ``h + mlp(norm(h))``.

    Paths are relative to the layer. ``qkv`` names one projection each for queries, keys and
    values, or a single one with their rows in that order; ``gate`` makes the MLP
    ``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``, and ``act`` the module of the
    activation. The ``*_dropout`` are modules at the end of the two branches.
    """

    attention: str
    attention_norm: str
    qkv: tuple[str, ...]
    out: str
    mlp: str
    mlp_norm: str
    up: str
    down: str
    act: str
    gate: str | None = None
    attention_dropout: str | None = None
    mlp_dropout: str | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only language model.

    Paths are relative to the model with the head. ``rotary`` names the module that holds
    ``inv_freq`` and ``attention_scaling``; ``positions`` a learned table. ``scales`` multiply the
    scores, one per layer. ``probability_dropout`` acts on the softmax of a training step.
    """

    decoder: str
    tokens: str
    layers: str
    final_norm: str
    head: str
    layer: LayerSpec
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    norm: str  # the op: "rms_norm" or "layer_norm"
    norm_eps: float
    act: str  # as in accel.contracts.activation
    scales: tuple[float, ...]
    rotary: str | None = None
    positions: str | None = None
    embedding_dropout: str | None = None
    probability_dropout: float = 0.0

    def layer_paths(self) -> list[str]:
        """The paths of the decoder layers."""
        return [f"{self.layers}.{index}" for index in range(len(self.scales))]
