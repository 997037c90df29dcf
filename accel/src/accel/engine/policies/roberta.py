"""roberta: bert, with positions that skip the padding (Liu et al. 2019)."""

from __future__ import annotations

from accel.engine.policies.bert import BertPolicy


class RobertaPolicy(BertPolicy):
    name = "roberta"
    model = "RobertaModel"
    source = "transformers.models.roberta.modeling_roberta"


POLICY = RobertaPolicy
