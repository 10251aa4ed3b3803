"""Questions are read and checked; answers are decided, scored and written as released."""

import dataclasses
import json

import numpy as np
import pytest
from data_packs import pack

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.reports.finetuning import write_results
from bert_jax.tasks import squad
from bert_jax.tasks.base import Source, hold_out
from bert_jax.tasks.squad import Answer, Answering
from bert_jax.tasks.squad_read import Question

SQUAD1, SQUAD2, KORQUAD = squad.TASKS


# Reading


def article(*questions, context="Seoul is the capital of Korea.", title="Seoul"):
    return {"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}


def node(key, text, start, **more):
    answers = [{"text": text, "answer_start": start}] if text is not None else []
    return {"id": key, "question": f"Question {key}?", "answers": answers, **more}


def write_json(path, *articles):
    path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")
    return path


def read(path, row=SQUAD1, split="train"):
    return row.read(Source(files={split: str(path)}), split)


def test_reads_the_official_names_of_a_folder(tmp_path):
    assert SQUAD2.read(Source(str(tmp_path)), "train") is None
    more = node("b", None, 0, is_impossible=True, plausible_answers=[{"text": "x"}])
    write_json(tmp_path / "train-v2.0.json", article(node("a", "Seoul", 0), more))
    assert SQUAD2.read(Source(str(tmp_path)), "train") == [
        Question("a", "Question a?", "Seoul is the capital of Korea.", (("Seoul", 0),), False,
                 "Seoul", f"{tmp_path / 'train-v2.0.json'}: question a of 'Seoul'"),
        Question("b", "Question b?", "Seoul is the capital of Korea.", (), True,
                 "Seoul", f"{tmp_path / 'train-v2.0.json'}: question b of 'Seoul'"),
    ]  # fmt: skip


def test_a_wrong_start_is_corrected_to_the_nearest_place(tmp_path, capsys):
    context = "one two one two one\u202ftwo"
    path = write_json(
        tmp_path / "t.json",
        article(
            node("exact", "two", 4), node("off", "two", 11), node("far", "two", 99),
            node("before", "one", -5), node("space", "one  two", 15), context=context,
        ),
    )  # fmt: skip
    found = [question.answers[0] for question in read(path)]
    assert found == [("two", 4), ("two", 12), ("two", 20), ("one", 0), ("one\u202ftwo", 16)]
    assert all(context[start : start + len(text)] == text for text, start in found)
    assert capsys.readouterr().err == (
        f"{path}: questions corrected: answer_start was off: 4 (first: off)\n"
    )


def test_what_training_cannot_use_is_left_out_and_counted(tmp_path, capsys):
    path = write_json(
        tmp_path / "t.json",
        article(
            node("good", "Seoul", 0), node("a", "Busan", 0), node("b", "Daegu", 3),
            node("c", " ", 5), {**node("empty", "Seoul", 0), "question": " "},
        ),
        article(node("blank", "x", 0), context="\n"),
    )  # fmt: skip
    assert [question.id for question in read(path)] == ["good"]
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: questions left out: the answer is not in the context: 3 (first: a)",
        f"{path}: questions left out: the question or its context is empty: 2 (first: empty)",
    ]
    assert len(read(path, split="dev")) == 6  # all are scored
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "t.json:1: not JSON: "),
        ("[]", "t.json lacks 'data' (a list); is this SQuAD's JSON?"),
        ({"data": [{"title": "x"}]}, "data[0] lacks 'paragraphs' (a list)"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "data[0].paragraphs[0] lacks 'context'"),
        ({"data": [article(3)]}, "data[0].paragraphs[0].qas[0] is not an object"),
        ({"data": [article({"id": "a"})]}, "qas[0] lacks 'question' (a text)"),
        ({"data": [article({"id": "a", "question": "q"})]}, "qas[0] lacks 'answers' (a list)"),
        ({"data": [article(node("a", "Seoul", "0"))]}, "lacks 'answer_start' (a whole number)"),
        ({"data": [article(node("a", "\ud800", 0))]}, "[0].text holds half a surrogate pair"),
        ({"data": [article(node("a", "Seoul", 0), node("a", "is", 6))]},
         "question a of 'Seoul' comes twice; give each question an id of its own"),
        ({"data": [article(node("a", None, 0))]}, "question a of 'Seoul' has no answers"),
        ({"data": [article(node("a", None, 0, is_impossible=True))]},
         "is_impossible; such questions need task=squad2"),
        ({"data": []}, "t.json has no question that can be used"),
        (b"\xff\xfe", "t.json:1: not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_not_squad_is_one_line(tmp_path, content, message):
    path = tmp_path / "t.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read(path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_test_split_needs_no_answers(tmp_path):
    path = write_json(tmp_path / "t.json", article({"id": 7, "question": "q"}))
    assert read(path, split="test")[0].id == "7"
    assert not read(path, SQUAD2, "test")[0].impossible


def test_fit_needs_both_kinds():
    where = "a: b.json: question 7 of 'On: question 8'"
    has = Question("a", "q", "c", (("c", 0),), where=where)
    none = Question("b", "q", "c", impossible=True, where=where)
    assert SQUAD1.fit([has]) == SQUAD1 and SQUAD2.fit([has, none]) == SQUAD2
    with pytest.raises(UserError, match=r"^a: b\.json: there is nothing to learn"):
        SQUAD2.fit([none])
    with pytest.raises(UserError, match=r"^a: b\.json: every training .* use task=squad1"):
        SQUAD2.fit([has])


def test_reads_tfds_rows(monkeypatch):
    row = {
        "id": "a", "title": "Seoul", "context": "Seoul is big.", "question": "What?",
        "answers": {"text": ["Seoul", "big"], "answer_start": [0, 9]},
    }  # fmt: skip
    asked = []

    def read_tfds(name, split):
        asked.append((name, split))
        return iter([(f"{name}/{split}:0", row)]) if split != "test" else None

    monkeypatch.setattr(squad, "read_tfds", read_tfds)
    source = Source("tfds:squad/v1.1")
    assert SQUAD1.read(source, "dev") == [
        Question("a", "What?", "Seoul is big.", (("Seoul", 0), ("big", 9)), False, "Seoul",
                 "tfds:squad/v1.1 dev: question a of 'Seoul'")
    ]  # fmt: skip
    assert SQUAD1.read(source, "test") is None
    assert asked == [("squad/v1.1", "dev"), ("squad/v1.1", "test")]
    del row["answers"]
    with pytest.raises(UserError, match=r"squad/v1\.1/train:0 lacks 'answers'"):
        SQUAD1.read(source, "train")


# Rows


def test_rows_keep_through_json():
    for row in (*squad.TASKS, Answering.custom(unanswerable=True)):
        assert tasks.from_dict(json.loads(json.dumps(tasks.to_dict(row)))) == row


# Scores


def test_the_tuned_threshold_gives_the_best_f1():
    examples = [Question(str(i), "q", "c", (("yes", 0),) * (i < 2)) for i in range(4)]
    answers = [
        Answer(text, ((text, 1.0, 0.0, 0.0),), odds)
        for text, odds in (("yes", -2.0), ("no", 1.0), ("no", 0.5), ("no", 3.0))
    ]
    row = SQUAD2.tuned(examples, answers)
    assert row.threshold == -2.0
    decided = row.with_threshold(answers)
    score = row.score(examples, decided)
    assert [a.text for a in decided] == ["yes", "", "", ""]
    assert score["f1"] == score["best_f1"] == 0.75 and score["best_f1_thresh"] == -2.0
    # Where no answer pays, none is given; equal odds are not parted by their order.
    for odds in ([1.0, 2.0, 3.0, 4.0], [1.0] * 4):
        wrong = [Answer("no", (("no", 1.0, 0.0, 0.0),), o) for o in odds]
        wrong[0] = dataclasses.replace(
            wrong[0], n_best=(("yes" if odds[3] == 1 else "no", 1, 0, 0),)
        )
        row = SQUAD2.tuned(examples, wrong)
        assert row.score(examples, row.with_threshold(wrong))["f1"] == 0.5
    assert SQUAD1.tuned(examples, answers) == SQUAD1


def test_baselines():
    context = "The Normans came from Denmark. They spoke French. Rollo led them."
    example = Question("a", "What language was spoken by them, French?", context)
    assert SQUAD1.baseline([], [example])[0].text == "They spoke French."
    score = SQUAD2.score([example], SQUAD2.baseline([], [example]))
    assert (score["f1"], score["best_f1"]) == (1, 1)


def test_korquad_counts_characters(tmp_path):
    context = "서울은 한국의 수도이다."
    path = write_json(tmp_path / "k.json", article(node("a", "서울", 0), context=context))
    examples = read(path, KORQUAD, "dev")
    assert KORQUAD.metric == "f1"
    score = KORQUAD.score(examples, [Answer("서울은")])
    assert score == {"exact": 0, "f1": pytest.approx(0.8), "total": 1}


# Files


def test_files_are_the_official_ones(tmp_path):
    examples = [Question("a", "q", "서울 x", (("서울", 0),)), Question("b", "q", "x")]
    n_best = (("서울", 0.75, 2.0, 1.0), ("", 0.25, 0.5, 0.5))
    answers = [Answer("서울", n_best, -2.0, 0, 2), Answer("", n_best, 0.25, 0, 2)]
    paths = SQUAD2.write(tmp_path, "dev", examples, answers)
    names = ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    assert [path.name for path in paths] == names
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    assert contents[0] == {"a": "서울", "b": ""} and contents[2] == {"a": -2.0, "b": 0.25}
    assert contents[1]["a"][0] == {
        "text": "서울", "probability": 0.75, "start_logit": 2.0, "end_logit": 1.0
    }  # fmt: skip
    assert SQUAD2.read_predictions(paths[0], examples) == [
        Answer("서울", (), -2.0), Answer("", (), 0.25)
    ]  # fmt: skip
    written = SQUAD1.write(tmp_path, "test", examples, answers)
    assert [path.name for path in written] == ["test_" + name for name in names[:2]]
    # Odds of another split are not taken for this one's.
    assert SQUAD2.read_predictions(written[0], examples)[0].null_odds is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*names, "test_predictions.json", "test_nbest_predictions.json"]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "predictions.json:1: not JSON"),
        ('["a"]', "predictions.json must be an object of texts by question id"),
        ('{"a": 1}', "predictions.json must be an object of texts"),
        ('{"b": "x"}', r"predictions.json lacks 1 of 1 questions \(first: a\)"),
        (None, "predictions.json cannot be read: No such file"),
    ],
)
def test_a_wrong_file_of_predictions(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        SQUAD1.read_predictions(path, [Question("a", "q", "c")])


# Real questions


def test_real_questions(tmp_path):
    """Spans of SQuAD 2.0 go to pieces and back; files score as the answers in memory do."""
    path = pack("tasks") / "squad" / "squad-v2.0-6078.json"
    questions = read(path, SQUAD2)
    assert len(questions) == 6078 and sum(q.impossible for q in questions) == 3168
    train, dev = hold_out(questions, 0.2)
    assert {q.group for q in train}.isdisjoint(q.group for q in dev)
    assert len({q.group for q in questions}) == 16 and len(train) + len(dev) == 6078

    some = questions[::6]
    vocabularies = pack("vocab_and_samples") / "vocab"
    for name in ("bert-base-uncased", "bert-base-cased"):
        tokenizer = load_tokenizer(vocabularies / name)
        row = dataclasses.replace(SQUAD2, max_answer=100)
        labelled = row.featurise(some, tokenizer, 384, True)
        features = row.featurise(some, tokenizer, 384, False)
        outputs = []
        for feature in labelled:
            ends = np.full((2, len(feature.arrays["tokens"])), -5.0)
            ends[[0, 1], [feature.arrays["start"], feature.arrays["end"]]] = 5
            outputs.append({"start": ends[0], "end": ends[1]})
        answers = row.decode(some, features, outputs)
        score = row.score(some, answers)
        assert score["NoAns_exact"] == 1
        assert score["HasAns_exact"] > 0.99  # "Japan" in "Japanese" is no piece
        assert all(q.context[a.start : a.end] == a.best for q, a in zip(some, answers, strict=True))

    tuned = SQUAD2.tuned(some, answers)
    paths = tuned.write(tmp_path, "dev", some, tuned.with_threshold(answers))
    from_file = tuned.score(some, tuned.read_predictions(paths[0], some))
    assert from_file == tuned.score(some, tuned.with_threshold(answers))
    assert tuned.plot(tmp_path / "threshold.png", some, answers).stat().st_size > 10_000


def test_test_predictions_are_decided_by_the_tuned_threshold(tmp_path, monkeypatch):
    """The one of the best F1 on dev, whatever the order of the splits."""
    some = [Question(str(i), "q", "c", (("yes", 0),)) for i in range(2)]
    answers = [Answer("", (("yes", 1.0, 0.0, 0.0),), odds) for odds in (2.0, 2.5)]
    hidden = [Question("t", "q", "c", ())]
    answer = [Answer("", (("Rome", 1.0, 0.0, 0.0),), 2.0)]
    monkeypatch.setattr("bert_jax.reports.finetuning.read_metrics", lambda workdir: [])
    monkeypatch.setattr("bert_jax.reports.finetuning.plot_curves", lambda *arguments: None)
    monkeypatch.setattr("bert_jax.reports.finetuning.goodput.shares", lambda workdir: {})
    write_results(
        tmp_path, tmp_path, SQUAD2, {"train": some, "test": hidden, "dev": some},
        {"test": answer, "dev": answers}, {},
    )  # fmt: skip
    written = json.loads((tmp_path / "predictions" / "test_predictions.json").read_text())
    assert written == {"t": "Rome"}
    assert json.loads((tmp_path / "task.json").read_text())["threshold"] == 2.5
