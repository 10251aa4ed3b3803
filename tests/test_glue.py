"""GLUE, SNLI and the Korean tasks: official files and metrics, the leaderboard's files and zip."""

import json
import zipfile
from pathlib import Path

import programs
import pytest
from data_packs import pack
from text_tasks import ROWS, write

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.tasks import glue, text_table
from bert_jax.tasks.base import Source
from bert_jax.tasks.classification import TextExample

# Official files.

SIZES = {  # as the publishers count them
    ("cola", "CoLA"): (8551, 1043, 1063),
    ("mrpc", "MRPC"): (3668, 408, 1725),
    ("rte", "RTE"): (2490, 277, 3000),
    ("stsb", "STS-B"): (5749, 1500, 1379),
    ("wnli", "WNLI"): (635, 71, 146),
    ("qnli", "QNLI"): (None, 5463, 5463),
    ("sst2", "SST-2"): (67349, 872, 1821),
}


@pytest.mark.parametrize(("name", "folder"), SIZES)
def test_official_glue_files_are_read_whole(name, folder):
    source = Source(str(pack("tasks") / "glue_data" / folder))
    task = ROWS[name]
    splits = {split: task.read(source, split) for split in task.splits}
    assert tuple(e and len(e) for e in splits.values()) == SIZES[name, folder]
    test = splits["test"]
    assert [e.id for e in test] == [str(i) for i in range(len(test))]
    assert {e.label for e in test} == {None}
    for examples in filter(None, splits.values()):
        assert all(text.strip() for e in examples for text in e.texts)
    assert task.fit(splits["dev"]) == task  # every label is known
    if task.labels:
        assert {e.label for e in splits["dev"]} == set(task.labels)


def test_other_official_files():
    data = pack("tasks")
    diagnostic = ROWS["mnli"].read(Source(str(data / "glue_data" / "diagnostic")), "ax")
    assert len(diagnostic) == 1104 and diagnostic[0].texts[0] == "The cat sat on the mat."
    found = {
        ("mnli", "nli/mnli/dev.jsonl"): 9815,
        ("snli", "nli/snli/dev.jsonl"): 9842,
        ("nsmc", "nsmc/ratings_train.first5000.txt"): 5000,
        ("klue_nli", "klue/klue-nli-v1.1_dev.json"): 3000,
        ("klue_sts", "klue/klue-sts-v1.1_dev.json"): 519,
        ("kornli", "kornlu/KorNLI/xnli.dev.ko.tsv"): 2490,
        ("korsts", "kornlu/KorSTS/sts-dev.tsv"): 1500,
    }
    for (name, path), count in found.items():
        examples = ROWS[name].read(Source(files={"dev": str(data / path)}), "dev")
        assert len(examples) == count, name
        assert ROWS[name].fit(examples) == ROWS[name]


def test_first_examples_of_official_files():
    folder = pack("tasks") / "glue_data"
    mrpc = ROWS["mrpc"].read(Source(str(folder / "MRPC")), "dev")[0]
    assert mrpc.label == "equivalent"
    assert mrpc.texts[1].startswith('" The foodservice pie business')  # the quote is text
    cola = ROWS["cola"].read(Source(str(folder / "CoLA")), "train")[0]
    assert cola.texts == (
        "Our friends won't buy this analysis, let alone the next one we propose.",
    )
    assert cola.where.endswith("train.tsv:1")  # no header
    stsb = ROWS["stsb"].read(Source(str(folder / "STS-B")), "train")[1]
    assert stsb.label == (3.8,)


def test_klue_sts_f1_is_that_of_the_binary_labels():
    path = pack("tasks") / "klue" / "klue-sts-v1.1_dev.json"
    examples = ROWS["klue_sts"].read(Source(files={"dev": str(path)}), "dev")
    binary = [bool(row["labels"]["binary-label"]) for row in json.loads(path.read_text("utf-8"))]
    predictions = [(3.5,) if i % 3 else (1.0,) for i in range(len(binary))]
    called = [p == (3.5,) for p in predictions]
    both = sum(b and c for b, c in zip(binary, called, strict=True))
    expected = 2 * both / (sum(binary) + sum(called))
    assert ROWS["klue_sts"].score(examples, predictions)["f1"] == pytest.approx(expected)


def test_glue_and_snli_leave_out_what_they_are_meant_to(tmp_path, capsys):
    source = write(
        tmp_path / "dev.jsonl",
        '{"sentence1": "a", "sentence2": "b", "gold_label": "-"}',
        '{"sentence1": "a", "sentence2": "b", "gold_label": "neutral"}',
    )
    for name in ("mnli", "snli"):
        assert [e.label for e in ROWS[name].read(source, "dev")] == ["neutral"]
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    lines = [header, "1\t2\t3\ta\tb\t1", "2\t2\t3\ta", "b\t0", "3\t4\t5\t\tb\t0"]
    examples = ROWS["qqp"].read(write(tmp_path / "dev.tsv", *lines), "dev")
    assert [(e.id, e.label) for e in examples] == [("1", "duplicate"), ("3", "not_duplicate")]
    assert "2 broken rows left out" in capsys.readouterr().err


def test_kornli_trains_on_both_files_or_on_the_one_that_is_named(tmp_path):
    header, task = "sentence1\tsentence2\tgold_label", ROWS["kornli"]
    write(tmp_path / "multinli.train.ko.tsv", header, "a\tb\tneutral")
    with pytest.raises(UserError, match=r"lacks snli_1.0_train.ko.tsv.*--config.train"):
        task.read(Source(str(tmp_path)), "train")
    write(tmp_path / "snli_1.0_train.ko.tsv", header, "c\td\tentailment")
    examples = task.read(Source(str(tmp_path)), "train")
    assert [e.texts for e in examples] == [("a", "b"), ("c", "d")]
    one = Source(files={"train": str(tmp_path / "snli_1.0_train.ko.tsv")})
    assert len(task.read(one, "train")) == 1


def test_tfds_columns_names_and_order(monkeypatch, tmp_path):
    asked = []

    def read_tfds(name, split):
        asked.append((name, split))
        labels = {"validation": ["equivalent", "not_equivalent"], "test": ["", ""]}
        split = "validation" if split == "dev" else split
        if split not in labels:
            return None
        texts = {"sentence1": "a", "sentence2": "b"}
        return (
            (f"{name}/{split}:{i}", {**texts, "label": label, "idx": 1 - i})
            for i, label in enumerate(labels[split])
        )

    monkeypatch.setattr(text_table, "read_tfds", read_tfds)
    source, task = Source("tfds:glue/mrpc"), ROWS["mrpc"]
    dev = task.read(source, "dev")
    assert [(e.id, e.label) for e in dev] == [("1", "equivalent"), ("0", "not_equivalent")]
    assert dev[0].where == "glue/mrpc/validation:0"
    assert task.read(source, "train") is None
    test = task.read(source, "test")
    assert [e.label for e in test] == [None, None]
    (path,) = task.write(tmp_path, "test", test, ["equivalent", "not_equivalent"])
    assert path.read_text() == "index\tprediction\n0\t0\n1\t1\n"  # sorted: TFDS shuffles
    assert asked == [("glue/mrpc", split) for split in ("dev", "train", "test")]


def test_labels_of_splits_that_are_predicted_are_not_read(tmp_path):
    source = write(tmp_path / "test.tsv", "sentence1\tsentence2\tscore", "a\tb\t-1")
    assert ROWS["stsb"].read(source, "test")[0].label is None
    assert ROWS["korsts"].read(source, "test")[0].label is None


@pytest.mark.parametrize("name", ROWS)
def test_the_wrong_file_for_the_task(tmp_path, name):
    squad = write(tmp_path / "dev.json", '{"version": "1.1", "data": []}')
    with pytest.raises(UserError, match=r"dev.json is not a JSON list of rows: is it the file"):
        ROWS[name].read(squad, "dev")
    table = write(tmp_path / "dev.tsv", "x\ty\tz", "1\t2\t3")
    with pytest.raises(UserError, match=r"dev.tsv:\d: (there is no column|3 fields)"):
        ROWS[name].read(table, "dev")


def test_a_split_of_another_task_has_unknown_labels(tmp_path):
    source = write(tmp_path / "dev.tsv", "sentence\tlabel", "a\t1", "b\t7")
    with pytest.raises(UserError, match=r"dev.tsv:3: the label '7' is unknown; known: 0, 1"):
        ROWS["sst2"].read(source, "dev")


# The rows.


@pytest.mark.parametrize("task", ROWS.values(), ids=ROWS)
def test_rows_survive_json(task):
    assert tasks.from_dict(json.loads(json.dumps(tasks.to_dict(task)))) == task
    assert task.metric in task.metrics and set(dict(task.submissions)) <= set(task.splits)
    assert len(task.codes) in (0, len(task.labels))


def test_official_metrics_of_each_row():
    deciding = {name: task.metric for name, task in ROWS.items()}
    special = {
        "cola": "mcc", "mrpc": "f1", "qqp": "f1", "stsb": "spearman", "klue_sts": "pearson",
        "korsts": "spearman",
    }  # fmt: skip
    assert deciding == {name: special.get(name, "accuracy") for name in ROWS}
    task = ROWS["mrpc"]
    gold = ["equivalent", "equivalent", "not_equivalent", "not_equivalent"]
    examples = [TextExample(str(i), ("a", "b"), label, "f:1") for i, label in enumerate(gold)]
    scores = task.score(examples, ["equivalent"] * 4)
    assert scores == {"f1": pytest.approx(2 / 3), "accuracy": 0.5}  # f1 of the paraphrases
    numbers = [TextExample(str(i), ("a", "b"), (float(i),), "f:1") for i in range(4)]
    scores = ROWS["stsb"].score(numbers, [(i**3 + 1.0,) for i in range(4)])
    assert scores["spearman"] == pytest.approx(1) and scores["pearson"] < 0.95


# The leaderboard's files.


def test_leaderboard_files(tmp_path):
    def file(name, split, predictions):
        examples = [TextExample(str(i), ("a", "b"), None, "f") for i in range(len(predictions))]
        (path,) = ROWS[name].write(tmp_path, split, examples, predictions)
        return path.name, path.read_text()

    assert file("cola", "test", ["acceptable"]) == ("CoLA.tsv", "index\tprediction\n0\t1\n")
    assert file("rte", "test", ["entailment", "not_entailment"]) == (
        "RTE.tsv", "index\tprediction\n0\tentailment\n1\tnot_entailment\n")  # fmt: skip
    assert file("stsb", "test", [(2.34567,)]) == ("STS-B.tsv", "index\tprediction\n0\t2.346\n")
    for split, name in [("test", "MNLI-m"), ("test_mismatched", "MNLI-mm"), ("ax", "AX")]:
        expected = f"{name}.tsv", "index\tprediction\n0\tneutral\n"
        assert file("mnli", split, ["neutral"]) == expected
    assert file("sst2", "dev", ["negative"]) == (
        "dev_predictions.tsv", "index\tprediction\n0\tnegative\n")  # fmt: skip


def test_leaderboard_files_are_read_back(tmp_path):
    examples = [TextExample(str(i), ("a", "b"), None, "f") for i in range(2)]
    predictions = ["equivalent", "not_equivalent"]
    (path,) = ROWS["mrpc"].write(tmp_path, "test", examples, predictions)
    assert ROWS["mrpc"].read_predictions(path, examples) == predictions


def test_predictions_of_rows_without_a_gold_label_do_not_count(tmp_path):
    """As in SNLI's official score; the file may have them or not."""
    labels = ["-", "neutral", "entailment", "-", "neutral", "-"]
    rows = [f'{{"sentence1": "a", "sentence2": "b", "gold_label": "{label}"}}' for label in labels]
    task, source = ROWS["snli"], write(tmp_path / "dev.jsonl", *rows)
    examples = task.read(source, "dev")
    predicted = ["neutral", "neutral", "contradiction", "entailment", "neutral", "neutral"]
    for places in (range(6), (1, 2, 4)):
        lines = [f"{place}\t{predicted[place]}" for place in places]
        write(tmp_path / "p.tsv", "index\tprediction", *reversed(lines))
        found = task.read_predictions(tmp_path / "p.tsv", examples)
        assert found == ["neutral", "contradiction", "neutral"]
    write(tmp_path / "p.tsv", "index\tprediction", *(f"{i}\tneutral" for i in range(7)))
    with pytest.raises(UserError, match="7 predictions for 6 examples"):
        task.read_predictions(tmp_path / "p.tsv", examples)


# The leaderboard's zip file.

TEST_SIZES = {
    "CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390965, "MNLI-m": 9796,
    "MNLI-mm": 9847, "QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104,
}  # fmt: skip
LABELS = {"STS-B": "2.500", "MNLI-m": "neutral", "MNLI-mm": "neutral", "AX": "neutral",
          "QNLI": "entailment", "RTE": "entailment"}  # fmt: skip


def _submission(folder: Path, name: str, size: int, text: str = "") -> None:
    folder.mkdir(exist_ok=True)
    rows = [f"{i}\t{text or LABELS.get(name, '1')}" for i in range(size)]
    write(folder / f"{name}.tsv", "index\tprediction", *rows)


def test_zip_submission(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    small = [name for name in TEST_SIZES if name != "QQP"]
    for i, name in enumerate(small):
        _submission(folders[i % 2], name, TEST_SIZES[name])
    assert glue.zip_submission(folders, tmp_path / "out.zip") == ["QQP.tsv"]
    first = (tmp_path / "out.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.tsv" for name in small)
        assert archive.read("RTE.tsv") == (folders[small.index("RTE") % 2] / "RTE.tsv").read_bytes()
    glue.zip_submission(folders, tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == first
    sizes = {name.removesuffix(".tsv"): size for name, size in glue._SIZES.items()}
    assert sizes == TEST_SIZES


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("WNLI", [f"{i}\t1" for i in range(145)], r"145 predictions; the test set has 146"),
        ("WNLI", [f"{i + 1}\t1" for i in range(146)], r"WNLI.tsv:2: the index must be 0"),
        ("WNLI", ["0\tentailment"], r"WNLI.tsv:2: the label 'entailment' is unknown; known: 0, 1"),
        ("RTE", ["0\t1"], r"RTE.tsv:2: the label '1' is unknown; known: entailment"),
        ("STS-B", ["0\thigh"], r"STS-B.tsv:2: the label 'high' is not a number"),
    ],
)
def test_zip_submission_refuses(tmp_path, name, lines, message):
    write(tmp_path / f"{name}.tsv", "index\tprediction", *lines)
    with pytest.raises(UserError, match=message):
        glue.zip_submission([tmp_path], tmp_path / "out.zip")
    write(tmp_path / f"{name}.tsv", "id\tprediction", "0\t1")
    with pytest.raises(UserError, match="the header must be index, prediction"):
        glue.zip_submission([tmp_path], tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_zip_submission_of_nothing_and_of_two(tmp_path):
    with pytest.raises(UserError, match=r"none of CoLA.tsv, .* is in"):
        glue.zip_submission([tmp_path], tmp_path / "out.zip")
    for folder in ("a", "b"):
        _submission(tmp_path / folder, "WNLI", 146)
    with pytest.raises(UserError, match=r"WNLI.tsv is there twice"):
        glue.zip_submission([tmp_path / "a", tmp_path / "b"], tmp_path / "out.zip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the work directories"),
        (["nowhere"], "not a folder: nowhere"),
        (["--output=x.zip", "a"], "there is no flag --output (--help lists the flags)"),
    ],
)
def test_a_mistake_of_the_submission_is_one_line(tmp_path, arguments, message):
    script = Path(glue.__file__).parents[2] / "launch" / "glue_submission.py"
    found = programs.run(script, *arguments, cwd=tmp_path)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)
    assert found.stderr.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
