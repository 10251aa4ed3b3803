"""Texts and pairs with labels or numbers: one's own files, bad input, scores and predictions."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from text_tasks import ROWS, TOKENIZER, write

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.buckets import collate, ladder
from bert_jax.models.body import Body
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.tasks import scaling
from bert_jax.tasks.base import Source
from bert_jax.tasks.classification import Classification, TextExample


def custom(path: Path, *lines: str, split: str = "train", **settings):
    """The task and the examples of a file."""
    write(path, *lines)
    task = Classification.custom(**settings)
    return task, task.read(Source(files={split: str(path)}), split)


# A table of one's own.


def test_custom_kinds(tmp_path):
    task, examples = custom(tmp_path / "a.csv", 'text,label\n"a, b",x\nc,y\nd,x')
    assert [(e.texts, e.label) for e in examples][:2] == [(("a, b",), "x"), (("c",), "y")]
    assert task.fit(examples).labels == ("x", "y") and task.metric == "accuracy"

    lines = ["q\tr\tl", "a\tb\tx| y", "c\td\t"]
    task, examples = custom(
        tmp_path / "a.tsv", *lines, text="q", pair="r", label="l", kind="multi", separator="|"
    )
    assert [(e.texts, e.label) for e in examples] == [(("a", "b"), ("x", "y")), (("c", "d"), ())]
    assert task.fit(examples).labels == ("x", "y")

    lines = ['{"text": "a", "m": {"u": 1, "v": 2.5}}', '{"text": "b", "m": {"u": 0, "v": -1}}']
    task, examples = custom(tmp_path / "a.jsonl", *lines, label="m.u, m.v", kind="numbers")
    assert task.kind == "numbers" and task.outputs == 2
    assert task.fit(examples) == dataclasses.replace(task, scales=((0.5, 0.5), (0.75, 1.75)))
    assert [e.label for e in examples] == [(1.0, 2.5), (0.0, -1.0)]

    lines = ['{"text": "a", "label": ["x", "z"]}', '{"text": "b", "label": []}']
    task, examples = custom(tmp_path / "b.jsonl", *lines, kind="multi")
    assert [e.label for e in examples] == [("x", "z"), ()]


def test_custom_folder_takes_any_format(tmp_path):
    write(tmp_path / "train.jsonl", '{"text": "a", "label": "x"}')
    write(tmp_path / "test.csv", "text", "b")
    task = Classification.custom()
    assert task.splits == ("train", "dev", "test")
    assert task.read(Source(str(tmp_path)), "train")[0].label == "x"
    assert task.read(Source(str(tmp_path)), "dev") is None
    assert task.read(Source(str(tmp_path)), "test")[0].label is None


def test_ids_that_are_not_unique_become_places(tmp_path):
    _, examples = custom(tmp_path / "a.tsv", "id\ttext\tlabel", "7\ta\tx", "7\tb\ty")
    assert [e.id for e in examples] == ["0", "1"]


# Mistakes.


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (["txt\tlabel", "a\tx"], {}, r":2: there is no column 'text'; the columns are: txt, label"),
        (["text\tl", "a\tx"], {}, r":2: there is no column 'label'; the columns are: text, l"),
        (["text\tlabel", "a\tx"], {"pair": "b"}, r":2: there is no column 'b'"),
        (["text\tlabel", "a\tx", " \ty"], {}, r":3: the text in column 'text' is empty"),
        (["text\tlabel", "a\tx", "b\t"], {}, r":3: there is no label in column 'label'"),
        (
            ["text\tu\tv", "a\t1\tx"],
            {"label": "u,v", "kind": "numbers"},
            r":2: the label 'x' is not a number",
        ),
        (["text\tlabel", "a\tnan"], {"kind": "numbers"}, r":2: the label 'nan' is not a number"),
        (["text\tlabel", "a\t"], {"kind": "numbers"}, r":2: there is no label"),
    ],
)
def test_mistakes_in_a_file(tmp_path, lines, settings, message):
    with pytest.raises(UserError, match=message):
        custom(tmp_path / "a.tsv", *lines, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "many"}, "custom.kind='many' is unknown; known: single, multi, numbers"),
        ({"label": "a,b", "kind": "single"}, "several columns are for custom.kind=numbers"),
        ({"text": ""}, "must not be empty"),
        ({"label": "a,", "kind": "numbers"}, "must not be empty"),
        ({"kind": "multi", "separator": ""}, "must not be empty"),
    ],
)
def test_mistakes_in_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Classification.custom(**settings)


def test_one_class_only_and_unknown_labels(tmp_path):
    header = "text\tlabel"
    task, examples = custom(tmp_path / "a.tsv", header, "a\tx", "b\tx")
    with pytest.raises(UserError, match=r"a.tsv: there is nothing to learn.* label 'x'"):
        task.fit(examples)
    numbers, examples = custom(tmp_path / "a.tsv", header, "a\t1", "b\t1.0", kind="numbers")
    with pytest.raises(UserError, match="nothing to learn"):
        numbers.fit(examples)
    task, examples = custom(tmp_path / "a.tsv", header, "a\tx", "b\ty")
    fitted = task.fit(examples)
    source = write(tmp_path / "dev.tsv", header, "a\tx", "b\tz")
    with pytest.raises(UserError, match=r"dev.tsv:3: the label 'z' is unknown; known: x, y"):
        fitted.read(source, "dev")
    with pytest.raises(UserError, match=r"dev.tsv:3: the label 'z' is unknown"):
        fitted.score(task.read(source, "dev"), ["x", "y"])  # read before the labels were known
    with pytest.raises(UserError, match=r"dev.tsv:3: the label 'z' is unknown"):
        fitted.featurise(task.read(source, "dev"), TOKENIZER, 9, train=False)
    unlabelled = [TextExample("0", ("a",), None, "f.tsv:2")]
    for use in (fitted.fit, lambda e: fitted.featurise(e, TOKENIZER, 9, train=True)):
        with pytest.raises(UserError, match=r"f.tsv:2: there is no label"):
            use(unlabelled)


# Numbers of any unit.


def test_custom_numbers_are_learnt_in_standard_deviations(tmp_path):
    lines = ["text\ta\tb", "x\t10\t1e6", "y\t20\t3e6", "z\t60\t-1e6"]
    task, examples = custom(tmp_path / "a.tsv", *lines, label="a,b", kind="numbers")
    fitted = task.fit(examples)
    columns = np.array([e.label for e in examples])
    np.testing.assert_allclose(fitted.scales, np.stack([columns.mean(0), columns.std(0)], axis=1))
    features = fitted.featurise(examples, TOKENIZER, 9, train=True)
    learnt = np.stack([feature.arrays["numbers"] for feature in features])
    np.testing.assert_allclose(learnt.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(learnt.std(axis=0), 1, rtol=1e-6)
    # All that people see is in the unit of the file.
    predictions = fitted.decode(examples, features, _logits(*learnt))
    np.testing.assert_allclose(predictions, columns, rtol=1e-6)
    assert fitted.score(examples, [e.label for e in examples])["squared_error"] == 0
    off = [tuple(x + 2 for x in e.label) for e in examples]
    assert fitted.score(examples, off)["squared_error"] == 4
    assert fitted.baseline(examples, examples)[0] == pytest.approx(columns.mean(axis=0))
    stored = json.loads(json.dumps(tasks.to_dict(fitted)))
    assert tasks.from_dict(stored) == fitted
    for name in ("scales", "standardise"):  # of a model from before
        del stored[name]
    assert tasks.from_dict(stored).decode([], [], _logits([2.5, -1.0])) == [(2.5, -1.0)]


def test_the_tasks_of_papers_learn_their_numbers_as_they_are():
    examples = [TextExample(str(i), ("a", "b"), (float(i),), "f:1") for i in range(6)]
    for name in ("stsb", "klue_sts", "korsts"):
        task = ROWS[name].fit(examples)
        assert task == ROWS[name] and not task.scales
        features = task.featurise(examples, TOKENIZER, 9, train=True)
        assert [feature.arrays["numbers"].tolist() for feature in features] == [
            [float(i)] for i in range(6)
        ]


@pytest.mark.parametrize("numbers", [["7", "7", "7"], ["1e300", "-1e300", "0"], ["1e20", "1e20"]])
def test_numbers_that_cannot_be_learnt(tmp_path, numbers):
    lines = [f"a\t{i}\t{number}" for i, number in enumerate(numbers)]
    task, examples = custom(tmp_path / "a.tsv", "text\tu\tv", *lines, label="u,v", kind="numbers")
    with pytest.raises(UserError, match=r"a.tsv: the numbers in column 'v' cannot be learnt"):
        task.fit(examples)


def test_a_head_gives_the_same_numbers_at_other_scales():
    rng = np.random.default_rng(0)
    head = {"dense": {"kernel": rng.normal(size=(8, 2)), "bias": rng.normal(size=2)}}
    x = rng.normal(size=(5, 8))
    scales = ((54.0, 44.0), (-3.0, 0.01))

    def numbers(head, scales):
        outputs = x @ head["dense"]["kernel"] + head["dense"]["bias"]
        return scaling.restored(outputs, scales)

    expected = numbers(head, scales)
    for other in ((), ((50.0, 40.0), (0.0, 2.0))):
        moved = scaling.rescaled_head(head, scales, other)
        np.testing.assert_allclose(numbers(moved, other), expected, rtol=1e-5)


def test_labels_that_files_could_not_hold(tmp_path):
    task, examples = custom(
        tmp_path / "a.jsonl", '{"text": "a", "label": "x\\ty"}', '{"text": "b", "label": "z"}'
    )
    with pytest.raises(UserError, match="holds a tab or a line end"):
        task.fit(examples)
    with pytest.raises(UserError, match=r"a.jsonl:1: a label holds ','; set another"):
        custom(tmp_path / "a.jsonl", '{"text": "a", "label": ["x,y", "z"]}', kind="multi")


def test_a_task_without_columns_reads_nothing(tmp_path):
    write(tmp_path / "dev.tsv", "text\tlabel", "a\tx")
    task = dataclasses.replace(Classification.custom(), texts=())
    with pytest.raises(UserError, match="names no columns of text"):
        task.read(Source(str(tmp_path)), "dev")


# The model and what it says.


def _logits(*rows):
    return [{"logits": np.array(row, np.float32)} for row in rows]


@pytest.mark.parametrize("kind", ["single", "multi", "numbers"])
def test_through_the_model_and_back(tmp_path, kind):
    labels = {"single": ["x", "y"], "multi": ["x,y", "y"], "numbers": ["1.5", "-2"]}[kind]
    lines = ["text\tpair\tlabel", f"a b\tc\t{labels[0]}", f"d\te\t{labels[1]}"]
    task, examples = custom(tmp_path / "a.tsv", *lines, pair="pair", kind=kind)
    task = task.fit(examples)
    features = task.featurise(examples, TOKENIZER, 16, train=True)
    assert [f.example for f in features] == [0, 1]
    batch = collate([f.arrays for f in features], 2, TOKENIZER.pad_id, ladder(16))
    encoder = EncoderBackbone(TOKENIZER.vocab_size, layers=1, width=8, heads=2, feed_forward=8)
    objective = task.objective(Body(encoder))
    params = nn.unbox(jax.jit(objective.init)(jax.random.key(0), batch))
    mean = jax.jit(lambda *args: objective.loss(*args, False)[0])(params, batch, None)
    assert np.isfinite(float(mean.value()))
    logits = np.asarray(jax.jit(objective.predict)(params, batch)["logits"])
    assert logits.shape == (2, task.outputs)
    predictions = task.decode(examples, features, [{"logits": row} for row in logits])
    scores = task.score(examples, predictions)
    assert task.metric in scores and all(np.isfinite(list(scores.values())))
    assert "label" not in task.featurise(examples, TOKENIZER, 16, train=False)[0].arrays


def test_decoding_and_probabilities():
    single = Classification("t", (), (("text",),), labels=("x", "y", "z"))
    outputs = _logits([0, 2, 1], [1000, 0, -1000])
    assert single.decode([], [], outputs) == ["y", "x"]
    expected = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    np.testing.assert_allclose(single.probabilities(outputs)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(single.probabilities(outputs)[1], [1, 0, 0])
    multi = Classification("t", (), (("text",),), labels=("x", "y"), kind="multi")
    outputs = _logits([0.1, -0.1], [-3, -4], [np.log(3), 1000])
    assert multi.decode([], [], outputs) == [("x",), (), ("x", "y")]
    np.testing.assert_allclose(multi.probabilities(outputs)[2], [0.75, 1], rtol=1e-6)
    assert ROWS["stsb"].decode([], [], _logits([2.5])) == [(2.5,)]
    assert single.probabilities([]).shape == (0, 3)


def test_baselines():
    examples = [TextExample(str(i), ("a",), label, "f:1") for i, label in enumerate("xyyz")]
    task = Classification("t", (), (("text",),), labels=("x", "y", "z"))
    assert task.baseline(examples, examples[:2]) == ["y", "y"]
    numbers = [TextExample(str(i), ("a",), (i / 2,), "f:1") for i in range(4)]
    baseline = ROWS["stsb"].baseline(numbers, numbers)
    assert baseline == [(0.75,)] * 4
    assert ROWS["stsb"].score(numbers, baseline)["spearman"] == 0


def test_scores_of_a_task_whose_labels_are_not_known_yet(tmp_path):
    task, examples = custom(tmp_path / "a.tsv", "text\tlabel", "a\tx", "b\ty", split="dev")
    assert task.score(examples, ["x", "z"])["macro_f1"] == pytest.approx(1 / 3)


# Prediction files.


@pytest.mark.parametrize(
    ("kind", "predictions"),
    [
        ("single", ["y", "x", "x"]),
        ("multi", [("x", "y"), (), ("y",)]),
        ("numbers", [(1.5, -0.25), (1 / 3, 1e-8), (0.0, 7.0)]),
    ],
)
def test_prediction_files_are_read_back(tmp_path, kind, predictions):
    task = Classification(
        "t", (), (("text",),), label=(("u",), ("v",)), kind=kind, labels=("x", "y")
    )
    examples = [TextExample(name, ("a",), None, "f") for name in ("q7", "3", "q1")]
    (path,) = task.write(tmp_path, "dev", examples, predictions)
    assert list(tmp_path.iterdir()) == [path]
    back = task.read_predictions(path, examples[::-1])  # in the order of the examples
    if kind == "numbers":
        np.testing.assert_allclose(back[::-1], predictions, rtol=1e-8)
    else:
        assert back[::-1] == predictions


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0\t1"], r"1 predictions for 2 examples; it lacks index 1"),
        (["0\t1", "1\t0", "2\t0"], r"3 predictions for 2 examples"),
        (["0\t1", "0\t0"], r"p.tsv:3: a second prediction for index 0"),
        (["0\t1", "1\tx"], r"p.tsv:3: the label 'x' is unknown; known: 0, 1"),
        ([], r"p.tsv holds no rows"),
    ],
)
def test_mistakes_in_predictions(tmp_path, lines, message):
    examples = [TextExample(str(i), ("a", "b"), None, "f") for i in range(2)]
    write(tmp_path / "p.tsv", "index\tprediction", *lines)
    with pytest.raises(UserError, match=message):
        ROWS["mrpc"].read_predictions(tmp_path / "p.tsv", examples)
    write(tmp_path / "n.tsv", "index\tprediction", "0\t1,2", "1\t3")
    with pytest.raises(UserError, match=r"n.tsv:2: 2 numbers instead of 1"):
        ROWS["stsb"].read_predictions(tmp_path / "n.tsv", examples)


# Pictures.


@pytest.mark.filterwarnings("error")
def test_plots(tmp_path):
    task = Classification("t", (), (("text",),), labels=("x", "y", "긍정", "$5_to_$10", "$_"))
    examples = [TextExample(str(i), ("a",), label, "f:1") for i, label in enumerate("xyyx")]
    path = task.plot(tmp_path / "confusion.png", examples, list("xyxx"))
    assert path.read_bytes().startswith(b"\x89PNG")
    numbers = [TextExample(str(i), ("a", "b"), (float(i),), "f:1") for i in range(4)]
    path = ROWS["stsb"].plot(tmp_path / "numbers.png", numbers, [(1.0,)] * 4)
    assert path.read_bytes().startswith(b"\x89PNG")
    hidden = [TextExample("0", ("a",), None, "f:1")]
    assert task.plot(tmp_path / "no.png", hidden, ["x"]) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["confusion.png", "numbers.png"]
