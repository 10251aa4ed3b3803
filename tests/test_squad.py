"""Questions are read, cut into windows, answered by characters, and written as released."""

import dataclasses
import json
import math
import unicodedata

import numpy as np
import pytest
from data_packs import pack
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from bert_jax import tasks
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer, wordpiece_tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks import squad
from bert_jax.tasks.base import Source, hold_out
from bert_jax.tasks.squad import Answer, Answering
from bert_jax.tasks.squad_read import Question
from bert_jax.tasks.squad_windows import Pieces, encode, windows

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SQUAD1, SQUAD2, KORQUAD = squad.TASKS


@pytest.fixture(scope="module")
def words():
    """A tokenizer whose pieces are words: w0 .. w49."""
    return wordpiece_tokenizer([*SPECIAL, *(f"w{i}" for i in range(50))], lowercase=True)


def text_of(*numbers):
    return " ".join(f"w{i}" for i in numbers)


def logits(feature, spans, null=0.0):
    """Outputs of a feature: `spans` {(first piece, last piece): (start, end)}, else -10."""
    length = len(feature.arrays["tokens"])
    start, end = np.full((2, length + 3), -10, np.float32)
    start[0] = end[0] = null / 2
    for (first, last), (start_logit, end_logit) in spans.items():
        start[feature.info.first + first] = start_logit
        end[feature.info.first + last] = end_logit
    return {"start": start, "end": end}


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
        ({"data": [article(node("a", "\ud800", 0))]}, "'text' holds half a surrogate pair"),
        ({"data": [article(node("a", "Seoul", 0), node("a", "is", 6))]},
         "question a of 'Seoul' comes twice; give each question an id of its own"),
        ({"data": [article(node("a", None, 0))]}, "question a of 'Seoul' has no answers"),
        ({"data": [article(node("a", None, 0, is_impossible=True))]},
         "is_impossible; such questions need task=squad2"),
        ({"data": []}, "t.json has no question that can be used"),
        (b"\xff\xfe", "t.json: not UTF-8"),
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
    has = Question("a", "q", "c", (("c", 0),))
    none = Question("b", "q", "c", impossible=True)
    assert SQUAD1.fit([has]) == SQUAD1 and SQUAD2.fit([has, none]) == SQUAD2
    with pytest.raises(UserError, match="nothing to learn"):
        SQUAD2.fit([none])
    with pytest.raises(UserError, match="every training question has an answer; use task=squad1"):
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
    assert asked == [("squad/v1.1", "validation"), ("squad/v1.1", "test")]
    del row["answers"]
    with pytest.raises(UserError, match=r"squad/v1\.1/train:0 lacks 'answers'"):
        SQUAD1.read(source, "train")


# Rows


def test_rows_keep_through_json():
    for row in (*squad.TASKS, Answering.custom(unanswerable=True, threshold=-1.5)):
        assert tasks.from_dict(json.loads(json.dumps(tasks.to_dict(row)))) == row


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 3}, "custom.labels is unknown; known: unanswerable, scorer, doc_stride"),
        ({"doc_stride": 0}, "custom.doc_stride=0 must be at least 1"),
        ({"max_query": "64"}, "custom.max_query='64' must be like 64"),
        ({"scorer": "bleu"}, "custom.scorer='bleu' is unknown; known: squad, korquad"),
    ],
)
def test_custom_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        Answering.custom(**settings)


# Windows and features


def some_pieces(count):
    places = np.arange(count)
    return Pieces(places.astype(np.int32), np.stack([places * 2, places * 2 + 1], axis=1))


def test_max_context_of_the_released_example():
    """The man went to the store and bought a gallon of milk: 12 words, room 5, stride 3."""
    found = list(windows(some_pieces(12), room=5, stride=3, first=7))
    assert [start for start, _ in found] == [0, 3, 6, 9]
    flags = [w.max_context.astype(int).tolist() for _, w in found]
    assert flags == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1]]
    assert found[3][1].offsets.tolist() == [[18, 19], [20, 21], [22, 23]]


def _reference_windows(count, room, stride):
    """run_squad.py, literally: spans, and for each piece the span of most context."""
    spans, start = [], 0
    while start < count:
        length = min(count - start, room)
        spans.append((start, length))
        if start + length == count:
            break
        start += min(length, stride)
    best = []
    for position in range(count):
        best_score, best_index = None, None
        for index, (start, length) in enumerate(spans):
            end = start + length - 1
            if not start <= position <= end:
                continue
            score = min(position - start, end - position) + 0.01 * length
            if best_score is None or score > best_score:
                best_score, best_index = score, index
        best.append(best_index)
    return spans, best


def test_windows_equal_the_released_ones():
    rng = np.random.default_rng(0)
    for _ in range(100):
        count, room, stride = (int(rng.integers(*limits)) for limits in ((0, 60), (1, 25), (1, 20)))
        spans, best = _reference_windows(count, room, stride)
        found = list(windows(some_pieces(count), room, stride, 0))
        assert [(start, len(w.offsets)) for start, w in found] == spans
        for number, (start, w) in enumerate(found):
            expected = [best[start + k] == number for k in range(len(w.offsets))]
            assert w.max_context.tolist() == expected


def test_features_of_a_training_question(words):
    row = dataclasses.replace(SQUAD1, doc_stride=2, max_query=2)
    context = text_of(10, 11, 12, 13, 14, 15)
    example = Question("a", text_of(1, 2, 3), context, ((text_of(12, 13), 8),))
    features = row.featurise([example], words, max_length=9, train=True)
    cls, sep, base = words.cls_id, words.sep_id, len(SPECIAL)
    expected = [([10, 11, 12, 13], 6, 7), ([12, 13, 14, 15], 4, 5)]
    assert len(features) == 2
    for feature, (window, start, end) in zip(features, expected, strict=True):
        tokens = [cls, base + 1, base + 2, sep, *(base + i for i in window), sep]
        assert feature.arrays["tokens"].tolist() == tokens
        assert feature.arrays["segments"].tolist() == [0] * 4 + [1] * 5
        assert (feature.arrays["start"], feature.arrays["end"]) == (start, end)
        assert {array.dtype for array in feature.arrays.values()} == {np.dtype(np.int32)}
    # Cut by the window's edge, or none at all: [CLS].
    cut = dataclasses.replace(example, answers=((text_of(11, 12), 4),))
    labels = [
        [(int(f.arrays["start"]), int(f.arrays["end"])) for f in made]
        for made in (
            row.featurise([cut], words, 9, True),
            SQUAD2.featurise([dataclasses.replace(cut, impossible=True)], words, 20, True),
        )
    ]
    assert labels == [[(5, 6), (0, 0)], [(0, 0)]]


def test_no_room_for_the_passage(words):
    example = Question("a", text_of(1, 2, 3), text_of(4), where="dev.json: question a")
    assert len(SQUAD1.featurise([example], words, 7, False)) == 1
    message = "dev.json: question a: max_length=6 leaves no room for the passage; raise it above 6"
    with pytest.raises(UserError, match=message):
        SQUAD1.featurise([example], words, 6, False)


def test_a_passage_of_any_length(words):
    context = text_of(*([1] * 20_000), 2)
    example = Question("a", text_of(3), context, (("w2", len(context) - 2),))
    features = SQUAD1.featurise([example], words, 384, True)
    assert len(features) == 1 + math.ceil((20_001 - 380) / 128)
    assert [int(f.arrays["start"]) > 0 for f in features].count(True) == 1


# Characters


def wordpiece(*pieces, lowercase):
    return wordpiece_tokenizer([*SPECIAL, *pieces], lowercase=lowercase)


KOREAN = ("서울", "##에서", "##특별시", "한강", "##을", "café", "cafe", "##é", "##e", "x", "z")


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(
    ("text", "answer", "cut"),
    [
        ("한강을 서울에서", "서울", "서울"),  # the particle is another piece
        ("서울특별시에서 x", "서울특별시", "서울특별시"),
        ("x 서울에서", "에서", "에서"),
        ("x\u202fz", "z", "z"),
        ("x\u200b z", "x", "x"),
        ("x😀 z", "😀", "x😀"),  # an unknown word is one piece
        ("x中z", "中", "中"),
        ("«x» z", "x", "x"),
        ("x café z", "café", "café"),
    ],
)
def test_an_answer_is_cut_by_characters(text, answer, cut, lowercase):
    tokenizer = wordpiece(*KOREAN, lowercase=lowercase)
    pieces = encode(tokenizer, [text])[text]
    begin = text.index(answer)
    first, last = pieces.span(begin, begin + len(answer))
    assert text[pieces.offsets[first, 0] : pieces.offsets[last, 1]] == cut


@pytest.mark.parametrize(
    ("composed", "cuts"),
    [
        ("서울에서 café x", ["서울", "에서", "café", "x"]),
        ("x 한강을 cafe", ["x", "한강", "을", "cafe"]),
        ("각각 x́ z", ["각", "각", "x́", "z"]),
    ],
)
def test_decomposed_text_is_cut_between_letters(composed, cuts):
    """Stripped accents, and Jamo that are composed, stay with the letter they belong to."""
    text = unicodedata.normalize("NFD", composed)
    tokenizer = wordpiece(*KOREAN, "각", "##각", lowercase=True)
    pieces = encode(tokenizer, [text])[text]
    found = [text[begin:end] for begin, end in pieces.offsets]
    assert [unicodedata.normalize("NFC", cut) for cut in found] == cuts
    assert "".join(found) == text.replace(" ", "")


def test_a_jamo_vocabulary_gives_whole_syllables():
    """An uncased vocabulary of Jamo, such as bert-base-uncased's, has several pieces a syllable."""
    jamo = unicodedata.normalize("NFD", "서울")
    tokenizer = wordpiece(*jamo, *(f"##{c}" for c in jamo), lowercase=True)
    text = "서울서"
    pieces = encode(tokenizer, [text])[text]
    assert len(pieces.ids) == 7
    assert pieces.offsets[list(pieces.span(0, 2))].tolist() == [[0, 1], [1, 2]]


def test_a_sentencepiece_answer_begins_after_the_space():
    vocabulary = [(t, 0.0) for t in ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")]
    vocabulary += [("▁서울", -1.0), ("에서", -1.0), ("▁", -2.0), ("x", -2.0)]
    backend = Backend(models.Unigram(vocabulary, 1, False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    text = "x 서울에서"
    pieces = encode(Tokenizer(backend), [text])[text]
    assert [text[b:e] for b, e in pieces.offsets] == ["x", "x", "서울", "에서"]


# Answers


def predict(row, example, tokenizer, outputs, max_length=384):
    features = row.featurise([example], tokenizer, max_length, False)
    return row.decode([example], features, [o(f) for o, f in zip(outputs, features, strict=True)])[
        0
    ]


def test_the_answer_is_the_best_valid_span(words):
    context = text_of(*range(10, 20))
    example = Question("a", text_of(1), context)
    spans = {(3, 4): (5, 4), (6, 2): (9, 8)}  # the second ends before it starts
    answer = predict(SQUAD1, example, words, [lambda f: logits(f, spans)])
    # start 6 (9) with end 4 (4) is not valid, nor with 2; 3 with 4 is 9, 6 with any other end -1.
    assert answer.text == text_of(13, 14) == context[answer.start : answer.end]
    assert answer.null_odds is None
    assert answer.n_best[0][2:] == (5, 4) and len(answer.n_best) == 20
    assert sum(p for _, p, *_ in answer.n_best) == pytest.approx(1)
    short = dataclasses.replace(SQUAD1, max_answer=1)
    assert predict(short, example, words, [lambda f: logits(f, {(3, 4): (5, 4)})]).text in {
        text_of(13), text_of(14)
    }  # fmt: skip


def test_the_same_text_is_listed_once(words):
    example = Question("a", text_of(1), text_of(10, 11, 10))
    spans = {(0, 0): (5, 5), (2, 2): (4, 4)}
    answer = predict(SQUAD1, example, words, [lambda f: logits(f, spans)])
    assert [text for text, *_ in answer.n_best].count("w10") == 1
    assert (answer.text, answer.start) == ("w10", 0)


def test_the_null_score_is_the_least_over_the_windows(words):
    row = dataclasses.replace(SQUAD2, doc_stride=3)
    example = Question("a", text_of(1), text_of(*range(10, 16)))
    outputs = [
        lambda f: logits(f, {(1, 1): (3, 3)}, null=9),
        lambda f: logits(f, {}, null=5),
    ]
    answer = predict(row, example, words, outputs, max_length=7)
    assert answer.null_odds == 5 - 6 and answer.text == "w11"
    assert ("", 2.5, 2.5) in [(text, s, e) for text, _, s, e in answer.n_best]
    # "" exactly where the odds are above the threshold.
    for threshold, text in ((-1.0, "w11"), (-1.001, "")):
        changed = dataclasses.replace(row, threshold=threshold)
        assert predict(changed, example, words, outputs, 7).text == text
        assert changed.with_threshold([answer])[0].text == text
    again = row.with_threshold(dataclasses.replace(row, threshold=-9.0).with_threshold([answer]))
    assert again == [answer]


@pytest.mark.parametrize("row", [SQUAD1, SQUAD2])
def test_nothing_to_choose_is_no_answer(row, words):
    """google-research/bert#476: no valid span among the best."""
    row = dataclasses.replace(row, n_best=1)
    example = Question("a", text_of(1, 2), text_of(10, 11))
    backwards = {(1, 0): (5, 5)}
    answer = predict(row, example, words, [lambda f: logits(f, backwards, null=2)])
    assert answer.text == "" and row.score([example], [answer])["total"] == 1
    assert answer.null_odds == (2 if row.unanswerable else None)
    blank = Question("b", text_of(1), "\u200b")  # no pieces at all
    assert row.featurise([blank], words, 384, False) == []
    assert row.decode([blank], [], [])[0].text == ""


def _reference_n_best(row, context, features, outputs):
    """The loops of run_squad.py's write_predictions, with a text cut by characters."""
    prelim, score_null = [], 1e6
    for feature, output in zip(features, outputs, strict=True):
        length, window = len(feature.arrays["tokens"]), feature.info
        start_logits, end_logits = (output[k][:length].tolist() for k in ("start", "end"))
        if start_logits[0] + end_logits[0] < score_null:
            score_null = start_logits[0] + end_logits[0]
            null = start_logits[0], end_logits[0]
        order = sorted(range(length), key=lambda i, x=start_logits: x[i], reverse=True)
        ends = sorted(range(length), key=lambda i, x=end_logits: x[i], reverse=True)
        for i in order[: row.n_best]:
            for j in ends[: row.n_best]:
                a, b = i - window.first, j - window.first
                inside = range(len(window.offsets))
                if a not in inside or b not in inside or not window.max_context[a]:
                    continue
                if b < a or b - a + 1 > row.max_answer:
                    continue
                text = context[window.offsets[a][0] : window.offsets[b][1]]
                prelim.append((text, start_logits[i], end_logits[j]))
    prelim.append(("", *null))
    prelim.sort(key=lambda x: x[1] + x[2], reverse=True)
    n_best, seen = [], set()
    for text, start, end in prelim:
        if len(n_best) >= row.n_best:
            break
        if text not in seen:
            seen.add(text)
            n_best.append((text, start, end))
    if "" not in seen:
        n_best.append(("", *null))
    best = next((entry for entry in n_best if entry[0]), None)
    return n_best, score_null - (best[1] + best[2] if best else 0)


def test_answers_equal_the_released_loops(words):
    rng = np.random.default_rng(1)
    for _ in range(60):
        n_best, max_answer, stride = (int(rng.integers(1, top)) for top in (8, 6, 6))
        row = dataclasses.replace(SQUAD2, n_best=n_best, max_answer=max_answer, doc_stride=stride)
        context = text_of(*rng.integers(0, 9, rng.integers(1, 30)))
        example = Question("a", text_of(1), context)
        features = row.featurise([example], words, 12, False)
        # Whole numbers, so that there are ties.
        outputs = [
            {k: rng.integers(-4, 5, 12).astype(np.float32) for k in ("start", "end")}
            for _ in features
        ]
        expected, odds = _reference_n_best(row, context, features, outputs)
        answer = row.decode([example], features, outputs)[0]
        assert [(text, s, e) for text, _, s, e in answer.n_best] == expected
        assert answer.null_odds == odds
        assert answer.text == ("" if odds > 0 else answer.best)


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
        ("{", "predictions.json is not JSON"),
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
