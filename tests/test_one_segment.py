"""A model with one segment type: both texts of a pair are in it, wherever segments are made."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from golden_models import GOLDEN
from tiny_tasks import make_config, settings, write_answering, write_choice

from bert_jax import finetune
from bert_jax.inference.loading import Model
from bert_jax.weights import hugging_face
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import save_model

PAIRS = [("she sat", "the cat"), "she sat"]


def with_segments(model, count: int):
    """The model with `count` segment types, each like the first one of it."""
    embeddings = model.params["encoder"]["embeddings"]
    tables = {
        "segment": np.repeat(embeddings["segment"][:1], count, axis=0),
        "position": np.resize(embeddings["position"], (64, embeddings["position"].shape[1])),
    }
    encoder = {**model.params["encoder"], "embeddings": {**embeddings, **tables}}
    sizes = {**model.model, "segment_types": count, "max_positions": 64}
    return dataclasses.replace(model, model=sizes, params={**model.params, "encoder": encoder})


@pytest.fixture(scope="module")
def one():
    return with_segments(open_model(GOLDEN / "choice"), 1)


def states(model):
    encoder = model.body("float32").backbone
    return Model(encoder, model.params, model.tokenizer).hidden_states(PAIRS)


def test_both_texts_are_of_the_one_segment_and_this_is_said_once(one, capsys):
    for ours, expected in zip(states(one), states(with_segments(one, 2)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert (
        capsys.readouterr().err.count("the model has one segment type: both texts of a pair") == 1
    )
    model = Model(one.body("float32").backbone, one.params, one.tokenizer)
    model.embed(["she sat"])
    assert "segment" not in capsys.readouterr().err
    for _ in range(2):
        model.embed(PAIRS)
    assert capsys.readouterr().err.count("one segment type") == 1


def test_what_is_exported_can_be_run_elsewhere(one, tmp_path):
    hugging_face.write(tmp_path / "out", dataclasses.replace(one, tuning={"max_length": 7}))
    config, settings = (
        json.loads((tmp_path / "out" / name).read_text())
        for name in ("config.json", "tokenizer_config.json")
    )
    assert config["type_vocab_size"] == 1
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    pair = tokenizer.encode(*PAIRS[0])
    assert set(pair.type_ids) == {0}  # another would be a row that is not there
    assert [pair.ids.count(i) for i in (one.tokenizer.cls_id, one.tokenizer.sep_id)] == [1, 2]
    again = open_model(tmp_path / "out")
    assert again.model["segment_types"] == 1
    for ours, theirs in zip(states(one), states(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Texts are cut where they were cut in fine-tuning, by us and by transformers.
    assert settings["model_max_length"] == again.max_length == 7
    hugging_face.write(tmp_path / "plain", dataclasses.replace(again, task=None))
    settings = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == one.model["max_positions"]


@pytest.mark.parametrize("family", ["classification", "answering", "choice"])
def test_fine_tuning_on_pairs_says_so(family, tmp_path, capsys):
    start = with_segments(open_model(GOLDEN / "encoder"), 1)
    save_model(tmp_path / "start", start)
    changes = {"max_length": 64}
    if family == "classification":
        for split in ("train", "dev"):
            (tmp_path / f"{split}.tsv").write_text("text\tother\tlabel\na\tb\tx\nc\td\ty\n")
        changes["custom__pair"] = "other"
    else:
        for split in ("train", "dev"):
            {"answering": write_answering, "choice": write_choice}[family](tmp_path, 9, 3, split)
        changes |= settings(tmp_path, family)
    config = make_config(
        tmp_path / "start", f"task=custom,family={family}", **changes | {"data": str(tmp_path)}
    )
    inputs = finetune.read_inputs(config)
    assert inputs.backbone.segment_types == 1
    assert (
        capsys.readouterr().err.count("has one segment type: both texts of a pair are in it") == 1
    )
