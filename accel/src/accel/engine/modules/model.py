"""The decoder, and the model with its head: from token ids to what the caller asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from accel.engine.call import Call
from accel.engine.calls import Step, Training
from accel.engine.forward import Forward
from accel.engine.modules.balance import balanced, keeping
from accel.engine.modules.parts import Angles, angles_without_module, multiplied
from accel.engine.roles import require_current
from accel.engine.sequences import Sequences
from accel.engine.spec import DecoderSpec, Rotary
from accel.errors import OpArgumentError, UnsupportedCapability


class Decoded(NamedTuple):
    """The last hidden state ``[B, S, H]``, where its tokens lie, and all hidden states if asked."""

    hidden: Tensor
    sequences: Sequences
    kept: tuple[Tensor, ...] | None


class _Model(Forward):
    """What knows the whole spec. ``exact`` holds for forwards that no :class:`Call` came with."""

    def __init__(self, module: nn.Module, spec: DecoderSpec, exact: bool) -> None:
        super().__init__(module)
        self.spec = spec
        self.exact = exact


class Decoder(_Model):
    """Embeddings, layers and the last norm; what transformers calls the base model."""

    def __call__(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        call: Call | None = None,
        **unserved: Any,
    ) -> Any:
        """transformers' output; for a ``call`` a :class:`Decoded`."""
        refuse(unserved)
        found = self._decode(
            call or Call(exact=self.exact), input_ids, attention_mask, position_ids, inputs_embeds,
            output_hidden_states,
        )  # fmt: skip
        if call is not None:
            return found
        from transformers.modeling_outputs import BaseModelOutputWithPast

        output = BaseModelOutputWithPast(found.hidden, hidden_states=found.kept)
        return output if return_dict is not False else output.to_tuple()

    def _decode(
        self, call: Call, input_ids: Tensor | None, attention_mask: Tensor | None,
        position_ids: Tensor | None, inputs_embeds: Tensor | None, keep: bool | None,
    ) -> Decoded:  # fmt: skip
        if (input_ids is None) == (inputs_embeds is None):
            raise OpArgumentError("give either input_ids or inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        if given.dim() != (2 if inputs_embeds is None else 3):
            raise OpArgumentError(
                f"input_ids must be [batch, length], inputs_embeds [batch, length, hidden]; found "
                f"{list(given.shape)}"
            )
        with call.active(given.device):
            sequences = Sequences.of(attention_mask, given.shape[:2], given.device, position_ids)
            if call.cache is not None:
                sequences = call.cache.admit(sequences)
            h = self._part(self.spec.tokens)(input_ids) if inputs_embeds is None else inputs_embeds
            h = self._placed(h, sequences, call)
            angles = self._angles(h, sequences.positions)
            kept = []
            for layer in self._part(self.spec.layers).children():
                kept += [h] if keep else []
                h = layer(h, angles, sequences, call)
            for path in (self.spec.final_norm, self.spec.embedding_out):
                h = h if path is None else self._part(path)(h)
        return Decoded(h, sequences, (*kept, h) if keep else None)

    def _placed(self, h: Tensor, sequences: Sequences, call: Call) -> Tensor:
        """As the first layer takes it: scaled, projected, with positions, norm and dropout, where
        the model has them."""
        spec = self.spec
        h = multiplied(h, spec.embedding_scale)
        if spec.embedding_in is not None:
            h = self._part(spec.embedding_in)(h)
        if spec.positions is not None:
            h = h + self._part(spec.positions)(sequences.positions)
        if spec.embedding_norm is not None:
            h = self._part(spec.embedding_norm)(h)
        if spec.embedding_dropout is not None and call.dropout:
            h = self._part(spec.embedding_dropout)(h)
        return h

    def _angles(self, h: Tensor, positions: Tensor) -> Angles | None:
        rotary = self.spec.rotary
        if rotary is None:
            return None
        if isinstance(rotary, Rotary):
            return Angles(*angles_without_module(h, positions, rotary))
        return Angles(*self._part(rotary)(h, positions))

    def _part(self, path: str) -> nn.Module:
        return self.module.get_submodule(path.removeprefix(self.spec.decoder + "."))


class CausalLM(_Model):
    """The model with its head: logits and loss, or whatever ``call`` makes of the hidden state."""

    def __call__(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        skip_logits: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        call: Call | None = None,
        **unserved: Any,
    ) -> Any:
        """As the model's own forward, with these differences. Logits are fp32 (fp64 beside fp64).
        Positions count from the first real token. With ``labels`` in training the loss is computed
        without the logits, and there are none unless ``skip_logits=False``. Autocast is ignored.
        """
        refuse(unserved)
        routed = call is None and self._keeps_router_logits(output_router_logits)
        if call is None:
            call = Training(
                exact=self.exact, labels=labels, keep=logits_to_keep, items=num_items_in_batch,
                skip_logits=self.module.training if skip_logits is None else skip_logits,
            )  # fmt: skip
        if not isinstance(call, Step):  # generate has looked before its first
            require_current(self.module, self.spec)
        decoder = self.module.get_submodule(self.spec.decoder)
        head = self.module.get_submodule(self.spec.head)
        with keeping(routed) as kept:
            decoded: Decoded = decoder(
                input_ids, attention_mask=attention_mask, position_ids=position_ids,
                inputs_embeds=inputs_embeds, output_hidden_states=output_hidden_states, call=call,
            )  # fmt: skip
        with call.active(decoded.hidden.device):
            found = call.result(head, decoded.hidden, decoded.sequences)
        if not isinstance(call, Training):
            return found
        found.hidden_states = decoded.kept
        experts = self.spec.layer.experts
        if experts is not None:
            found = balanced(found, kept, decoded.sequences, self.module, experts)
        return found if return_dict is not False else found.to_tuple()

    def _keeps_router_logits(self, asked: bool | None) -> bool:
        """Where there are routers, as asked or else configured."""
        if self.spec.layer.experts is None:
            refuse({"output_router_logits": asked})
            return False
        config: Any = self.module.config
        return bool(config.output_router_logits if asked is None else asked)


def refuse(unserved: dict[str, Any]) -> None:
    """Arguments the engine does not know are refused by name, unless they ask for nothing."""
    asked = [name for name, value in unserved.items() if value is not None and value is not False]
    if asked:
        raise UnsupportedCapability(
            f"the model's forward does not take {', '.join(asked)} while it is the hybrid "
            "engine's: its KV cache lives in `generate`; accel.restore(model) brings the model's "
            "own forward back"
        )
