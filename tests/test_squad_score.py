"""EM and F1 equal the official scripts' definitions."""

import random
import string

import numpy as np
import pytest

from bert_jax.tasks import plots
from bert_jax.tasks.squad_score import best_threshold, raw_scores, summary


def scores_of(golds, text, scorer="squad", unanswerable=False):
    return tuple(raw_scores([golds], [text], scorer, unanswerable)[0])


@pytest.mark.parametrize(
    ("golds", "text", "expected"),
    [
        (["The Normans"], "normans!", (1, 1)),  # case, articles, punctuation
        (["Normans in France"], "the  Normans", (0, 0.5)),  # P 1, R 1/3
        (["a b", "c d e"], "c d", (0, 0.8)),  # the best over the answers
        (["to be or to be"], "to to to", (0, 0.5)),  # words count as often as they occur
        (["10-11"], "1011", (1, 1)),  # punctuation joins what it parted
        (["Theatre"], "atre", (0, 0)),  # an article is a whole word
        (["“x”"], "x", (0, 0)),  # only ASCII punctuation goes
        (["France"], "", (0, 0)),
        (["the"], "", (1, 0)),  # SQuAD 1.1: no words in common
    ],
)
def test_squad_1_1_cases(golds, text, expected):
    assert scores_of(golds, text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("golds", "text", "expected"),
    [
        ([], "", (1, 1)),
        ([], "The", (1, 1)),  # nothing is left of it
        ([], "Normans", (0, 0)),
        (["France"], "", (0, 0)),
        (["the", "France"], "", (0, 0)),  # an answer that is only an article does not count
        (["the"], "", (1, 1)),
    ],
)
def test_squad_2_0_cases(golds, text, expected):
    assert scores_of(golds, text, unanswerable=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("서울", "서울에서", (0, 2 / 3)),  # by character: P 1/2, R 1
        ("《토지》", "토지", (1, 1)),
        ("‘AI’ (인공지능)", "ai 인공지능", (1, 1)),
        ("「토지」", "토지", (0, 2 / 3)),  # these are not among the marks
        ("박경리 토지", "박경리토지", (0, 1)),  # spaces count for EM alone
        ("the 책", "책", (0, 0.4)),  # articles stay
        ("1,000명", "1000명", (1, 1)),
    ],
)
def test_korquad_cases(gold, text, expected):
    assert scores_of([gold], text, "korquad") == pytest.approx(expected)


def test_summary_by_kind():
    scores = np.array([[1, 1], [0, 0.5], [1, 1], [0, 0]])
    answerable = np.array([True, True, False, False])
    assert summary(scores, answerable, False) == {"exact": 0.5, "f1": 0.625, "total": 4}
    assert summary(scores, answerable, True) == {
        "exact": 0.5, "f1": 0.625, "total": 4,
        "HasAns_exact": 0.5, "HasAns_f1": 0.75, "HasAns_total": 2,
        "NoAns_exact": 0.5, "NoAns_f1": 0.5, "NoAns_total": 2,
    }  # fmt: skip
    assert "NoAns_f1" not in summary(scores, np.ones(4, bool), True)


def test_best_threshold_by_hand():
    answerable = np.array([True, False, True, False])
    answered = np.ones(4, bool)
    odds = np.array([-3.0, -1.0, 0.5, 2.0])
    # Answered from the lowest odds on: 2, 3, 2, 2.5, 1.5 of 4.
    scores = np.array([1.0, 0.0, 0.5, 0.0])
    assert best_threshold(scores, answered, answerable, odds) == (0.75, -3.0)
    assert best_threshold(np.zeros(4), answered, answerable, odds) == (0.5, 0.0)
    # A threshold that is no better is not taken; an empty answer costs nothing.
    assert best_threshold(scores, odds < -2, answerable, odds) == (0.875, 0.5)


# A literal reference: the definitions, one answer and one threshold at a time.


def _reference_units(text, scorer):
    """(what EM compares, what F1 counts)."""
    if scorer == "korquad":
        for mark in "'\"《》<>〈〉()‘’":
            text = " ".join(text.split(mark))
    kept = ""
    for char in text.lower():
        if char not in string.punctuation:
            kept += char
    words = kept.split()
    if scorer == "squad":
        words = [w for w in words if w not in ("a", "an", "the")]
        return " ".join(words), words
    return " ".join(words), [char for word in words for char in word]


def _reference_one(gold, text, scorer, unanswerable):
    gold_text, gold_units = _reference_units(gold, scorer)
    text, units = _reference_units(text, scorer)
    exact = 1 if gold_text == text else 0
    left, same = list(gold_units), 0
    for unit in units:
        if unit in left:
            left.remove(unit)
            same += 1
    if unanswerable and not (units and gold_units):
        return exact, exact
    return exact, 2 * same / (len(units) + len(gold_units)) if same else 0


def _reference(golds, text, scorer, unanswerable):
    if unanswerable:
        golds = [g for g in golds if _reference_units(g, scorer)[0]] or [""]
    each = [_reference_one(gold, text, scorer, unanswerable) for gold in golds]
    return max(exact for exact, _ in each), max(f1 for _, f1 in each)


WORDS = [
    "The", "a", "an", "theatre", "Paris", "paris,", "(1,895–1943)", "“x”", "'quoted'", "10-11",
    "서울", "서울에서", "《토지》", "〈시〉", "‘강’", "U.S.", "-", "É", "é", "  ", "\u202f", "x\ty",
]  # fmt: skip


def _random_text(rng, longest=4):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(longest + 1)))


@pytest.mark.parametrize("scorer", ["squad", "korquad"])
@pytest.mark.parametrize("unanswerable", [False, True])
def test_scores_equal_the_reference(scorer, unanswerable):
    rng = random.Random(f"{scorer}{unanswerable}")
    fewest = 0 if unanswerable else 1
    golds = [[_random_text(rng) for _ in range(rng.randint(fewest, 3))] for _ in range(600)]
    texts = [rng.choice([_random_text(rng), rng.choice(gold or [""])]) for gold in golds]
    expected = [_reference(g, t, scorer, unanswerable) for g, t in zip(golds, texts, strict=True)]
    scores = raw_scores(golds, texts, scorer, unanswerable)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert {0.0, 1.0} < set(scores[:, 1])  # ones, zeros and what is between


def test_best_thresholds_equal_the_reference():
    """Every threshold tried, with the answers above it made empty and all scored again."""
    rng = random.Random(0)
    for _ in range(40):
        count = rng.randint(1, 12)
        golds = [[_random_text(rng) for _ in range(rng.randrange(3))] for _ in range(count)]
        texts = [rng.choice([_random_text(rng), *gold]) for gold in golds]
        odds = rng.sample(range(-50, 50), count)
        # What is empty after normalisation is an answer all the same: only "" is none.
        golds = [[g for g in gold if _reference_units(g, "squad")[0]] for gold in golds]
        texts = [text if _reference_units(text, "squad")[0] else "" for text in texts]

        def mean_at(threshold, column, golds=golds, texts=texts, odds=odds):
            total = 0.0
            for gold, text, odd in zip(golds, texts, odds, strict=True):
                total += _reference(gold, "" if odd > threshold else text, "squad", True)[column]
            return total / len(golds)

        arrays = np.array([t != "" for t in texts]), np.array([g != [] for g in golds])
        scores = raw_scores(golds, texts, "squad", True)
        for column in (0, 1):
            best, threshold = best_threshold(scores[:, column], *arrays, np.array(odds, float))
            means = [mean_at(t, column) for t in [-99, *sorted(odds)]]
            assert best == pytest.approx(max(means), rel=1e-12)
            if best > means[0] + 1e-9:
                assert mean_at(threshold, column) == pytest.approx(best, rel=1e-12)
            else:
                assert threshold == 0


def test_plots_are_pictures(tmp_path):
    scores = np.array([[1, 1], [0, 0.5], [0, 0.0]])
    flags = np.ones(3, bool), np.array([True, True, False])
    odds = np.array([-1.0, 0.0, 1.0])
    paths = [
        plots.threshold_curves(tmp_path / "a" / "t.png", scores, *flags, odds, 0.0),
        plots.f1_by_length(tmp_path / "l.png", [["x y"], ["z"], []], scores[:, 1], "squad"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
