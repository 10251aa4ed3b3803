"""Choice: SWAG, CODAH and tables of one's own, as sequences and back."""

import json
import re

import jax
import numpy as np
import pytest
from data_packs import pack

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.buckets import collate, ladder
from bert_jax.data.tokenizer import wordpiece_tokenizer
from bert_jax.models.body import Body
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.tasks.base import Source, hold_out
from bert_jax.tasks.choice import Choice, Question

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER = wordpiece_tokenizer([*SPECIAL, *"abcdefghij"])
CLS, SEP, PAD = TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.pad_id
A, B, C, D, E, F = range(5, 11)
SWAG, CODAH = tasks.TASKS["swag"], tasks.TASKS["codah"]
SWAG_HEADER = (
    ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
)


def _question(prompt="a b c", endings=("d", "e f"), label=1):
    return Question("0", prompt, endings, label, "x:1", prompt)


def _custom(**settings):
    return tasks.get_task("custom", {"family": "choice", **settings})


def _read(tmp_path, text, name="train.csv", task=None):
    (tmp_path / name).write_bytes(text.encode())
    return (task or SWAG).read(Source(files={"train": str(tmp_path / name)}), "train")


def test_swag_reads_its_official_columns(tmp_path):
    text = (
        f"{SWAG_HEADER}\n"
        '0,lsmdc1-7,18313,"Ann waits, alone. She","Ann waits, alone.",She,gold,'
        '"turns, then ""runs"".",sits.,walks.,sleeps.,2\n'
    )
    (question,) = _read(tmp_path, text)
    assert question.prompt == "Ann waits, alone."
    assert question.endings[:2] == ('She turns, then "runs".', "She sits.")
    assert (question.label, question.group) == (2, "lsmdc1-7")
    # The test file has no label column.
    (hidden,) = _read(tmp_path, re.sub(r",(label|2)$", "", text, flags=re.M))
    assert hidden.label is None and hidden.endings == question.endings


def test_codah_is_read_whole():
    questions = CODAH.read(Source(str(pack("tasks") / "codah")), "train")
    assert len(questions) == 2776
    assert all(len(q.endings) == 4 and q.label in range(4) for q in questions)
    quoted = [q for q in questions if any('"go cats"' in ending for ending in q.endings)]
    assert [q.label for q in quoted] == [1]
    assert CODAH.fit(questions) == CODAH
    assert CODAH.read(Source(str(pack("tasks") / "codah")), "dev") is None
    train, dev = hold_out(questions, 0.2)
    assert not {q.prompt for q in train} & {q.prompt for q in dev}
    assert CODAH.score(dev, CODAH.baseline(train, dev))["accuracy"] == pytest.approx(0.25, abs=0.05)


def test_a_table_of_ones_own(tmp_path):
    task = _custom(prompt="q", endings="x, y,z", label="right")
    text = "q\tx\ty\tz\tright\nwhat\tone\ttwo\tthree\t2\nwhy\tone\ttwo\tthree\ttwo\n"
    assert [q.label for q in _read(tmp_path, text, "t.tsv", task)] == [2, 1]
    lettered = _custom(endings="x,y,z", labels="A,B,C", prompt="q", label="right")
    (question,) = _read(tmp_path, "q\tx\ty\tz\tright\nwhat\t1\t2\t3\tC\n", "t.tsv", lettered)
    assert question.label == 2


def test_tfds_columns(monkeypatch):
    # As in hellaswag: a list of endings, and a class label by its number.
    row = {"context": "a", "endings": ["b", "c", "d", "e"], "label": 2}
    splits = {"dev": [("hellaswag/validation:0", row)]}
    monkeypatch.setattr(tasks.choice.rows, "read_tfds", lambda name, split: splits.get(split))
    task = _custom(prompt="context", endings="endings.0,endings.1,endings.2,endings.3")
    (question,) = task.read(Source("tfds:hellaswag"), "dev")
    assert (question.prompt, question.endings, question.label) == ("a", tuple("bcde"), 2)
    assert task.read(Source("tfds:hellaswag"), "test") is None


def test_labels_that_a_test_split_hides(tmp_path):
    (tmp_path / "test.tsv").write_text("prompt\tending0\tending1\tlabel\np\tx\ty\t-1\n")
    (question,) = _custom(endings="ending0,ending1").read(Source(str(tmp_path)), "test")
    assert question.label is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"endings": "x"}, "custom.endings names 1 columns"),
        ({"endings": "x,y", "labels": "A,B,C"}, "2 columns and custom.labels 3"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        _custom(**settings)


ROW = {"prompt": "p", "ending0": "a", "ending1": "b", "ending2": "c", "ending3": "d", "label": "1"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label": "4"}, "train.csv:2: the label '4' is neither one of 0, 1, 2, 3"),
        ({"label": "-1"}, "train.csv:2: the label '-1' is neither"),
        ({"ending2": " "}, "train.csv:2: the column 'ending2' is empty"),
        ({"prompt": ""}, "train.csv:2: the column 'prompt' is empty"),
        ({"ending3": None}, "train.csv:2: there is no column 'ending3'"),
    ],
)
def test_bad_rows(tmp_path, changes, message):
    row = {name: text for name, text in {**ROW, **changes}.items() if text is not None}
    text = ",".join(row) + "\n" + ",".join(row.values()) + "\n"
    with pytest.raises(UserError, match=re.escape(message)):
        _read(tmp_path, text, task=_custom())


def test_a_row_with_another_number_of_endings(tmp_path):
    text = ",".join(ROW) + "\np,a,b,c,1\n"
    with pytest.raises(UserError, match=r"train\.csv:2: 5 fields"):
        _read(tmp_path, text, task=_custom())


@pytest.mark.parametrize(
    "labels, message",
    [((1, 1), "x:1: every label is 1: nothing to learn"), ((0, None), "x:1: a training file")],
)
def test_nothing_to_learn(labels, message):
    with pytest.raises(UserError, match=message):
        SWAG.fit([_question(label=label) for label in labels])


def test_sequences_share_the_prompt():
    (feature,) = SWAG.featurise([_question()], TOKENIZER, 16, train=True)
    assert feature.arrays["tokens"].tolist() == [
        [CLS, A, B, C, SEP, D, SEP, PAD],
        [CLS, A, B, C, SEP, E, F, SEP],
    ]
    assert feature.arrays["segments"].tolist() == [
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert feature.arrays["lengths"].tolist() == [7, 8]
    assert feature.arrays["label"] == 1 and feature.arrays["label"].shape == ()
    (unlabelled,) = SWAG.featurise([_question(label=None)], TOKENIZER, 16, train=True)
    assert "label" not in unlabelled.arrays


def test_the_beginning_of_the_prompt_is_cut_first():
    endings = ("d", "d e", "d e f a b c")
    (feature,) = SWAG.featurise([_question(endings=endings)], TOKENIZER, 7, train=True)
    assert feature.arrays["tokens"].tolist() == [
        [CLS, A, B, C, SEP, D, SEP],
        [CLS, B, C, SEP, D, E, SEP],
        [CLS, SEP, D, E, F, A, SEP],
    ]
    assert feature.cut
    for endings in (("d",), ("d", "d e")):
        (feature,) = SWAG.featurise([_question(endings=endings)], TOKENIZER, 7, train=False)
        assert feature.cut == (len(endings) == 2)


def test_the_best_ending_and_the_score():
    questions = [_question(label=1), _question(label=0)]
    features = SWAG.featurise(questions, TOKENIZER, 16, train=False)
    outputs = [{"logits": np.array([0.0, 3.0])}] * 2
    predictions = SWAG.decode(questions, features, outputs)
    assert predictions == [1, 1]
    assert SWAG.score(questions, predictions) == {"accuracy": 0.5}
    with pytest.raises(UserError, match="x:1: without a label"):
        SWAG.score([_question(label=None)], [0])


def test_baseline_is_the_most_frequent_label():
    train = [_question(label=label) for label in (0, 1, 1)]
    assert SWAG.baseline(train, train[:2]) == [1, 1]


def test_predictions_are_written_as_the_released_code_does_and_read(tmp_path):
    questions = [Question(str(i), "p", ("a", "b", "c", "d")) for i in range(3)]
    (path,) = SWAG.write(tmp_path, "test", questions, [3, 0, 2])
    assert path.name == "test_predictions.csv"
    assert path.read_text() == ",pred\n0,3\n1,0\n2,2\n"
    assert SWAG.read_predictions(path, questions) == [3, 0, 2]
    with pytest.raises(UserError, match="3 predictions for 2 examples"):
        SWAG.read_predictions(path, questions[:2])
    path.write_text(",pred\n2,2\n0,3\n1,0\n")  # the row number says whose it is
    assert SWAG.read_predictions(path, questions) == [3, 0, 2]
    path.write_text(",pred\n0,3\n0,0\n2,2\n")
    with pytest.raises(UserError, match=r"\.csv:3: a second prediction for index 0"):
        SWAG.read_predictions(path, questions)
    path.write_text(",pred\n0,4\n")
    with pytest.raises(UserError, match=r"\.csv:2: '4' is none of 0, 1, 2, 3"):
        SWAG.read_predictions(path, questions[:1])
    assert SWAG.plot(tmp_path / "p.png", questions, [0, 0, 0]) is None


def test_rows_are_stored():
    for row in (SWAG, CODAH, _custom(endings="x,y")):
        assert tasks.from_dict(json.loads(json.dumps(tasks.to_dict(row)))) == row
    assert isinstance(SWAG, Choice)


def test_a_batch_goes_through_the_objective():
    encoder = EncoderBackbone(TOKENIZER.vocab_size, layers=1, width=8, heads=2, feed_forward=8)
    features = SWAG.featurise([_question(), _question("a", ("b c d", "e"))], TOKENIZER, 32, True)
    batch = collate([feature.arrays for feature in features], 4, PAD, ladder(32))
    assert batch["tokens"].shape == (4, 2, 16) and batch["lengths"].shape == (4, 2)
    objective = SWAG.objective(Body(encoder))
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert jax.eval_shape(objective.predict, params, batch)["logits"].shape == (4, 2)
