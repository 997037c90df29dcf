"""The small encoders that tests are about, and how near to float64 they are."""

import torch
import transformers
from measures import batch, excess

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
DISTIL = {
    "vocab_size": 97, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "dropout": 0.0,
    "attention_dropout": 0.0, "max_position_embeddings": 64,
}  # fmt: skip
CLIP = {**BERT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
CASES = {
    "bert": ("Bert", {**BERT, **STILL}),
    "bert gelu_new": ("Bert", {**BERT, **STILL, "hidden_act": "gelu_new"}),
    "roberta": ("Roberta", {**BERT, **STILL}),
    "distilbert": ("DistilBert", DISTIL),
    "clip_text": ("CLIPText", CLIP),
    "clip_text gelu": ("CLIPText", {**CLIP, "hidden_act": "gelu"}),
}
NAMES = ("bert", "roberta", "distilbert", "clip_text")


def small(name, suffix="Model", **config):
    """Every parameter matters: none stays the one or the nothing that it begins with."""
    cls, settings = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{cls}Config")(**{**settings, **config})
    model = getattr(transformers, cls + suffix)(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.12 * torch.randn(parameter.shape, generator=generator)
    return model


def step(model):
    """Hidden states of the real tokens, and the gradients of a loss over them."""
    ids, mask = batch()
    model.train()
    model.zero_grad()
    real = mask.bool()
    states = model(ids, attention_mask=mask).last_hidden_state[real]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states.float() * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"states": states.detach(), **gradients}


def apart(ours, theirs, exact):
    """Where ours is farther from float64 than the budget of the engine's other models."""
    found = {name: excess(ours[name], theirs[name], exact[name]) for name in exact}
    return {name: e for name, e in found.items() if not e <= 0}
