"""docs/scale.md's formulas are the bytes that gloo is given."""

import runpy
from pathlib import Path

import models
import pytest
import torch
import torch.distributed as dist
from joining import joined
from test_sharded_rollouts import GATHERED
from torch.utils._python_dispatch import TorchDispatchMode

import accel

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCALE = runpy.run_path(str(Path(__file__).parents[2] / "docs/scale.py"))
# An operation's argument that is as large as what it makes or takes on all ranks together.
LARGER = {"_allgather_base_": 0, "_reduce_scatter_base_": 1}


class Counter(TorchDispatchMode):
    """Bytes of tensors that this rank receives; not what is pickled, for ``allgather_``."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "c10d":
            name, ranks = op.overloadpacket.__name__, dist.get_world_size()
            if name in LARGER:
                moved = SCALE["gathered"](args[LARGER[name]].nbytes, ranks)
            elif name == "allgather_":
                moved = 0
            else:
                assert name == "allreduce_", f"{name} is not counted"
                moved = SCALE["reduced"](sum(t.nbytes for t in args[0]), ranks)
            self.bytes += moved
        return op(*args, **(kwargs or {}))


def small():
    return models.llama(vocab_size=SCALE["SMALL"].vocab)


def work(rank, port, folder, world):
    with joined(rank, port, world):
        found = {}
        ids = torch.tensor([[5, 6, 7]]) + rank
        assert ids.shape[1] == SCALE["PROMPT"]
        for how, settings in GATHERED.items():
            engine = accel.HybridEngine(small(), config={**settings, "shard": True}).train()
            with Counter() as counter:
                engine.generate(ids.expand(1 + rank, -1), max_new_tokens=SCALE["TOKENS"])
            assert engine.plan.gathering.policy == how
            found[how] = counter.bytes
        with Counter() as counter:
            engine.backward(engine(ids, labels=ids).loss)
        found["step"] = counter.bytes
        engine = accel.HybridEngine(small(), config={"inference_tp_size": world})
        with Counter() as counter:
            engine.generate(ids, max_new_tokens=SCALE["TOKENS"])
        found["shared"] = counter.bytes
        torch.save(found, folder / str(rank))


@pytest.mark.parametrize("world", [2, 4])
def test_what_ranks_receive_is_what_the_page_says(in_processes, world):
    folder = in_processes(work, world, world)
    model = SCALE["SMALL"]
    want = {how: SCALE["rollout"](model, world, how, SCALE["TOKENS"]) for how in GATHERED}
    want["step"] = SCALE["step"](model, world)
    tokens = SCALE["PROMPT"] + SCALE["TOKENS"] - 1  # of each of `world` rows
    want["shared"] = SCALE["shared"](model, world, world * tokens, world * SCALE["TOKENS"])
    for rank in range(world):
        assert torch.load(folder / str(rank)) == want
