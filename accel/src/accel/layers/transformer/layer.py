"""TransformerLayer: a BERT-style layer with DeepSpeed's parameters and arguments, on any device."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts import checks, transformer
from accel.contracts.transformer_layer import require_mask
from accel.errors import ConfigError, OpArgumentError
from accel.host import HOST
from accel.layers.base import OpLayer
from accel.layers.transformer.config import TransformerLayerConfig
from accel.layers.transformer.saving import OpPieces
from accel.layers.transformer.weights import fill, require_parts, shapes, watched
from accel.selection import get_accelerator

NAME = "TransformerLayer"
_INITIALIZER_RANGE = 0.02  # BERT's
_numbering = threading.Lock()
_RECORDER = "transformers.utils.output_capturing"


class TransformerLayer(OpLayer):
    """Self-attention and an MLP, each with dropout, residual sum and norm.

    ``config`` is shared, never written. Parameters, with hidden size H and inner size I:
    ``attn_qkvw`` [3H, H], ``attn_qkvb`` [3H], ``attn_ow`` [H, H], ``attn_ob`` [H], ``attn_nw`` and
    ``attn_nb`` [H], ``inter_w`` [I, H], ``inter_b`` [I], ``output_w`` [H, I], ``output_b`` [H],
    ``norm_w`` and ``norm_b`` [H].

    ``initial_weights`` and ``initial_biases`` are lists of eight tensors each: of query, key,
    value, attention's output, its norm, the inner layer, the outer layer, the last norm. Of what is
    not given, weights are normal with ``initializer_range``, those of norms 1, biases 0.

    Dropout's bits come from three numbers drawn per forward, and none if nothing is dropped: from
    ``generator`` (a :class:`torch.Generator` of the host) or, where that is None, torch's default
    one, whose state activation checkpointing restores before it computes the layer again. A
    generator of the layer's own cannot be restored so, and such a forward is refused; nor does
    ``torch.compile`` trace one. With ``config.seed`` of 0 or more the layer has one from the start,
    seeded with it plus ``layer_id``. A copy of the layer has a copy of the generator: it drops the
    same. ``layer_id`` numbers the layers of a process in the order they are made, unless it is
    given; the class's own is the next layer's, and may be set.

    Bits do not depend on the length: padding at the end drops nothing else and draws no more.

    In a model of transformers, whose ``gradient_checkpointing_enable()`` sets
    ``gradient_checkpointing`` and what does it, the layer is checkpointed as the model's own are.
    """

    uses = ("linear", "layer_norm", "attention", "bias_act", "dropout_add", "softmax")
    variants = {  # noqa: RUF012 - as the base says
        "attention with a mask": ("attention", {"mask": True}),
        "attention with dropout": ("attention", {"dropout": 0.1}),
    }

    layer_id: int = 0  # the class's: the next layer's
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any

    attn_qkvw: nn.Parameter
    attn_qkvb: nn.Parameter
    attn_ow: nn.Parameter
    attn_ob: nn.Parameter
    attn_nw: nn.Parameter
    attn_nb: nn.Parameter
    inter_w: nn.Parameter
    inter_b: nn.Parameter
    output_w: nn.Parameter
    output_b: nn.Parameter
    norm_w: nn.Parameter
    norm_b: nn.Parameter

    def __init__(
        self,
        config: TransformerLayerConfig,
        initial_weights: Sequence[Tensor] | None = None,
        initial_biases: Sequence[Tensor] | None = None,
        *,
        layer_id: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, TransformerLayerConfig):
            found = type(config).__name__
            raise TypeError(f"{NAME}: config must be a TransformerLayerConfig, not {found}")
        for name in ("hidden_size", "heads"):
            if getattr(config, name) < 1:
                raise ConfigError(f"{NAME} needs a config with {name}; found {name} not given")
        self.config = config
        if device is None and config.local_rank >= 0:
            device = get_accelerator().device(config.local_rank)
        if dtype is None and config.fp16:
            dtype = torch.float16
        for name, shape in shapes(config.hidden_size, config.intermediate_size).items():
            self.register_parameter(
                name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            )
        weights, biases = self.parts()
        require_parts(NAME, "initial_weights", weights, initial_weights)
        require_parts(NAME, "initial_biases", biases, initial_biases)
        self.reset_parameters()
        fill(weights, initial_weights)
        fill(biases, initial_biases)
        self.train(config.training)
        if layer_id is None:
            with _numbering:
                layer_id = TransformerLayer.layer_id
                TransformerLayer.layer_id += 1
        self.layer_id = layer_id
        self.generator: torch.Generator | None = None
        if config.seed >= 0:
            self.generator = torch.Generator().manual_seed(config.seed + self.layer_id)
        self._pieces = OpPieces(config.normalize_invertible, config.gelu_checkpoint)

    def reset_parameters(self) -> None:
        """New weights, from torch's default generator."""
        self.init_transformer_weights(self.config.adjust_init_range)

    @torch.no_grad()
    def init_transformer_weights(self, adjust_init_range: bool = False) -> None:
        """:meth:`reset_parameters` by DeepSpeed's name, with this ``adjust_init_range`` in place
        of the config's."""
        config = self.config
        std = _INITIALIZER_RANGE if config.initializer_range < 0 else config.initializer_range
        onto_stream = std
        if adjust_init_range and config.num_hidden_layers > 0:
            onto_stream = std / math.sqrt(2 * config.num_hidden_layers)
        stds = {"attn_qkvw": std, "inter_w": std, "attn_ow": onto_stream, "output_w": onto_stream}
        for name, parameter in self.named_parameters():
            if name in stds:
                parameter.normal_(0, stds[name])
            else:
                parameter.fill_(1 if name in ("attn_nw", "norm_w") else 0)

    def parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """(weights, biases), each as eight tensors (``weights.PARTS``): those of query, key and
        value are views of one parameter."""
        weights = [*self.attn_qkvw.chunk(3), self.attn_ow, self.attn_nw, self.inter_w]
        biases = [*self.attn_qkvb.chunk(3), self.attn_ob, self.attn_nb, self.inter_b]
        return [*weights, self.output_w, self.norm_w], [*biases, self.output_b, self.norm_b]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Any = None,
        layer_head_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        grads: list[Any] | None = None,
        **others: Any,
    ) -> Tensor | tuple[Tensor]:
        """hidden_states ``[B, S, H]`` to the same, or to ``(that,)`` with ``return_tuple``.

        ``attention_mask`` broadcasts to ``[B, heads, S, S]`` from dimensions of 1, the last one
        always S. It is added to the scores; of bool, True stands for what is seen. Queries that
        see nothing attend to nothing: 0.

        ``grads`` is appended ``[gradient, tag]`` as each parameter's gradient by this forward is
        computed. ``head_mask`` and what follows it, and any other keyword of transformers' layers,
        must be None or False: OpArgumentError. But for ``output_hidden_states``, where transformers
        records what the layer returns: :func:`require_recorder`.
        """
        if others.pop("output_hidden_states", None):
            require_recorder(self)
        unserved = {
            "head_mask": head_mask, "layer_head_mask": layer_head_mask,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask, "past_key_value": past_key_value,
            "output_attentions": output_attentions, **others,
        }  # fmt: skip
        refuse_unserved(unserved)
        mask = self.prepared(hidden_states, attention_mask)
        weights: list[Tensor] = list(self.parameters())
        if grads is not None:
            weights = watched(weights, grads)
        options = self.config.op_options(self.training)
        seeds = self.seeds(options, hidden_states.device)

        def compute(x: Tensor, mask: Tensor | None, seeds: Tensor | None) -> Tensor:
            with self.resolution():
                return transformer.layer(self._pieces, x, weights, mask, seeds, **options)

        if self.gradient_checkpointing and self.training:
            y = self._gradient_checkpointing_func(compute, hidden_states, mask, seeds)
        else:
            y = compute(hidden_states, mask, seeds)
        return (y,) if self.config.return_tuple else y

    def prepared(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask to be added, in x's dtype; OpArgumentError unless x and it fit the layer."""
        own, hidden = self.attn_qkvw, self.config.hidden_size
        checks.refuse_nontensor(NAME, {"hidden_states": x}, optional=())
        if x.dim() != 3 or x.shape[2] != hidden:
            raise OpArgumentError(
                f"{NAME}: hidden_states must be [B, S, {hidden}]; found {checks.describe(x)}"
            )
        fits = x.device == own.device
        if fits and x.dtype is not own.dtype:
            fits = x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
        if not fits:
            raise OpArgumentError(
                f"{NAME}: hidden_states must have the parameters' dtype and device; found "
                f"{checks.describe(x)} beside {checks.describe(own)}; move or cast one of them"
            )
        if mask is None:
            return None
        checks.refuse_nontensor(NAME, {"attention_mask": mask}, optional=())
        if mask.dtype is not torch.bool and not mask.is_floating_point():
            raise OpArgumentError(
                f"{NAME}: attention_mask must be floating point, to be added to the scores, or "
                f"bool, True where a key is seen; found {checks.describe(mask)}"
            )
        require_mask(mask, x, self.config.heads)
        if mask.device != x.device:
            raise OpArgumentError(
                f"{NAME}: attention_mask must be on hidden_states' device; found "
                f"{checks.describe(mask)} beside {checks.describe(x)}; move one of them"
            )
        if mask.dtype is torch.bool:
            return torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        return mask.to(x.dtype)

    def seeds(self, options: dict[str, Any], device: torch.device) -> Tensor | None:
        """Three new numbers for dropout, on ``device``; None if the options drop nothing."""
        if options["attn_dropout"] == options["hidden_dropout"] == 0:
            return None
        if self.generator is not None and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"{NAME}: computed again within a backward, with a generator of its own (from "
                "config.seed), which activation checkpointing does not restore: other elements "
                "would be dropped; set layer.generator = None, or use the layer's memory flags"
            )
        drawn = torch.randint(2**63 - 1, (3,), generator=self.generator, device=HOST)
        return drawn.to(device)

    @contextmanager
    def resolution(self) -> Iterator[None]:
        """Where this layer's ops are resolved: shape-invariant or not, if ``stochastic_mode``."""
        # torch.compile traces no context variable; there the permission is not made use of.
        if not self.config.stochastic_mode or torch.compiler.is_compiling():
            yield
            return
        with ops.use(exact=False):
            yield

    def extra_repr(self) -> str:
        config = self.config
        return (
            f"hidden_size={config.hidden_size}, intermediate_size={config.intermediate_size}, "
            f"heads={config.heads}, act={config.act!r}, pre_layer_norm={config.pre_layer_norm}"
        )


def refuse_unserved(arguments: dict[str, Any]) -> None:
    """OpArgumentError for an argument that asks for something."""
    asked = [name for name, value in arguments.items() if value is not None and value is not False]
    if asked:
        raise OpArgumentError(
            f"{NAME}: {', '.join(asked)} cannot be served; leave it None. It attends to "
            "hidden_states alone, through attention_mask, and returns no probabilities"
        )


def require_recorder(layer: nn.Module) -> None:
    """OpArgumentError unless transformers, which collects hidden states by forward hooks on the
    classes in a model's ``_can_record_outputs``, has one on ``layer``."""
    hooks = layer._forward_hooks.values()
    if not any(getattr(hook, "__module__", None) == _RECORDER for hook in hooks):
        raise OpArgumentError(
            f"{NAME}: output_hidden_states would miss this layer: transformers records layers of "
            "the model's own class alone. Collect what layers return by "
            "layer.register_forward_hook, or have transformers record them: "
            f"{_RECORDER}.install_output_capuring_hook(layer, 'hidden_states', 0) for each"
        )
