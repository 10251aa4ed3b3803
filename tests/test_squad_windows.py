"""Passages in windows, answers by their characters, and the best of them as released."""

import dataclasses
import math
import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from bert_jax.common.errors import UserError
from bert_jax.data.tokenizer import Tokenizer, wordpiece_tokenizer
from bert_jax.tasks import squad
from bert_jax.tasks.squad_read import Question
from bert_jax.tasks.squad_windows import Pieces, encode, windows

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SQUAD1, SQUAD2, _ = squad.TASKS


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
