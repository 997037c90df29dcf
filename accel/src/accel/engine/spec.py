"""DecoderSpec and EncoderSpec: what the engine must know of a model, whatever its name.

A policy reads it from a model. Paths are dotted names of submodules, the parameters stay in them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertsSpec:
    """MLPs of which a router chooses ``top_k`` for each token, added together by its probabilities.

    Paths are relative to the layer. ``router`` is a module with a weight ``[count, H]``;
    ``experts`` is one with ``gate_up_proj`` ``[count, 2 I, H]``, the gate's rows, then the other's,
    and ``down_proj`` ``[count, H, I]``; ``act`` is the module of the activation. ``layers`` are
    those that have experts. Probabilities are among all experts, or, ``normalized``, among the
    chosen ones. ``jitter``: in a training step what enters is multiplied by numbers at most that
    far from 1.
    """

    router: str
    experts: str
    act: str
    count: int
    top_k: int
    normalized: bool
    layers: tuple[int, ...]
    jitter: float = 0.0


@dataclass(frozen=True)
class LayerSpec:
    """One layer of two branches, attention and MLP: ``h + out_norm(branch(norm(h)))`` each,
    one after the other.

    Paths are relative to the layer; a norm without a path is not there. With ``parallel`` both
    branches read the same ``h`` and are added to it together; an MLP without a norm of its own then
    takes what the attention takes. With ``norms_sums`` a branch reads ``h`` as it is and its norm
    follows the addition; with ``adds_to_normed`` a branch is added to what it read.

    ``qkv`` names one projection each for queries, keys and values, or a single one whose rows are
    ``qkv_rows``: ``"stacked"``, all queries, then keys, then values, or ``"grouped"``, for each kv
    head its queries, its key and its value. ``q_norm`` and ``k_norm`` act on each head, or before
    the heads are told apart where they are ``whole_qk_norms``.

    ``gate`` makes the MLP ``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``, where it
    is the path of ``up`` too its rows are the gate's, then the other's. ``act`` is the module of
    the activation. An MLP without a path has its parts in the layer itself. The ``*_dropout`` are
    modules at the end of the branches, ``dropout`` is the probability of what is added where there
    are none; ``scale`` multiplies both branches. In the layers that have ``experts`` those are the
    MLP.
    """

    attention: str
    qkv: tuple[str, ...]
    out: str
    mlp: str | None
    up: str
    down: str
    act: str
    gate: str | None = None
    attention_norm: str | None = None
    attention_out_norm: str | None = None
    mlp_norm: str | None = None
    mlp_out_norm: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    whole_qk_norms: bool = False
    qkv_rows: str = "stacked"
    attention_dropout: str | None = None
    mlp_dropout: str | None = None
    dropout: float = 0.0
    parallel: bool = False
    norms_sums: bool = False
    adds_to_normed: bool = False
    scale: float = 1.0
    experts: ExpertsSpec | None = None

    def has_experts(self, index: int) -> bool:
        """Whether they are the MLP of the layer of that index."""
        return self.experts is not None and index in self.experts.layers

    def __post_init__(self) -> None:
        orders = ("parallel", "norms_sums", "adds_to_normed")
        chosen = [name for name in orders if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"a layer is at most one of {', '.join(orders)}; found {chosen}")
        if self.qkv_rows not in ("stacked", "grouped"):
            raise ValueError(f"qkv_rows is 'stacked' or 'grouped'; found {self.qkv_rows!r}")

    def norms(self) -> tuple[str, ...]:
        """The paths of those there are."""
        found = (
            self.attention_norm, self.attention_out_norm, self.mlp_norm, self.mlp_out_norm,
            self.q_norm, self.k_norm,
        )  # fmt: skip
        return tuple(filter(None, found))

    def projections(self, index: int) -> tuple[str, ...]:
        """The paths of those there are in the layer of that index."""
        if self.has_experts(index):
            return (*self.qkv, self.out)
        gate = self.gate if self.gate != self.up else None
        return tuple(filter(None, (*self.qkv, self.out, gate, self.up, self.down)))


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of a model without a module for them: the first ``width`` elements of a
    head turn by ``position * base ** (-2 i / width)``."""

    width: int
    base: float = 10000.0


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """Layers on top of each other: what decoders and encoders have in common.

    Paths are relative to the model. With ``interleaved`` neighbours turn together where positions
    are rotary, not halves. ``slopes`` are ALiBi's, one per head: a score falls by that much with
    each position of distance.

    Per layer: ``scales`` multiply the scores, ``windows`` are the positions a query looks back,
    itself included, None for all. ``score_softcap`` makes a score ``c tanh(score / c)``. A norm's
    weight is ``norm_offset`` more than its parameter. ``probability_dropout`` acts on the softmax
    of a training step. ``causal``: no token sees a later one.
    """

    layers: str
    layer: LayerSpec
    heads: int
    kv_heads: int
    head_dim: int
    norm: str  # the op: "rms_norm" or "layer_norm"
    norm_eps: float
    act: str  # as in accel.contracts.activation, or "quick_gelu"
    scales: tuple[float, ...]
    norm_offset: float = 0.0
    interleaved: bool = False
    slopes: tuple[float, ...] | None = None
    windows: tuple[int | None, ...] | None = None
    score_softcap: float | None = None
    probability_dropout: float = 0.0
    causal: bool = True

    def layer_paths(self) -> list[str]:
        """The paths of the layers."""
        return [f"{self.layers}.{index}" for index in range(len(self.scales))]

    def window(self, layer: int) -> int | None:
        """How far a layer's queries look back; None: as far as there is."""
        return None if self.windows is None else self.windows[layer]


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(StackSpec):
    """A model that gives hidden states: its layers are replaced, and ``encoder``, the module that
    calls them one after the other with the mask they share. Embeddings and what follows the layers
    stay as they are."""

    encoder: str


@dataclass(frozen=True, kw_only=True)
class DecoderSpec(StackSpec):
    """A decoder-only language model.

    Paths are relative to the model with the head. ``rotary`` names the module that holds
    ``inv_freq`` and ``attention_scaling``, or says what there is instead. ``positions`` is a
    learned table, read from row ``first_position`` on.

    ``logit_softcap`` makes a logit ``c tanh(logit / c)``. Rows of the table of tokens are
    multiplied by ``token_scale``, embeddings, given ones too, by ``embedding_scale``, each in their
    dtype; logits by ``logit_scale``. ``embedding_in`` and ``embedding_out`` are projections from
    and to the embeddings' width.
    """

    decoder: str
    tokens: str
    head: str
    max_positions: int
    final_norm: str | None = None
    rotary: str | Rotary | None = None
    positions: str | None = None
    first_position: int = 0
    embedding_norm: str | None = None
    embedding_in: str | None = None
    embedding_out: str | None = None
    embedding_dropout: str | None = None
    token_scale: float = 1.0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
