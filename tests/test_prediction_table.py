"""Predictions as a table beside the input, written where it is asked for and nowhere else."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from golden_models import GOLDEN
from tiny_tasks import make_config

import bert_jax
from bert_jax import finetune, tasks
from bert_jax.common.errors import UserError
from bert_jax.tasks.prediction_table import write_table
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import save_model

NAMES = ("a", "b", "c")
TASKS = {  # of a golden model's head, as a fine-tuning would have left it
    "single": ("classification", {}, {"labels": NAMES}),
    "multi": ("classification", {"kind": "multi", "separator": "|"}, {"labels": NAMES}),
    "numbers": (
        "classification",
        {"kind": "numbers", "label": "u,v,w", "pair": "other"},
        {"scales": ((54.0, 44.0),) * 3},
    ),
    "tagging": ("tagging", {}, {"labels": ("O", "B-PER", "I-PER")}),
    "answering": ("answering", {"unanswerable": True}, {}),
    "choice": ("choice", {"endings": "x,y", "labels": "first,second"}, {}),
}
QUESTIONS = [
    {"id": f"q{i}", "question": "who sat", "answers": [{"text": "she", "answer_start": 0}]}
    for i in range(2)
]
FILES = {  # test and dev alike
    "single": ("tsv", "id\ttext\tlabel\tnote\n7\tshe sat\ta\tx\n9\tthe cat\tb\ty\n"),
    "multi": ("csv", 'text,label,note\n"she, sat",a|b,x\nthe cat,,y\n'),
    "numbers": (
        "jsonl",
        '{"text": "she\\tsat", "other": "\\"on\\"", "u": 1, "v": 2.5, "w": 3, "deep": {"x": [1]}}\n'
        '{"text": "the cat", "other": "the mat", "u": 1, "v": 2, "w": 3, "deep": {"x": [1]}}\n',
    ),
    "tagging": ("txt", "she PRP B-PER\nsat VB O\n\nthe DT O\n"),
    "answering": (
        "json",
        json.dumps(
            {"data": [{"title": "t", "paragraphs": [{"context": "she sat", "qas": QUESTIONS}]}]}
        ),
    ),
    "choice": ("csv", "prompt,x,y,label,note\nshe,sat,the cat,first,n\nthe,cat,mat,second,m\n"),
}
EXPECTED = {
    "single": ["id", "text", "label", "note", "prediction", *(f"probability_{n}" for n in NAMES)],
    "multi": ["text", "label", "note", "prediction", *(f"probability_{n}" for n in NAMES)],
    "numbers": [
        "text", "other", "u", "v", "w", "deep.x.0", "prediction_u", "prediction_v", "prediction_w",
    ],
    "tagging": ["sentence", "word", "column_2", "tag", "prediction", "probability"],
    "answering": [
        "id", "title", "question", "context", "prediction", "probability", "start", "end",
        "null_odds",
    ],
    "choice": [
        "prompt", "x", "y", "label", "note", "prediction", "probability_first",
        "probability_second",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of fine-tuned models; not to be changed."""
    made = {}
    for name, (golden, custom, changes) in TASKS.items():
        row = tasks.get_task("custom", {"family": golden, **custom})
        row = tasks.to_dict(dataclasses.replace(row, **changes))
        made[name] = tmp_path_factory.mktemp("models") / name
        save_model(made[name], dataclasses.replace(open_model(GOLDEN / golden), task=row))
    return made


def config_of(name: str, mode: str, folder: Path):
    suffix, content = FILES[name]
    split = "test" if mode == "predict" else "dev"
    (folder / f"given.{suffix}").write_text(content)
    arg = f"task=custom,family={TASKS[name][0]},mode={mode}"
    return make_config(Path(""), arg, **{split: str(folder / f"given.{suffix}")})


def read(path: Path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        assert path.suffix.lower() == ".tsv"
        header, *rows = [line.rstrip("\n").split("\t") for line in file]
        return [dict(zip(header, row, strict=True)) for row in rows]


def contents(folder: Path):
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")}


@pytest.mark.parametrize("name", TASKS)
def test_tables_of_every_kind_in_every_format(models, name, tmp_path):
    config, before = config_of(name, "predict", tmp_path), contents(models[name])
    output = tmp_path / "made" / "out.jsonl"
    assert finetune.apply_model(config, models[name], {}, output) == {"scores": {}}
    assert [*output.parent.iterdir()] == [output]
    assert contents(models[name]) == before  # which may be for reading alone
    rows = read(output)
    assert [list(row) for row in rows] == [EXPECTED[name]] * len(rows)
    CHECKS[name](bert_jax.load(models[name]), rows)
    for suffix in (".csv", ".tsv", ".TSV"):
        if (name, suffix.lower()) == ("numbers", ".tsv"):  # whose text has a tab
            continue
        for row, other in zip(rows, read(write_table(tmp_path / f"a{suffix}", rows)), strict=True):
            assert list(other) == EXPECTED[name]
            for column, value in row.items():
                same = other[column] == ("" if value is None else str(value))
                assert same or float(other[column]) == pytest.approx(value, rel=1e-8)


def test_evaluating_writes_the_table_and_prints_the_scores(models, tmp_path, capsys):
    config, before = config_of("single", "eval", tmp_path), contents(models["single"])
    result = finetune.apply_model(config, models["single"], {}, tmp_path / "out.csv")
    rows = read(tmp_path / "out.csv")
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert result["scores"]["dev"]["accuracy"] == right / len(rows)
    said = capsys.readouterr().out
    assert '"accuracy"' in said and f"{tmp_path / 'out.csv'}: 2 rows" in said
    assert contents(models["single"]) == before


def check_labels(model, rows):
    for row, label in zip(rows, model.classify([row["text"] for row in rows]), strict=True):
        chosen = label.label if isinstance(label.label, str) else "|".join(label.label)
        assert row["prediction"] == chosen and row["label"] in ("a", "b", "a|b", "")
        shares = [row[f"probability_{n}"] for n in NAMES]
        np.testing.assert_allclose(shares, list(label.probabilities.values()), atol=1e-6)


def check_numbers(model, rows):
    assert rows[0]["text"] == "she\tsat" and rows[0]["other"] == '"on"'
    pairs = [(row["text"], row["other"]) for row in rows]
    for row, label in zip(rows, model.classify(pairs), strict=True):
        found = [row[f"prediction_{n}"] for n in "uvw"]
        np.testing.assert_allclose(found, label.label, rtol=1e-6)


def check_tags(model, rows):
    assert [(r["sentence"], r["word"], r["column_2"], r["tag"]) for r in rows] == [
        ("0", "she", "PRP", "B-PER"), ("0", "sat", "VB", "O"), ("1", "the", "DT", "O"),
    ]  # fmt: skip
    tags = [tag for tagged in model.tag([["she", "sat"], ["the"]]) for tag in tagged.tags]
    assert [row["prediction"] for row in rows] == tags
    assert all(1 / 3 <= row["probability"] <= 1 for row in rows)


def check_answers(model, rows):
    answers = model.answer([row["question"] for row in rows], rows[0]["context"])
    for row, answer in zip(rows, answers, strict=True):
        assert (row["prediction"], row["start"], row["end"]) == (
            answer.text, answer.start, answer.end,
        )  # fmt: skip
        assert row["probability"] == pytest.approx(answer.probability, abs=1e-6)


def check_choices(model, rows):
    found = model.choose([r["prompt"] for r in rows], [[r["x"], r["y"]] for r in rows])
    for row, choice in zip(rows, found, strict=True):
        assert row["prediction"] == ("first", "second")[choice.index]
        shares = [row["probability_first"], row["probability_second"]]
        np.testing.assert_allclose(shares, choice.probabilities, atol=1e-6)


CHECKS = {
    "single": check_labels,
    "multi": check_labels,
    "numbers": check_numbers,
    "tagging": check_tags,
    "answering": check_answers,
    "choice": check_choices,
}


def test_what_cannot_be_written_is_told_before_anything_is_predicted(models, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it was predicted")

    monkeypatch.setattr(bert_jax.inference.loading.Model, "predict_table", never)
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "link.csv").symlink_to("there.csv")
    for output, name, content, message in (
        ("out.xlsx", "single", None, r"its format must be told by its name; known: .tsv, .csv, .j"),
        ("there.csv", "single", None, "exists and holds something else"),
        ("link.csv", "single", None, "exists and holds something else"),
        ("given.tsv", "single", None, "exists and holds something else"),
        ("there.csv/out.csv", "single", None, "is not a folder"),
        (
            "out.tsv",
            "numbers",
            None,
            r"given.jsonl:1: a cell holds a tab .* the --output .csv",
        ),
        ("out.csv", "single", "text\tprediction\na\tb\n", r":2: the column 'prediction' is one"),
        ("out.csv", "single", "text\tprobability_b\na\tb\n", "column 'probability_b' is one that"),
    ):
        config = config_of(name, "predict", tmp_path)
        if content:
            (tmp_path / "given.tsv").write_text(content)
        with pytest.raises(UserError, match=message):
            finetune.apply_model(config, models[name], {}, tmp_path / output)
    assert (tmp_path / "there.csv").read_text() == "precious"
