"""Rollouts that ranks share, beside those that each would make alone: the cases, and their runs."""

import adapters
import models
import torch
from measures import seeded

import accel

NEW = 8
EVERY_TOKEN = list(range(models.VOCAB))
SAMPLED = {
    "do_sample": True, "seed": 3, "max_new_tokens": NEW, "eos_token_id": EVERY_TOKEN[::9],
}  # fmt: skip
GREEDY = {"max_new_tokens": NEW}
# Neither heads nor widths of these divide by two; nor do those of most by four.
ODD = {
    "llama": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3,
              "intermediate_size": 101, "vocab_size": 101},
    "qwen3": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16,
              "intermediate_size": 90},
    "gpt2": {"n_embd": 48, "n_head": 3},
    "opt": {"hidden_size": 60, "num_attention_heads": 5, "ffn_dim": 75, "word_embed_proj_dim": 60},
    "falcon": {"hidden_size": 80, "num_attention_heads": 5, "num_kv_heads": 5,
               "ffn_hidden_size": 70},
    "gpt_neox": {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 50},
}  # fmt: skip
ODD_ONES = [f"odd {name}" for name in ODD]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def made(name):
    """A model by its name and its dtype's, with adapters if it says so; larger numbers than the
    usual, so that heads differ."""
    name, dtype = name.rsplit(" ", 1)
    odd, name = name.startswith("odd "), name.removeprefix("odd ")
    name, _, lora = name.partition(" with ")
    config = ODD[name] if odd else {}
    model = models.small(name, **config)
    drawn = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.1, generator=drawn)
    if lora == "PEFT":
        gpt = name == "gpt2"
        every = ["c_attn", "c_proj", "c_fc"] if gpt else ["q_proj", "k_proj", "o_proj", "up_proj",
                                                          "gate_proj", "down_proj"]  # fmt: skip
        model = adapters.with_peft(model, lora_dropout=0.0, target_modules=every)
    elif lora == "Chat":
        model = adapters.with_chat_lora(model)
    return model.to(DTYPES[dtype])


def prompts(rank, rows=(2, 1, 3, 2), widths=(7, 11, 1, 4)):
    """(ids, mask) of a rank's: of other lengths than the others', the first padded."""
    ids = seeded((rows[rank], widths[rank]), seed=rank + 1)
    mask = torch.ones_like(ids)
    if ids.shape[1] > 3:
        mask[0, :2] = 0
    return ids, mask


def rolled(name, rank, degree, config=None, **asked):
    """(rollout, what logprobs says of it) of a model's, of one rank's prompts."""
    engine = accel.HybridEngine(made(name), config={"inference_tp_size": degree, **(config or {})})
    ids, mask = prompts(rank)
    roll = engine.generate(ids, mask, return_logprobs=True, **{**SAMPLED, **asked})
    adapter = asked.get("adapter", "active")
    scored = engine.logprobs(roll.sequences, roll.attention_mask, adapter=adapter).detach()
    return roll, scored[:, -roll.logprobs.shape[1] :]


def same_rollout(found, want):
    """Bit for bit, and in shape and dtype."""
    for name in ("sequences", "attention_mask", "logprobs", "processed_logprobs"):
        one, other = getattr(found, name), getattr(want, name)
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name
    for name in ("scores", "logits"):
        ones, others = getattr(found, name) or (), getattr(want, name) or ()
        assert len(ones) == len(others), name
        assert all(map(torch.equal, ones, others)), name
    assert found.seed == want.seed
