"""What two ranks do together beside rolling out: one function each, which gives what a rank saw."""

import copy
import pickle
from datetime import timedelta

import pytest
import sharing
import torch
import torch.distributed as dist
from measures import seeded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import accel
from accel.deepspeed import DeepSpeedHybridEngine
from accel.engine.parallel import ranks


def engine_of(name="odd llama fp32", **config):
    return accel.HybridEngine(sharing.made(name), config={"inference_tp_size": 2, **config})


def without_prompts(rank):
    """One has none, and says so in either way."""
    engine, ids = engine_of(), sharing.prompts(0)[0]
    given = (ids, torch.empty(0, 3, dtype=torch.int64)) if rank else (None, ids)
    return [engine.generate(x, return_logprobs=True, **sharing.SAMPLED) for x in given]


def the_same_prompt(rank):
    """Which stands once among the prompts of each: two samples, as if one had asked for both."""
    ids = seeded((1, 5))
    roll = engine_of().generate(ids, return_logprobs=True, **sharing.SAMPLED)
    numbered = engine_of().generate(ids, sample_ids=[4 + rank], **sharing.SAMPLED)
    return roll, numbered


def of_a_chosen_group(rank):
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    ids, mask = sharing.prompts(rank)
    engine = engine_of(inference_tp_group=mesh["tensor"])
    return engine.generate(ids, mask, **sharing.SAMPLED)


class Mpu:
    """As Megatron's, of one group."""

    def get_model_parallel_group(self):
        return dist.group.WORLD


def under_deepspeeds_names(rank):
    asked = {**sharing.SAMPLED, "return_logprobs": True}
    config = {"hybrid_engine": {"enabled": True, "inference_tp_size": 2}}
    found = []
    for mpu in (None, Mpu()):
        model = sharing.made("odd llama fp32")
        engine = DeepSpeedHybridEngine(None, model, mpu=mpu, config=config)
        found.append(engine.generate(*sharing.prompts(rank), **asked))
        found.append(engine.generate(*sharing.prompts(rank), **{**asked, "seed": None}).seed)
    return found


def without_seeds(rank):
    """The first rank's serves; torch's own is not drawn from."""
    engine = engine_of()
    torch.manual_seed(rank)
    before = torch.get_rng_state()
    asked = {**sharing.SAMPLED, "seed": None, "return_logprobs": True}
    roll = engine.generate(*sharing.prompts(rank), **asked)
    assert torch.equal(torch.get_rng_state(), before)
    return roll


def stopped(rank):
    """By one of them, after as many looks."""
    looks = iter([False, False, False, True])
    asked = {"abort": lambda: next(looks)} if rank else {}
    return engine_of().generate(
        *sharing.prompts(rank), return_logprobs=True, max_new_tokens=8, **asked
    )


def copied(rank):
    """A copy, one from a file, and one restored and taken up again, generate as the first."""
    engine = engine_of()
    others = [copy.deepcopy(engine.model), pickle.loads(pickle.dumps(engine.model))]
    accel.restore(engine.model)
    accel.hybridize(engine.model, engine.config)
    given = sharing.prompts(rank)
    found = [m.generate(*given, **sharing.SAMPLED) for m in (engine.model, *others)]
    return [torch.equal(found[0], other) for other in found[1:]], found[0]


def in_training(rank):
    """Steps between rollouts; each rank trains the whole model."""
    model = sharing.made("odd llama fp32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine = accel.HybridEngine(model, optimizer, {"inference_tp_size": 2})
    found, data = [], seeded((2, 8), seed=9)
    for _ in range(2):
        engine.backward(engine(data, labels=data).loss)
        engine.step()
        roll = engine.generate(*sharing.prompts(rank), return_logprobs=True, **sharing.GREEDY)
        scored = engine.logprobs(roll.sequences, roll.attention_mask).detach()
        found.append((roll.logprobs, scored[:, -sharing.NEW :]))
    return found, engine.stats()["generate"]["tokens"]


def sharded(rank):
    """Parameters lie on both; what is gathered for a layer is split as whole ones are."""
    model = sharing.made("odd llama fp32")
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    engine = accel.HybridEngine(model, config={"inference_tp_size": 2})
    roll = engine.generate(*sharing.prompts(rank), return_logprobs=True, **sharing.SAMPLED)
    return roll, engine.logprobs(roll.sequences, roll.attention_mask).detach()


def summed(rank):
    config = {"exact": False, "inference_tp_sums": True}
    names = ("odd llama fp32", "odd gpt2 fp32", "opt with Chat fp32", "mixtral fp32")
    asked = {"do_sample": False, "seed": None, "eos_token_id": None}
    return {name: sharing.rolled(name, rank, 2, config, **asked) for name in names}


def spoken(rank):
    """How often ranks speak in a rollout, what the cache takes, and what the plan says."""
    counted = {}
    for sums in (False, True):
        engine = engine_of(inference_tp_sums=sums, exact=not sums)
        calls = []
        with pytest.MonkeyPatch.context() as patch:
            for name, target in (("_gather", ranks), ("all_reduce", dist)):
                kept = getattr(target, name)
                patch.setattr(target, name, counting(kept, calls))
            engine.generate(*sharing.prompts(rank), **sharing.GREEDY)
        kept = engine.plan.model.generate.cache.bytes
        counted[sums] = len(calls), str(engine.plan), kept
    return counted


def counting(function, calls):
    def called(*args, **kwargs):
        calls.append(function)
        return function(*args, **kwargs)

    return called


def watched(rank):
    """Hooks on any module see what they see alone: whole results."""
    seen = {}
    for name in ("odd llama fp32", "gpt2 with PEFT fp32", "mixtral fp32"):
        seen[name] = seen_by_hooks(engine_of(name), *sharing.prompts(rank))
    return seen


def seen_by_hooks(engine, ids, mask):
    shapes = {}

    def look(path):
        def hook(module, given, result):
            if isinstance(result, torch.Tensor):
                shapes.setdefault(path, set()).add(tuple(result.shape[-1:]))

        return hook

    for path, module in engine.model.named_modules():
        module.register_forward_hook(look(path))
    return engine.generate(ids, mask, **sharing.SAMPLED), shapes


# -- what goes wrong ---------------------------------------------------------------------------


def said(work):
    """The error, as its class's name and what it says."""
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def asked_for_something_else(rank):
    """Nothing is begun, and the ranks may go on."""
    engine, ids = engine_of(), sharing.prompts(0)[0]
    asked = [{"max_new_tokens": 3 + rank}, {"seed": 1 + rank}, {"adapter": None} if rank else {}]
    asked += [{"sample_ids": [1, 2]} if rank else {}, {"top_k": 5} if rank else {"top_k": 6}]
    errors = [said(lambda a=a: engine.generate(ids, **{**sharing.SAMPLED, **a})) for a in asked]
    return errors, engine.generate(*sharing.prompts(rank), **sharing.SAMPLED)


def one_cannot(rank):
    """What it was given is refused, as it would be alone; the others hear of it."""
    engine, ids = engine_of(), sharing.prompts(0)[0]
    given = [(ids, torch.zeros_like(ids)), (ids[0], None), (ids.float(), None)]
    errors = [said(lambda g=g: engine.generate(*(g if rank else (ids,)), max_new_tokens=2))
              for g in given]  # fmt: skip
    errors.append(said(lambda: engine.generate(ids[:0], max_new_tokens=2)))
    return errors, engine.generate(*sharing.prompts(rank), **sharing.SAMPLED)


def not_shared(rank):
    engine, ids = engine_of(), sharing.prompts(0)[0]
    asked = {
        "inputs_embeds": torch.ones(1, 2, 96), "reuse_prefix": True, "max_time": 3.0,
        "logits_processor": [print], "streamer": print,
    }  # fmt: skip
    return {n: said(lambda n=n, a=a: engine.generate(ids, **{n: a})) for n, a in asked.items()}


def an_adapter_on_one(rank):
    engine = engine_of("llama with PEFT fp32" if rank else "llama fp32")
    return said(lambda: engine.generate(sharing.prompts(0)[0], **sharing.SAMPLED))


def one_raises(rank):
    """In the middle of a forward; the other waits, and is told when the group's time is over."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=4))
    engine, forwards = engine_of(inference_tp_group=group), []
    before = {name: p.clone() for name, p in engine.model.named_parameters()}

    def hook(module, given):
        forwards.append(module)
        if rank and len(forwards) == 3:
            raise ValueError("of one rank alone")

    engine.model.model.layers[1].register_forward_pre_hook(hook)
    error = said(lambda: engine.generate(*sharing.prompts(rank), **sharing.GREEDY))
    same = all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())
    ids = seeded((1, 4))
    return error, len(forwards), same, engine.logprobs(ids), engine.plan.model.generate.cache.bytes


OTHERS = [
    under_deepspeeds_names, without_prompts, the_same_prompt, of_a_chosen_group, without_seeds,
    stopped, copied, in_training, sharded, summed, spoken, watched, asked_for_something_else,
    one_cannot, not_shared, an_adapter_on_one, one_raises,
]  # fmt: skip
