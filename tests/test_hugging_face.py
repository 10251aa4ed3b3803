"""Hugging Face folders: read and written as by `transformers`; what does not fit is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import CLASSES, GOLDEN, change_config, same
from safetensors.numpy import load_file, save_file

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.tokenizer import load_tokenizer, wordpiece_tokenizer
from bert_jax.families import encoder
from bert_jax.families.bert_names import NAMES
from bert_jax.models.body import Body
from bert_jax.models.encoder import Encoder, padding_mask
from bert_jax.models.heads import Classifier, MlmHead, Pooler
from bert_jax.models.layers import apply
from bert_jax.weights import hugging_face
from bert_jax.weights.opening import open_model


@pytest.fixture
def folder(tmp_path):
    """A copy of a Hugging Face folder, to be changed."""
    return shutil.copytree(GOLDEN / "pretraining", tmp_path / "model")


def change_arrays(folder: Path, change) -> None:
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


# Parity with a second implementation.


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_equal_transformers(name):
    model = open_model(GOLDEN / name)
    with np.load(GOLDEN / name / "expected.npz") as file:
        gold = dict(file)
    config = encoder.backbone(model.model, model.tokenizer.vocab_size, "float32")
    batch = {key: gold.pop(key) for key in ("tokens", "segments", "lengths")}
    width = batch["tokens"].shape[-1]
    flat = {
        key: jnp.asarray(value.reshape(-1, width))
        for key, value in batch.items()
        if key != "lengths"
    }
    lengths = batch["lengths"].reshape(-1)
    mask = padding_mask(jnp.asarray(lengths), width)
    params = model.params
    ours = {
        "hidden": apply(
            Encoder(config), params["encoder"], flat["tokens"], flat["segments"], mask,
            every_layer=True,
        )
    }  # fmt: skip
    last = ours["hidden"][-1]
    if "pooler" in params:
        ours["pooler_output"] = pooled = apply(Pooler(config), params["pooler"], last)
    if "mlm_head" in params:
        table = params["encoder"]["embeddings"]["token"]
        ours["prediction_logits"] = apply(MlmHead(config), params["mlm_head"], last, table)
        nsp = apply(Classifier(config, 2), params["nsp_head"], pooled)
        ours["seq_relationship_logits"] = nsp
        gold["prediction_logits"] = gold["prediction_logits"][..., : config.vocab_size]
    if model.task:
        objective = tasks.from_dict(model.task).objective(Body(config))
        predicted = objective.predict(params, jax.tree.map(jnp.asarray, batch))
        names = {"start": "start_logits", "end": "end_logits"}
        ours |= {names.get(key, key): value for key, value in predicted.items()}
    real = np.arange(width) < lengths[:, None]
    for key, expected in gold.items():
        difference = np.abs(np.asarray(ours[key]) - expected)
        if difference.ndim >= 2 and difference.shape[-1] == width:
            difference = difference[real]
        elif difference.ndim >= 3:
            difference = difference[..., real, :]
        assert difference.max() < 1e-5, key


@pytest.mark.parametrize("name", CLASSES)
def test_written_is_what_transformers_wrote(name, tmp_path):
    """The same names and the same bits in model.safetensors; the same meaning in config.json."""
    hugging_face.write(tmp_path / "out", open_model(GOLDEN / name))
    theirs = load_file(GOLDEN / name / "model.safetensors")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((GOLDEN / name / "config.json").read_text())
    if name == "pretraining":  # the one of old names, copies and rows without a token
        for extra in ("cls.predictions.decoder.weight", "bert.embeddings.position_ids"):
            del theirs[extra]
        renamed = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
        for old, new in renamed.items():
            theirs = {key.replace(old, new): value for key, value in theirs.items()}
        for cut in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
            theirs[cut] = theirs[cut][:34]
        original["vocab_size"] = 34
    assert same(ours, theirs)
    if name == "classification":
        assert config.pop("problem_type") == "single_label_classification"
    assert config == {key: original[key] for key in config}
    assert same(open_model(tmp_path / "out").params, open_model(GOLDEN / name).params)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_max_length"] == 12


def test_what_was_cut_and_what_has_no_use_is_told(folder):
    (cut,) = open_model(folder).notes
    assert cut == "cut: the last 3 of 37 embeddings, which no token has"

    def add(arrays):
        arrays["bert.encoder.layer.2.output.dense.bias"] = np.ones(16, np.float32)
        arrays["scale"] = np.ones(1, np.float32)

    change_arrays(folder, add)
    assert open_model(folder).notes[1] == (
        "not used: bert.encoder.layer.2.output.dense.bias, scale"
    )


def test_several_files_and_half_precision(folder):
    whole = open_model(folder).params
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: arrays[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(open_model(folder).params, whole)
    for file, chosen in parts.items():
        save_file({name: arrays[name].astype(np.float16) for name in chosen}, folder / file)
    half = open_model(folder).params
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}
    assert same(half, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), whole))
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors cannot be read"):
        open_model(folder)
    outside = ("../a.safetensors", str(folder / "a.safetensors"), "x/a.safetensors", "a.bin", "a\0")
    broken_ones = [{}, *({"weight_map": value} for value in (["a.safetensors"], {"scale": 1}))]
    for broken in [*broken_ones, *({"weight_map": {"scale": name}} for name in outside)]:
        (folder / "model.safetensors.index.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"safetensors\.index\.json: .*weight_map"):
            open_model(folder)


def test_the_class_follows_from_the_parts():
    expected = {
        "BertForPreTraining": "mlm_head nsp_head pooler",
        "BertForMaskedLM": "mlm_head",
        "BertForNextSentencePrediction": "nsp_head pooler",
        "BertModel": "",
        "BertForSequenceClassification": "classifier pooler mlm_head",
        "BertForTokenClassification": "tag_head pooler",
        "BertForQuestionAnswering": "span_head",
        "BertForMultipleChoice": "choice_head pooler nsp_head",
    }
    for name, parts in expected.items():
        params = {part: {} for part in ["encoder", *parts.split()]}
        assert hugging_face.architecture_of(NAMES, params)[0] == name


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, r"config.json: not supported: model_type=roberta \(only bert"),
        ({"architectures": ["BertLMHeadModel"]}, "architecture BertLMHeadModel .known: BertForSeq"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_act": "silu"}, "hidden_act=silu is not supported; known: gelu, "),
        ({"hidden_size": 20}, r"word_embeddings.weight: \(37, 16\), expected \(37, 20\)"),
        ({"num_hidden_layers": 3}, "16 arrays do not fit: bert.encoder.layer.2.* absent, exp"),
        ({"vocab_size": 40}, r"word_embeddings.weight: \(37, 16\), expected \(40, 16\)"),
        ({"num_attention_heads": 3}, "does not divide by"),
        ({"hidden_size": "16"}, "model: the config has hidden_size='16'; sizes must be whole num"),
        ({"num_attention_heads": 0, "layer_norm_eps": None}, "attention_heads=0, layer_norm_eps=N"),
        ({"id2label": {"PER": "0"}}, r"model: id2label .* must name .*; it is {'PER': '0'}$"),
        ({"id2label": ["O", "PER"]}, r"model: id2label .* must name .*; it is \['O', 'PER'\]$"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_a_config_of_something_else_is_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        open_model(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"tokenizer_class": "BertJapaneseTokenizer"}, {"word_tokenizer_type": "mecab"},
        {"do_basic_tokenize": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_tokenizer_that_vocab_txt_does_not_tell_is_refused(folder, setting):
    settings = {"tokenizer_class": "BertTokenizer", "strip_accents": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | setting))
    with pytest.raises(UserError, match=rf"the tokenizer has {next(iter(setting))}="):
        open_model(folder)
    load_tokenizer(folder).save(folder)
    assert (folder / "tokenizer.json").exists() and open_model(folder)  # it tells all


def test_arrays_that_do_not_fit_are_refused(folder):
    def change(arrays):
        del arrays["bert.pooler.dense.bias"]
        arrays["cls.seq_relationship.weight"] = np.zeros((2, 15), np.float32)

    change_arrays(folder, change)
    with pytest.raises(UserError, match=r"2 arrays .*pooler.dense.bias: absent.*\(2, 15\), exp"):
        open_model(folder)


def test_an_output_layer_of_its_own_is_refused(folder):
    def change(arrays):
        arrays["cls.predictions.decoder.weight"][3, 3] += 1

    change_arrays(folder, change)
    with pytest.raises(UserError, match=r"decoder.weight differs from bert.embeddings.word_"):
        open_model(folder)


def test_pickles_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin;.*runs.*import BertForPreTr"):
        open_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors$"):
        open_model(folder)


def test_damaged_files_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        open_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json:1: not JSON"):
        open_model(folder)


def test_what_transformers_cannot_be_is_refused(tmp_path):
    model = open_model(GOLDEN / "encoder")
    wide = dataclasses.replace(model, model={**model.model, "head_width": 8})
    with pytest.raises(UserError, match="heads x head_width = 32 is not width = 16"):
        hugging_face.write(tmp_path / "out", wide)
    recurrent = dataclasses.replace(model, params={**model.params, "bilstm": {}})
    with pytest.raises(UserError, match="has no BERT with bilstm"):
        hugging_face.write(tmp_path / "out", recurrent)


# Cased or not, and how many.


def test_a_case_that_contradicts_is_refused(folder):
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"do_lower_case": false}')
    with pytest.raises(UserError, match=r"do_lower_case\): cased, the tokenizer: uncased, the voc"):
        open_model(folder)
    lines = (folder / "vocab.txt").read_text().replace("she", "She")
    (folder / "vocab.txt").write_text(lines)
    assert open_model(folder).tokenizer.encode("She") == [30 - 1]
    settings.write_text('{"do_lower_case": true}')
    with pytest.raises(UserError, match=r"do_lower_case\): uncased, .*the vocabulary: cased"):
        open_model(folder)
    settings.unlink()
    tokens = lines.split()
    wordpiece_tokenizer(tokens, lowercase=True).save(folder)  # with a tokenizer.json
    with pytest.raises(UserError, match="the tokenizer: uncased, the vocabulary: cased"):
        open_model(folder)


def test_more_tokens_than_embeddings_are_refused(folder):
    with (folder / "vocab.txt").open("a") as file:
        file.write("x\ny\nz\nw\n")
    with pytest.raises(UserError, match="38 tokens in the vocabulary, but 37 embeddings"):
        open_model(folder)
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(UserError, match=r"added_tokens.json but no tokenizer.json"):
        open_model(folder)
