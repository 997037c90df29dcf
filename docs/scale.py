"""``python docs/scale.py`` writes scale.md: bytes between ranks, and what they predict. A test
holds the page true to this, and another the formulas to the bytes that gloo is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("scale.md")
MESSAGE = 4 * 8  # bytes of an exchange between ranks: four int64


@dataclass(frozen=True)
class Llama:
    """Sizes of a Llama whose embedding and head are not tied; ``width`` in bytes of a number."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    width: int

    @property
    def table(self) -> int:
        """Bytes of the embedding, and of the head."""
        return self.vocab * self.hidden * self.width

    @property
    def layer(self) -> int:
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head
        return (attention + 3 * self.hidden * self.inner + 2 * self.hidden) * self.width

    @property
    def passing(self) -> int:
        """Bytes that come and go with their units."""
        return self.layers * self.layer + 2 * self.table

    @property
    def around(self) -> int:
        """Those of the unit around them: the last norm."""
        return self.hidden * self.width

    @property
    def whole(self) -> int:
        return self.passing + self.around


def gathered(size: float, ranks: int) -> float:
    """What a rank receives of the others when ``size`` bytes are gathered; as much as it sends when
    they are added up and scattered."""
    return size * (ranks - 1) / ranks


def reduced(size: float, ranks: int) -> float:
    """What it sends and receives when they are added up for all: scattered, and gathered."""
    return 2 * gathered(size, ranks)


def rollout(model: Llama, ranks: int, policy: str, tokens: int) -> float:
    """Received by a rank in a rollout of as many tokens a row, whatever the rows."""
    if policy == "all":
        return gathered(model.whole, ranks) + 2 * reduced(MESSAGE, ranks)
    each = gathered(model.passing, ranks) + reduced(MESSAGE, ranks)
    return gathered(model.around, ranks) + tokens * each + 2 * reduced(MESSAGE, ranks)


def step(model: Llama, ranks: int) -> float:
    """In a training step: the parameters for the forward, again for the backward but for those
    around the layers, and the gradients' sums."""
    return gathered(2 * model.whole + model.passing, ranks)


def shared(model: Llama, degree: int, tokens: int = 1, values: int = 1) -> float:
    """Of tensor parallelism in its exact form, for tokens of which some get values: in each layer
    the heads' results, what the projection back makes of them, the MLP's inner activations and its
    results; the logits, in fp32."""
    inner = model.heads * model.head + 2 * model.hidden + model.inner
    return gathered(tokens * model.layers * inner * model.width + values * model.vocab * 4, degree)


SMALL = Llama(96, 64, 96, 2, 4, 2, 16, 4)
LARGE = Llama(128256, 8192, 28672, 80, 64, 8, 128, 2)
POLICIES = ("all", "groups", "prefetch", "layer")
TOKENS = 6  # of the small one's rollout
PROMPT = 3

GPUS, NODE = 64, 8
NETWORK, LINK, MEMORY = 50e9, 450e9, 3.35e12  # bytes a second, each GPU's own
ROOM = 80e9
LATENCY = 10e-6  # seconds until a gather begins
FLOPS = 0.4 * 989e12
ROWS, ANSWER = 64, 512


def page() -> str:
    """The page's text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    yield "| | 2 ranks | 4 ranks |\n|---|---|---|"
    for policy in POLICIES:
        yield _row(f"rollout of {TOKENS} tokens, `{policy}`",
                   *(rollout(SMALL, n, policy, TOKENS) for n in (2, 4)))  # fmt: skip
    yield _row("training step", *(step(SMALL, n) for n in (2, 4)))
    tokens = PROMPT + TOKENS - 1
    each = (shared(SMALL, n, n * tokens, n * TOKENS) for n in (2, 4))
    yield _row(f"rollout of {PROMPT} and {TOKENS} tokens a rank, tensor parallel", *each)
    yield LARGE_HEAD.format(
        gpus=GPUS, nodes=GPUS // NODE, node=NODE, network=NETWORK / 1e9, link=LINK / 1e9,
        memory=MEMORY / 1e12, room=ROOM / 1e9, latency=LATENCY * 1e6, whole=LARGE.whole / 1e9,
        layer=LARGE.layer / 1e9, shard=LARGE.whole / GPUS / 1e9, rows=ROWS, flops=FLOPS / 1e12,
    )  # fmt: skip
    columns = "received a token", "seconds a token", f"seconds for {ANSWER}", "beside the shard"
    yield f"| | {' | '.join(columns)} |\n|---|---|---|---|---|"
    for name, ranks, speed in (("64 ranks", GPUS, NETWORK), ("8 ranks of a node", NODE, LINK)):
        token = gathered(LARGE.passing, ranks)
        room = 3 * LARGE.layer + LARGE.around
        yield _prediction(f"`prefetch`, {name}", token, token / speed, 0.0, room)
        once = rollout(LARGE, ranks, "all", ANSWER) / speed
        yield _prediction(f"`all`, {name}", 0.0, LARGE.whole / MEMORY, once,
                          LARGE.whole + LARGE.table)  # fmt: skip
    token = ROWS * shared(LARGE, NODE)
    gathers = (4 * LARGE.layers + 1) * LATENCY
    read = LARGE.whole / NODE / MEMORY
    yield _prediction("tensor parallel, degree 8", token, token / LINK + gathers + read, 0.0, None)
    training = step(LARGE, GPUS)
    hidden = training / NETWORK * FLOPS * GPUS / (6 * LARGE.whole / LARGE.width)
    yield TAIL.format(
        training=training / 1e9, seconds=training / NETWORK, tokens=hidden / 1e6,
        slower=gathered(LARGE.passing, GPUS) / NETWORK / (LARGE.whole / MEMORY),
    )  # fmt: skip


def _row(name: str, *figures: float) -> str:
    return f"| {name} | " + " | ".join(f"{figure:,.0f}" for figure in figures) + " |"


def _prediction(name: str, received: float, token: float, once: float, room: float | None) -> str:
    beside = "all parameters, whole" if room is None else f"{room / 1e9:.1f} GB"
    moved = f"{received / 1e9:.3g} GB" if received else "none"
    return f"| {name} | {moved} | {token:.2g} | {once + ANSWER * token:,.0f} | {beside} |"


HEAD = """# What moves between ranks

Bytes that a rank receives, by the way a sharded model's parameters are gathered (`engine.plan` says
which was chosen and why). Made by `python docs/scale.py`; `make test-distributed` counts what gloo
is given on 2 and 4 processes and finds these figures to the byte.

With P bytes of parameters on n ranks, of which U lie around the layers (the last norm; a table that
embedding and head share), and T forwards in a rollout, one for the prompts and one for each token
but the last:

| | received by a rank |
|---|---|
| rollout, `all` at once | (n-1)/n P |
| rollout, `groups`, `prefetch` or `layer` | (n-1)/n (U + T (P - U)) |
| training step | (n-1)/n (3 P - U): P forward, P - U backward, P of gradients |
| before each forward that gathers, twice a rollout | 2 (n-1)/n 32: who comes, who has failed |
| a token of one row, tensor parallel of degree d | (d-1)/d (L (A + 2 H + I) b + 4 V) |

None but the last depends on how many rows there are. In that, the exact form of tensor parallelism,
each of L layers gathers activations of b bytes a number: the heads' results A, what the projection
back makes of them H, the MLP's inner ones I and its results H; the head gathers V logits in fp32.
A prompt's tokens but the last need no logits. What each rank was asked for is exchanged once a
rollout besides, some KB, and is not counted here.

A Llama of 2 layers of 64 (inner 96, heads 4/2, vocabulary 96, fp32), counted:
"""

LARGE_HEAD = """
## 70B on {gpus} GPUs

Assumed: {nodes} machines of {node} GPUs, each GPU with {room:.0f} GB that it reads at
{memory:.2f} TB/s, {link:.0f} GB/s to the others of its machine, {network:.0f} GB/s to other
machines, {latency:.0f} µs until a gather begins; nothing else takes time. Parameters in bf16:
{whole:.1f} GB, {layer:.2f} GB a layer, {shard:.1f} GB a shard of {gpus}. {rows} rows for each
tensor-parallel group. Nobody has run this: it is the formulas above, over those rates.
"""

TAIL = """
A rollout that gathers for each token waits for the network {slower:.0f} times as long as it would
read the weights, whatever the batch. All at once costs one such token a rollout, and has no room on
these GPUs. Sharding over a machine's GPUs and replicating over machines (a mesh of two dimensions)
keeps what a token gathers on the faster links. Tensor parallelism moves activations alone, but each
rank holds whole parameters and reads its part of them: it needs the room of `all`. A training step
receives {training:.0f} GB a rank, {seconds:.1f} s of the network, which a batch of {tokens:.2f}
million tokens hides at 0.4 of 989 TFLOP/s a GPU. A model of 8B (16 GB) is gathered at once in a
ninth of the time, and fits.
"""

if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
