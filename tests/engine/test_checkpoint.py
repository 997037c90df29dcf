"""Checkpoints: a training goes on bitwise, and whatever is torn or strange is refused by name."""

from pathlib import Path

import models
import pytest
import snapshots
import torch
from midway import IDS, MASK

import accel
from accel.errors import CheckpointError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT's
    pytest.mark.usefixtures("_one_thread"),
]


def plain(**config):
    return models.llama(**config)


def tied(**config):
    """With dropout, which draws from torch's generator."""
    return models.gpt2(resid_pdrop=0.1, attn_pdrop=0.1, **config)


def adapted(**config):
    """With frozen weights in the optimizer, and LoRA's dropout."""
    return models.with_lora(models.llama(**config))


def half(**config):
    return models.llama(**config).to(torch.bfloat16)


def engine_of(model, kind=torch.optim.AdamW, **settings):
    """Its learning rate and its weight decay are those of two groups."""
    learned = [*model.parameters()]
    groups = [{"params": learned[:3], "weight_decay": 0.0}, {"params": learned[3:]}]
    optimizer = kind(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    return accel.HybridEngine(model, optimizer, settings, schedule).train()


def train(engine, updates):
    """On what the engine itself has sampled, by a seed of its own making."""
    for _ in range(updates * engine.config.gradient_accumulation_steps):
        ids = engine.generate(IDS[:, -4:], MASK[:, -4:], max_new_tokens=2, do_sample=True)
        engine.backward(engine(ids, labels=ids).loss)
        engine.step()
    return engine


def whole(engine):
    """All that a training is."""
    run = engine._optimization
    return {
        "parameters": snapshots.parameters(engine.model),
        "optimizer": snapshots.bits(engine.optimizer.state_dict()),
        "masters": snapshots.bits(run.masters.of(dict(engine.model.named_parameters()))),
        "schedule": snapshots.bits(engine.lr_scheduler.state_dict()),
        "steps": engine.global_steps,
        "random": snapshots.bits(torch.get_rng_state()),
    }


CASES = [
    (plain, {}),
    (tied, {"gradient_accumulation_steps": 2}),
    (adapted, {}),
    (half, {"master_weights": True}),
    (half, {}),
]


@pytest.mark.parametrize(("model", "settings"), CASES)
def test_training_goes_on_as_without_interruption(tmp_path, model, settings):
    torch.manual_seed(1)
    engine = train(engine_of(model(), **settings), 3)
    before = snapshots.training_state(engine)
    path = engine.save_checkpoint(tmp_path, client_state={"epoch": 3, "seen": torch.arange(3)})
    assert snapshots.changed(before, snapshots.training_state(engine)) == []
    train(engine, 3)

    torch.manual_seed(7)
    other = train(engine_of(model(), **settings), 1)  # of which nothing may be left
    other.backward(other(IDS, MASK, labels=IDS).loss)
    found, client_state = other.load_checkpoint(tmp_path)
    assert found == path == tmp_path / "global_step3"
    assert client_state["epoch"] == 3
    assert torch.equal(client_state["seen"], torch.arange(3))
    assert other.global_steps == 3
    train(other, 3)
    assert snapshots.changed(whole(engine), whole(other)) == []


def test_a_checkpoint_from_before_the_first_step_counts_none(tmp_path):
    engine = engine_of(plain())
    engine.save_checkpoint(tmp_path)
    other = engine_of(plain(initializer_range=0.1))
    other.load_checkpoint(tmp_path)
    assert not other.optimizer.state
    assert snapshots.changed(whole(train(engine, 2)), whole(train(other, 2))) == []


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adafactor])
def test_whatever_an_optimizer_keeps_is_kept(tmp_path, kind):
    engine = train(engine_of(plain(), kind), 2)
    engine.save_checkpoint(tmp_path)
    other = engine_of(plain(), kind)
    other.load_checkpoint(tmp_path)
    assert snapshots.changed(whole(train(engine, 1)), whole(train(other, 1))) == []


def test_an_engine_without_an_optimizer_takes_the_model_alone(tmp_path):
    engine = train(engine_of(plain()), 1)
    engine.save_checkpoint(tmp_path)
    other = accel.HybridEngine(plain(initializer_range=0.1))
    other.load_checkpoint(tmp_path)
    assert torch.equal(other.logprobs(IDS, MASK), engine.logprobs(IDS, MASK))
    other.save_checkpoint(tmp_path, "bare")
    with pytest.raises(CheckpointError, match="saved without an optimizer, and the engine has one"):
        engine.load_checkpoint(tmp_path, "bare")


# -- refused -----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A folder with two checkpoints of a training, "first" and "second"."""
    engine = train(engine_of(plain()), 1)
    engine.save_checkpoint(tmp_path, "first")
    train(engine, 1).save_checkpoint(tmp_path, "second")
    return tmp_path


def refused(folder, engine, says, tag=None):
    """Loading says why not, and changes nothing."""
    before = snapshots.training_state(engine), whole(engine)
    with pytest.raises(CheckpointError, match=says):
        engine.load_checkpoint(folder, tag)
    assert snapshots.changed(before[0], snapshots.training_state(engine)) == []
    assert snapshots.changed(before[1], whole(engine)) == []


def test_gradients_that_wait_are_not_saved(tmp_path):
    engine = engine_of(plain(), gradient_accumulation_steps=2)
    engine.backward(engine(IDS, MASK, labels=IDS).loss)
    with pytest.raises(CheckpointError, match="gradients wait for their update"):
        engine.save_checkpoint(tmp_path)
    engine.zero_grad()
    engine.save_checkpoint(tmp_path)


def files_of(path):
    return [*sorted(path.glob("*.distcp")), path / ".metadata"]


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("torn", ["missing", "cut"])
def test_a_torn_checkpoint_is_refused(saved, torn, index):
    file = files_of(saved / "second")[index]
    if torn == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    engine = train(engine_of(plain()), 1)
    refused(saved, engine, rf"second is torn.*{file.name}")
    engine.load_checkpoint(saved, "first")


def test_a_file_whose_bytes_never_reached_the_disk_is_refused(saved):
    file = files_of(saved / "second")[0]
    file.write_bytes(bytes(file.stat().st_size))
    refused(saved, train(engine_of(plain()), 1), "second cannot be read")


KILLED = """
    import json, os, shutil, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import torch
    from torch.distributed.checkpoint import filesystem
    torch.set_num_threads(1)  # a forked process has no others
    from test_checkpoint import engine_of, plain, train, whole

    def small():
        return engine_of(plain(num_hidden_layers=1))

    kept, folder = Path(sys.argv[2], "kept"), Path(sys.argv[2], "folder")
    engine = train(small(), 1)
    engine.save_checkpoint(kept, "last")
    states = {1: whole(engine), 2: whole(train(engine, 1))}

    def save(call):
        calls = []
        def watched(owner, name):
            function = getattr(owner, name)
            def watch(*args, **kwargs):
                if len(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls.append(name)
                return function(*args, **kwargs)
            setattr(owner, name, watch)
        for name in ("fsync", "rename", "replace", "rmdir", "unlink"):
            watched(os, name)
        watched(filesystem, "_write_item")
        engine.save_checkpoint(folder, "last")
        return calls

    def saved_in_a_child(call):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.write(writing, json.dumps(save(call)).encode())
            os._exit(0)
        os.close(writing)
        assert os.waitpid(child, 0)[1] == (0 if call is None else signal.SIGKILL)
        return json.loads(os.read(reading, 1 << 20) or "null")

    def steps_found():
        other = small()
        other.load_checkpoint(folder)
        assert whole(other) == states[other.global_steps]
        return other.global_steps

    calls = saved_in_a_child(None)
    assert steps_found() == 2
    ends = []
    for call, name in enumerate(calls):
        if name != "_write_item" or call % 40 == 0:
            saved_in_a_child(call)
            ends.append(steps_found())
    engine.save_checkpoint(folder, "last")
    assert steps_found() == 2
    assert sorted(p.name for p in folder.iterdir()) == ["last", "latest"]
    print(*ends)
"""


def test_a_save_killed_anywhere_leaves_the_one_before_or_is_whole(fresh, tmp_path):
    done = fresh(KILLED, Path(__file__).parent, tmp_path, ACCEL_BACKEND="cpu")
    ends = [int(steps) for steps in done.stdout.split()]
    assert ends == sorted(ends)
    assert {*ends} == {1, 2}
    assert len(ends) > 10


STRANGERS = [
    (lambda: engine_of(plain(vocab_size=96)), r"embed_tokens.weight is saved as float32\[97, 64\]"),
    (lambda: engine_of(half()), r"float32\[97, 64\]; the model's is bfloat16\[97, 64\]"),
    (lambda: engine_of(plain(num_hidden_layers=1)), r"model.layers.1.\S+ is saved, and the model"),
    (lambda: engine_of(plain(num_hidden_layers=3)), r"model.layers.2.\S+ is not saved, and the mo"),
    (lambda: engine_of(plain(), torch.optim.SGD), "optimizer was AdamW; the engine's is SGD"),
    (lambda: engine_of(plain(), master_weights=True), "master_weights was False; the engine's is"),
    (lambda: fewer(engine_of(plain())), r"only saved \['lm_head.weight'\], only here \[\]"),
]


def fewer(engine):
    engine.optimizer.param_groups[1]["params"].pop()
    return engine


@pytest.mark.parametrize(
    ("other", "says"), STRANGERS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_differs_is_said_before_anything_changes(saved, other, says):
    refused(saved, other(), says)


def test_an_unknown_tag_and_an_empty_folder_are_refused(saved, tmp_path):
    engine = engine_of(plain())
    refused(saved, engine, "no checkpoint 'secnd'; did you mean 'second'", "secnd")
    refused(tmp_path / "nothing", engine, "no file 'latest': nothing was saved there")
    for tag in (".first", "a/b", "latest"):
        with pytest.raises(CheckpointError, match="a tag is the name of a folder"):
            engine.save_checkpoint(saved, tag)


def test_a_stranger_in_the_optimizer_has_no_name(tmp_path):
    engine = engine_of(plain())
    engine.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    with pytest.raises(CheckpointError, match="1 tensors that are no parameters of the model"):
        engine.save_checkpoint(tmp_path)
