"""What the tests of attention's scores share: arguments in which each of them matters."""

import torch

F64 = torch.float64
INF = float("inf")
H, G, D, E = 4, 2, 5, 3
TENSORS = ("q", "k", "v", "spans", "mask", "slopes", "seed")
SEED = torch.tensor(7)


def drawn(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def table(*rows):
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


# Two spans of one length that lie one after another, a shorter one, and one with a blind query.
SPANS = table((0, 3, 0, 4), (3, 3, 4, 4), (6, 2, 8, 5), (8, 3, 13, 2))
M, N, LONGEST, KEYS = 12, 15, 3, 6


def qkv():
    return drawn(M, H, D), drawn(N, G, D, seed=1), drawn(N, G, E, seed=2)


def hiding(mask):
    """With whole rows of -inf, and some of others."""
    mask = mask.clone()
    mask[0, 0, 0] = -INF
    mask[-1, -1, -1, :2] = -INF
    return mask


MASKS = {
    "of_keys": drawn(4, 1, 1, KEYS, seed=3),
    "of_all": drawn(1, 1, 1, KEYS, seed=3),
    "of_heads": drawn(1, H, LONGEST, KEYS, seed=3),
    "of_each": drawn(4, H, LONGEST, KEYS, seed=3),
    "hiding": hiding(drawn(4, 1, LONGEST, KEYS, seed=3)),
    "hiding_for_all": hiding(drawn(1, H, 1, KEYS, seed=3)),
}
SLOPES = torch.tensor([0.5, 0.25, 0.125, -1.0], dtype=F64)

CASES = {
    **{f"mask_{name}": {"mask": mask} for name, mask in MASKS.items()},
    "mask_two_way": {"mask": MASKS["hiding"], "causal": False},
    "slopes": {"slopes": SLOPES},
    "slopes_two_way": {"slopes": SLOPES, "causal": False},
    "window": {"window": 2},
    "window_of_one": {"window": 1},
    "window_two_way": {"window": 2, "causal": False},
    "softcap": {"softcap": 0.7, "scale": 1.0},
    "dropout": {"dropout": 0.4, "seed": SEED},
    "dropout_two_way": {"dropout": 0.4, "seed": SEED, "causal": False, "mask": MASKS["of_keys"]},
    "all_dropped": {"dropout": 1.0, "seed": SEED},
    "everything": {
        "mask": MASKS["of_heads"], "slopes": SLOPES, "seed": SEED, "scale": 0.9, "window": 3,
        "softcap": 1.5, "dropout": 0.3,
    },
}  # fmt: skip
