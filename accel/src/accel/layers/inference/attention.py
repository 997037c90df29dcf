"""SoftmaxOp, SoftmaxContextOp: attention's probabilities, and attention over what is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from accel import ops
from accel.contracts import checks
from accel.errors import OpArgumentError
from accel.layers.inference.base import BaseOp
from accel.layers.inference.config import InferenceConfig
from accel.layers.inference.workspace import WorkspaceOp


class SoftmaxOp(BaseOp):
    """Attention's probabilities of its scores."""

    uses = ("softmax",)

    def forward(
        self, attn_scores: Tensor, attn_mask: Tensor | None, alibi: Tensor | None,
        triangular: bool, recompute: bool, local_attention: bool, window_size: int,
        async_op: bool, layer_scale: float, head_offset: int,
    ) -> Tensor:  # fmt: skip
        """``softmax(attn_scores * layer_scale + alibi + attn_mask)`` over the last dimension; 0 in
        rows that see nothing.

        attn_scores ``[B, heads, Q, K]``, of which query i stands beside key ``i + K - Q``: the
        last it sees if ``triangular``, and of ``window_size`` with ``local_attention``. attn_mask
        as in :func:`additive_mask`; alibi ``[heads of all mp_size ranks, 1 or Q, K]``, or B times
        as many, of which ``head_offset`` is the first used. ``recompute`` and ``async_op`` are
        refused.
        """
        if recompute:
            self.refuse("recompute", recompute, "scores are the caller's, and none are kept")
        if async_op:
            self.refuse("async_op", async_op, "work is already queued on the caller's stream")
        if attn_scores.dim() != 4:
            raise OpArgumentError(
                f"SoftmaxOp: attn_scores must be [B, heads, Q, K]; found "
                f"{checks.describe(attn_scores)}"
            )
        checks.require_floats("SoftmaxOp", attn_scores, {}, key="attn_scores")
        batch, heads, queries, keys = attn_scores.shape
        bias = alibi_bias(alibi, batch, heads, heads * self.config.mp_size, head_offset)
        mask = additive_mask(attn_mask, bias, attn_scores.dtype, self.config.invert_mask)
        _require_mask("SoftmaxOp", mask, queries, keys)
        window = window_size if local_attention else None
        if triangular or window is not None:
            hidden = _hidden(queries, keys, triangular, window, attn_scores.device)
            mask = attn_scores.new_zeros(()) if mask is None else mask
            mask = mask.masked_fill(hidden, -torch.inf)
        return ops.softmax(attn_scores, mask, scale=layer_scale)


class SoftmaxContextOp(BaseOp):
    """Attention over the tokens given and those that ``workspace`` keeps of the calls before."""

    uses = ("rotary", "attention")
    variants = {"attention with a mask": ("attention", {"mask": True})}  # noqa: RUF012

    def __init__(
        self, config: InferenceConfig | None = None, workspace: WorkspaceOp | None = None
    ) -> None:
        super().__init__(config)
        if self.config.local_attention and not self.config.triangular_masking:
            self.refuse("local_attention", True, "a window of the last tokens needs "
                        "triangular_masking")  # fmt: skip
        self.workspace = WorkspaceOp(self.config) if workspace is None else workspace

    def forward(
        self, query_key_value: Tensor, attn_mask: Tensor | None, heads: int, num_kv: int,
        norm_factor: float | None, no_masking: bool, layer_id: int, num_layers: int | None,
        alibi: Tensor | None, is_prompt: bool | None = None, token_idx: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """(context ``[B, S, heads * D]``, keys and values ``[B, num_kv, T, D]`` of all T tokens).

        query_key_value ``[B, S, (heads + 2 * num_kv) * D]``: queries, keys, values, each head after
        head; num_kv below 1 means ``heads``. ``is_prompt`` (default: several tokens, or the first
        of their layer) begins anew, else the S tokens continue. Scores are multiplied by
        ``norm_factor`` squared (default: the config's), and get alibi ``[heads, 1 or S, T]`` or
        ``[B * heads, 1 or S, T]``, of this rank's heads, and ``attn_mask``, unless ``no_masking``:
        see :func:`additive_mask`, with T keys. ``position_ids`` ``[B, S]`` or ``[1, S]`` turn the
        rotary part (default: the tokens' places).

        Keys and values returned are views of the workspace, whose tokens never change, and have no
        gradients; context has, of a prompt. CapacityError past ``max_out_tokens``; OpArgumentError
        where arguments do not fit each other or what the workspace keeps, which then stays so.
        ``token_idx`` is refused. Layers are known by ``layer_id``, however many there are.
        """
        if token_idx is not None:
            self.refuse("token_idx", token_idx, "the workspace counts its tokens; pass None")
        q, k, v = self._heads(query_key_value, heads, num_kv if num_kv > 0 else heads)
        batch, length = q.shape[:2]
        past = self.workspace.length(layer_id)
        if is_prompt is None:
            is_prompt = length > 1 or not past
        if position_ids is None:
            first = 0 if is_prompt else past
            position_ids = torch.arange(first, first + length, device=q.device)[None]
        q, k = self._rotated(position_ids, q, k)
        if is_prompt:
            before = self.workspace.begun(layer_id, k)
        else:
            before = self.workspace.continued(layer_id, k)
            self._require_no_gradient(k, v)
        kept = before.extended(k, v)
        # Those of a prompt have gradients, which the workspace has not.
        keys, values = (k, v) if is_prompt else (kept.keys, kept.values)
        mask = additive_mask(
            None if no_masking else attn_mask, alibi_bias(alibi, batch, heads, heads), q.dtype,
            self.config.invert_mask,
        )  # fmt: skip
        _require_mask("SoftmaxContextOp", mask, length, kept.length)
        factor = self.config.norm_factor if norm_factor is None else norm_factor
        context = ops.attention(
            q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1),
            kept.spans(length, keys.shape[1]), mask,
            causal=self.config.triangular_masking, scale=factor**2,
            window=self.config.window_size if self.config.local_attention else None,
        )  # fmt: skip
        self.workspace.keep(layer_id, kept)
        context = context.reshape(batch, length, heads * v.shape[-1])
        keys, values = (t[:, : kept.length].transpose(1, 2) for t in (kept.keys, kept.values))
        return context, keys, values

    def _heads(self, qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, (heads + 2 * kv_heads) * D] as queries, keys and values [B, S, heads, D]."""
        total = heads + 2 * kv_heads
        if qkv.dim() != 3 or heads < 1 or heads % kv_heads or qkv.shape[-1] % total:
            raise OpArgumentError(
                f"SoftmaxContextOp: query_key_value must be [B, S, (heads + 2 * num_kv) * D] with "
                f"num_kv a divisor of heads; found {checks.describe(qkv)} with heads={heads}, "
                f"num_kv={kv_heads}"
            )
        q, k, v = qkv.unflatten(-1, (total, -1)).split((heads, kv_heads, kv_heads), 2)
        return q, k, v

    def _rotated(self, positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q and k [B, S, heads, D], turned by angles ``position * theta ** (-2i / rotary_dim)``."""
        turned = self.config.rotary_dim
        if turned <= 0:
            return q, k
        batch, length = q.shape[:2]
        if positions.dim() != 2 or positions.shape[0] not in (1, batch) or (
            positions.shape[1] != length
        ):  # fmt: skip
            raise OpArgumentError(
                f"SoftmaxContextOp: position_ids must be [{batch} or 1, {length}]; found "
                f"{checks.describe(positions)}"
            )
        wide = checks.WIDE[q.dtype]
        exponents = torch.arange(0, turned, 2, dtype=wide, device=q.device) / -turned
        angles = positions[..., None].to(wide) * self.config.rope_theta**exponents
        cos, sin = (t.expand(batch, -1, -1) for t in (angles.cos(), angles.sin()))
        interleaved = self.config.rotate_every_two
        return (
            ops.rotary(q, cos, sin, interleaved=interleaved),
            ops.rotary(k, cos, sin, interleaved=interleaved),
        )

    def _require_no_gradient(self, *added: Tensor) -> None:
        if torch.is_grad_enabled() and any(t.requires_grad for t in added):
            raise OpArgumentError(
                "SoftmaxContextOp: a continuation has no gradient for what it keeps; call it under "
                "torch.no_grad(), or give the whole sequence as a prompt"
            )


def additive_mask(
    mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype, invert: bool
) -> Tensor | None:
    """What is added to scores ``[B, heads, Q, K]``, in their dtype: ``mask + bias``.

    mask ``[B, K]``, ``[B, Q, K]`` or ``[B or 1, heads or 1, Q or 1, K]``. One that is not floating
    point holds 1 for what is seen and 0 for what is hidden, or the reverse without ``invert``,
    which turns such a mask into one that is added.
    """
    if mask is not None:
        checks.refuse_nontensor("attention", {"attn_mask": mask}, optional=())
        if mask.dim() == 2:
            mask = mask[:, None, None]
        elif mask.dim() == 3:
            mask = mask[:, None]
        if not mask.is_floating_point():
            hidden = mask == 0 if invert else mask != 0
            mask = torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -torch.inf)
        if bias is not None:
            wide = checks.WIDE[dtype]
            mask = mask.to(wide) + bias.to(wide)
    total = bias if mask is None else mask
    return None if total is None else total.to(dtype)


def alibi_bias(
    alibi: Tensor | None, batch: int, heads: int, total: int, first: int = 0
) -> Tensor | None:
    """Of alibi ``[total, ., K]`` or ``[batch * total, ., K]``, heads ``first`` to ``first + heads``
    as ``[1 or batch, heads, ., K]``."""
    if alibi is None:
        return None
    if alibi.dim() == 3 and alibi.shape[0] in (total, batch * total):
        each = alibi.reshape(-1, total, *alibi.shape[1:])
        if 0 <= first <= total - heads:
            return each[:, first : first + heads]
    raise OpArgumentError(
        f"alibi must be [{total}, 1 or Q, K] or [{batch * total}, 1 or Q, K] and heads {first} to "
        f"{first + heads} among its {total}; found {checks.describe(alibi)}"
    )


def _require_mask(op: str, mask: Tensor | None, queries: int, keys: int) -> None:
    if mask is not None and (
        mask.dim() != 4 or mask.shape[3] != keys or mask.shape[2] not in (1, queries)
    ):
        raise OpArgumentError(
            f"{op}: attn_mask and alibi must be for 1 or {queries} queries and {keys} "
            f"keys; found together {checks.describe(mask)}"
        )


def _hidden(
    queries: int, keys: int, causal: bool, window: int | None, device: torch.device
) -> Tensor:
    """bool [Q, K]: which key a query does not see, where query i stands beside key i + K - Q."""
    place = torch.arange(queries, device=device)[:, None] + (keys - queries)
    ahead = torch.arange(keys, device=device) - place
    hidden = ahead > 0 if causal else torch.zeros_like(ahead, dtype=torch.bool)
    return hidden if window is None else hidden | (ahead <= -window)
