"""TF1 releases that we write: read again to the bit, by TensorFlow too; what cannot be is told."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from data_packs import pack
from golden_models import GOLDEN, same

from bert_jax.common.errors import UserError
from bert_jax.data.tokenizer import Tokenizer, wordpiece_tokenizer
from bert_jax.weights import tf1
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import add_tokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = ["pretraining", "encoder", "classification", "answering"]


def golden(name: str, **changes):
    """A golden model with the epsilon that TF1 has."""
    model = open_model(GOLDEN / name)
    return dataclasses.replace(model, model={**model.model, "norm_epsilon": 1e-12, **changes})


def with_vocabulary(tokenizer: Tokenizer):
    """A model of as many tokens."""
    model = golden("encoder")
    embeddings = model.params["encoder"]["embeddings"]
    table = np.resize(embeddings["token"], (tokenizer.vocab_size, 16))
    encoder = {**model.params["encoder"], "embeddings": {**embeddings, "token": table}}
    return dataclasses.replace(
        model, params={**model.params, "encoder": encoder}, tokenizer=tokenizer
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_to_the_bit(name, tmp_path):
    model = golden(name)
    notes = tf1.write(tmp_path / "out", model)
    again = open_model(tmp_path / "out")
    assert same(again.params, model.params)
    assert again.tokenizer.tokens == model.tokenizer.tokens
    rest = {key: value for key, value in model.model.items() if key != "norm_epsilon"}
    assert again.model == {**rest, "activation": "gelu"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "bert_config.json", "vocab.txt", "checkpoint", "bert_model.ckpt.index",
        "bert_model.ckpt.data-00000-of-00001",
    }  # fmt: skip
    told = "tanh, written as gelu, which is erf in its code of 2018"
    if name != "pretraining":
        told = "erf, written as gelu, which is tanh in its code since 2019-02-07"
    assert notes[:2] == ["written for google-research/bert", f"activation: {told}"]
    more = {"classification": ["names of the classes, not written: O, B-PER, I-PER"]}
    more["answering"] = ["no pooler: its BertModel makes one of random values"]
    assert notes[2:] == more.get(name, [])
    config = json.loads((tmp_path / "out" / "bert_config.json").read_text())
    assert config["hidden_act"] == "gelu" and "layer_norm_eps" not in config


def test_variables_have_the_names_and_layouts_of_modeling_py(tmp_path):
    model = golden("pretraining")
    tf1.write(tmp_path / "out", model)
    read = tf1.read_bundle(tmp_path / "out" / "bert_model.ckpt.index", lambda name: True)
    block, sizes = "bert/encoder/layer_1/", {name: array.shape for name, array in read.items()}
    assert list(read) == sorted(read) and len(read) == 5 + 2 * 16 + 2 + 5 + 2
    assert sizes["bert/embeddings/word_embeddings"] == (34, 16)
    assert sizes[f"{block}intermediate/dense/kernel"] == (16, 24)  # [in, out]
    assert sizes[f"{block}output/LayerNorm/gamma"] == (16,)
    assert sizes["cls/predictions/output_bias"] == (34,)
    assert sizes["cls/seq_relationship/output_weights"] == (2, 16)  # [classes, D]
    query = model.params["encoder"]["layer_1"]["attention"]["query"]
    assert np.array_equal(
        read[f"{block}attention/self/query/kernel"], query["kernel"].reshape(16, 16)
    )
    assert np.array_equal(read[f"{block}attention/self/query/bias"], query["bias"].reshape(16))
    for name, head in (("classification", ""), ("answering", "cls/squad/")):
        tf1.write(tmp_path / name, golden(name))
        index = tmp_path / name / "bert_model.ckpt.index"
        read = tf1.read_bundle(index, lambda name: not name.startswith("bert/"))
        assert set(read) == {f"{head}output_weights", f"{head}output_bias"}


def test_a_damaged_byte_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"layer_{number}/kernel": rng.normal(size=(2, 3)) for number in range(40)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays |= {"scalar": np.float32(3).reshape(()), "none": np.zeros((0, 200), np.float32)}
    tf1.write_bundle(tmp_path / "m.ckpt", arrays)
    index = tmp_path / "m.ckpt.index"
    assert same(tf1.read_bundle(index, lambda name: True), arrays)
    for path, places in ((index, (0, 1, 500)), (next(tmp_path.glob("*.data-*")), (0, 500))):
        good = path.read_bytes()
        for place in places:
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(
                UserError, match=r"wrong checksum of the block|checksum of layer_\d"
            ):
                tf1.read_bundle(index, lambda name: True)
        path.write_bytes(good)


def test_the_index_has_the_bytes_of_tensorflows_own(tmp_path):
    folder = pack("vocab_and_samples") / "tiny_tf1_ckpt"
    index = folder / "bert_model.ckpt.index"
    rows = dict(tf1._table(index.read_bytes()))
    assert tf1._write_table(rows) == index.read_bytes()
    for name, array in tf1.read_bundle(index, lambda name: name != "global_step").items():
        offset = tf1._message(rows[name.encode()]).get(4, [0])[0]
        assert tf1._entry(array.shape, offset, array.tobytes()) == rows[name.encode()]
    model = open_model(folder)
    tf1.write(tmp_path / "out", model)
    again = open_model(tmp_path / "out")
    assert same(again.params, model.params) and again.model == model.model
    assert again.tokenizer.tokens == model.tokenizer.tokens


@pytest.mark.parametrize("name", NAMES)
def test_tensorflow_reads_every_variable(name, tmp_path):
    tensorflow = pytest.importorskip(
        "tensorflow", reason="needs TensorFlow: pip install tensorflow-cpu"
    )
    tf1.write(tmp_path / "out", golden(name))
    ours = tf1.read_bundle(tmp_path / "out" / "bert_model.ckpt.index", lambda name: True)
    reader = tensorflow.train.load_checkpoint(str(tmp_path / "out"))  # by the file `checkpoint`
    assert set(reader.get_variable_to_shape_map()) == set(ours)
    for variable, array in ours.items():
        theirs = reader.get_tensor(variable)
        assert theirs.dtype == np.float32 and np.array_equal(theirs, array)


def test_what_its_programs_must_be_told(tmp_path):
    cased = with_vocabulary(wordpiece_tokenizer([*SPECIAL, "The", "the", "한"]))
    assert tf1.write(tmp_path / "cased", cased)[-1] == (
        "cased: its programs need --do_lower_case=False"
    )
    korean = with_vocabulary(wordpiece_tokenizer([*SPECIAL, "the", "한", "##국"]))
    assert "its tokenizer takes them apart" in tf1.write(tmp_path / "korean", korean)[-1]
    row = {"family": "answering", "unanswerable": True, "threshold": -1.25}
    answering = dataclasses.replace(golden("answering"), task=row)
    notes = tf1.write(tmp_path / "answering", answering)
    assert notes[-1] == "for run_squad.py: --null_score_diff_threshold=-1.25"
    relu = golden("encoder", activation="relu")
    assert tf1.write(tmp_path / "relu", relu) == ["written for google-research/bert"]
    assert open_model(tmp_path / "relu").model["activation"] == "relu"


def other_tokenizers():
    """Tokenizers that a vocab.txt does not tell, and what is said."""
    tokens = open_model(GOLDEN / "encoder").tokenizer.tokens
    pieces = [(token, -1.0) for token in SPECIAL]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 1, False))
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    yield Tokenizer(unigram), "a unigram tokenizer cannot be written as a vocab.txt"
    cased = wordpiece_tokenizer(tokens, lowercase=False)
    yield cased, "does not say how the tokenizer splits text, as '"
    spaced = wordpiece_tokenizer([*tokens, "zzz\u2028"])
    yield spaced, r"cannot hold these tokens: 'zzz\\u2028'"


def test_what_tf1_cannot_say_is_refused(tmp_path):
    encoder, tagging, choice = golden("encoder"), golden("tagging"), golden("choice")
    labels = dataclasses.replace(golden("classification"), task={"kind": "multi"})
    refused = [
        (golden("encoder", causal=True), "left-to-right model is not a BERT of google-research"),
        (golden("encoder", norm_epsilon=1e-6), "norm_epsilon=1e-06 is not that of google-research"),
        (golden("encoder", head_width=8), "heads x head_width = 32 is not width = 16"),
        (tagging, "google-research/bert has no names for tag_head"),
        (choice, "google-research/bert has no names for choice_head"),
        (labels, "one of several classes, not kind=multi"),
        (add_tokens(encoder, ["zika"]), "does not say that these match whole words: zika"),
        *((with_vocabulary(tokenizer), said) for tokenizer, said in other_tokenizers()),
    ]
    for model, message in refused:
        with pytest.raises(UserError, match=message):
            tf1.write(tmp_path / "out", model)
        assert list(tmp_path.iterdir()) == []
