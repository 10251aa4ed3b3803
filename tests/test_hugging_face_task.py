"""Tasks in Hugging Face configs: what transformers says of one, and all of one of ours."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from golden_models import CLASSES, GOLDEN, change_config
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.weights import hugging_face
from bert_jax.weights.opening import open_model


def test_labels_and_kinds_of_published_models(tmp_path):
    assert open_model(GOLDEN / "encoder").task is None
    assert open_model(GOLDEN / "tagging").task["labels"] == ("O", "B-PER", "I-PER")
    folder = shutil.copytree(GOLDEN / "classification", tmp_path / "model")
    kinds = {"regression": "numbers", "multi_label_classification": "multi", None: "single"}
    for theirs, ours in kinds.items():
        change_config(folder, problem_type=theirs)
        task = open_model(folder).task
        assert task["kind"] == ours
        assert task["texts"] == ()  # of one text or of pairs: the files do not say
        out = tmp_path / ours
        hugging_face.write(out, open_model(folder))
        again = json.loads((out / "config.json").read_text())
        assert again["problem_type"] == (theirs or "single_label_classification")
        assert again["id2label"] == {"0": "O", "1": "B-PER", "2": "I-PER"}
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, problem_type="regression", id2label={"0": "a, b", "1": "c", "2": "d"})
    assert open_model(folder).task["label"] == (("a, b",), ("c",), ("d",))
    del config["id2label"]
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(folder).task["labels"] == ("LABEL_0", "LABEL_1", "LABEL_2")


ROWS = {  # what a config of transformers cannot say
    "answering": dataclasses.replace(tasks.TASKS["squad2"], threshold=-3.25),
    "tagging": dataclasses.replace(tasks.TASKS["klue_ner"], labels=("O", "B-PER", "I-PER")),
    "choice": tasks.get_task("custom", {"family": "choice", "endings": "a,b", "labels": "yes,no"}),
    "classification": dataclasses.replace(tasks.TASKS["mnli"], labels=("yes", "maybe", "no")),
    "numbers": tasks.get_task("custom", {"kind": "numbers", "label": "calm,wet,deep", "pair": "b"}),
}


@pytest.fixture
def written(tmp_path):
    """Writes a golden model as one of a task of ours."""

    def write(name: str) -> Path:
        model = open_model(GOLDEN / name.replace("numbers", "classification"))
        row = json.loads(json.dumps(tasks.to_dict(ROWS[name])))  # as of a task.json
        hugging_face.write(tmp_path / "out", dataclasses.replace(model, task=row))
        return tmp_path / "out"

    return write


@pytest.mark.parametrize("name", ROWS)
def test_a_task_of_ours_comes_back_whole(name, written, tmp_path):
    folder = written(name)
    model = open_model(folder)
    assert tasks.from_dict(model.task) == bert_jax.load(folder).task == ROWS[name]
    assert model.notes == ()
    hugging_face.write(tmp_path / "again", model)
    config = (folder / "config.json").read_text()
    assert (tmp_path / "again" / "config.json").read_text() == config
    config = json.loads(config)
    del config["bert_jax_task"]
    (folder / "config.json").write_text(json.dumps(config))
    model = open_model(folder)  # as before: of a task for a user's own data
    assert model.task["name"] == "custom" and model.notes == ()
    assert model.task.get("labels") == tasks.to_dict(ROWS[name]).get("labels") or name == "choice"


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_config_says_anyway_is_not_written_twice(name, tmp_path):
    hugging_face.write(tmp_path / "out", open_model(GOLDEN / name))
    assert "bert_jax_task" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_task_of_another_head_is_not_used(written):
    """transformers keeps the key also where it trained another head."""
    folder = written("tagging")
    change_config(folder, id2label={"0": "O", "1": "B-LOC", "2": "I-LOC"})
    model = open_model(folder)
    assert model.task["labels"] == ("O", "B-LOC", "I-LOC") and not model.task["joined"]
    assert model.notes == (
        "not used: bert_jax_task in the config, which is of another head or classes",
    )
    change_config(folder, architectures=["BertForSequenceClassification"], id2label=None)
    arrays = load_file(GOLDEN / "classification" / "model.safetensors")
    save_file(arrays, folder / "model.safetensors")
    assert open_model(folder).task["family"] == "classification"
    arrays = {name: arrays[name] for name in arrays if not name.startswith("classifier")}
    save_file(arrays, folder / "model.safetensors")
    assert open_model(folder).task is None
    assert open_model(folder).notes == model.notes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "family: "),
        (["x"], "family: "),
        ({"family": "parsing"}, "'parsing'"),
        ({"depth": 3}, "the field 'depth' is unknown to this version"),
        ({"threshold": "-3.25"}, "threshold: a number is expected, a text is there"),
        ({"files": ["a", "b"]}, r"files: "),
        ({"files": ["a", "b", 3]}, r"files\[2\]: a text is expected"),
    ],
)
def test_a_row_that_is_none_is_refused(written, changes, reason):
    folder = written("answering")
    row = tasks.to_dict(ROWS["answering"])
    change_config(
        folder, bert_jax_task={**row, **changes} if isinstance(changes, dict) else changes
    )
    message = rf"out: bert_jax_task in the config is no task \(.*{reason}.*\); remove it, and"
    with pytest.raises(UserError, match=message):
        open_model(folder)


def test_classes_of_one_name_get_another(tmp_path):
    """Else one of the two probabilities of a text would be lost."""
    folder = shutil.copytree(GOLDEN / "classification", tmp_path / "model")
    for given, labels, new in (
        (["x", "x", "y"], ("x", "x (1)", "y"), "x (1)"),
        (["x (2)", "x", "x"], ("x (2)", "x", "x (2) (2)"), "x (2) (2)"),
    ):
        change_config(folder, id2label=dict(enumerate(given)))
        model = open_model(folder)
        assert model.task["labels"] == labels
        assert model.notes == (f"classes of the same name; called by their numbers: {new}",)
    shares = bert_jax.load(folder).classify(["she sat"])[0].probabilities
    assert sum(shares.values()) == pytest.approx(1) and len(shares) == 3
    folder = shutil.copytree(GOLDEN / "tagging", tmp_path / "tagger")
    change_config(folder, id2label={"0": "O", "1": "PER", "2": "PER"})
    assert open_model(folder).task["labels"] == ("O", "PER", "PER")  # of one type, in fact
