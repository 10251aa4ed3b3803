"""Scores: values worked out by hand, the degenerate cases, and the definitions taken literally."""

import itertools
import math
import random
import statistics
import warnings

import pytest

from bert_jax import tasks
from bert_jax.tasks import metrics
from bert_jax.tasks.metrics import accuracy, f1, macro_f1, matthews, pearson, set_f1, spearman


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# By hand.


def test_counts_worked_out_by_hand():
    gold, predicted = list("1111000000"), list("1110110000")  # TP 3, FN 1, FP 2, TN 4
    assert accuracy(gold, predicted) == 0.7
    assert f1(gold, predicted, "1") == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert f1(gold, predicted, "0") == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))
    assert macro_f1(gold, predicted, "01") == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert matthews(gold, predicted) == pytest.approx((3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5))


def test_ranks_worked_out_by_hand():
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert pearson([1, 2, 3, 4], [1, 8, 27, 64]) < 0.96
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, squared deviations 4.5 and 5.
    assert spearman([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_sets_worked_out_by_hand():
    gold, predicted = [("a", "b"), (), ("b",)], [("a",), ("b",), ("b",)]
    assert set_f1(gold, predicted, "abc", "micro") == pytest.approx(2 * 2 / (3 + 3))
    assert set_f1(gold, predicted, "abc", "macro") == pytest.approx((1 + 0.5 + 0) / 3)
    assert accuracy(gold, predicted) == pytest.approx(1 / 3)


# Degenerate cases.


@pytest.mark.parametrize(("gold", "predicted"), [("1010", "1111"), ("1111", "1010"), ("11", "11")])
def test_matthews_of_one_class_is_zero(gold, predicted):
    assert matthews(gold, predicted) == 0


def test_f1_of_a_class_that_never_occurs_is_zero():
    assert f1("00", "00", "1") == 0
    assert f1("11", "00", "1") == 0
    assert macro_f1("00", "00", "01") == 0.5


@pytest.mark.parametrize("score", [pearson, spearman])
@pytest.mark.parametrize(
    "constant", [[2.0] * 4, [0.1 + 0.2, 0.3, 0.3, 0.3], [1.0, math.nan, 2, 3], [1, math.inf, 2, 3]]
)
def test_correlation_with_what_has_no_spread_is_zero(score, constant):
    assert score([1.0, 2, 3, 5], constant) == 0
    assert score(constant, [1.0, 2, 3, 5]) == 0


def test_of_nothing_is_zero():
    scores = [accuracy([], []), f1([], [], 1), macro_f1([], [], []), matthews([], [])]
    scores += [pearson([], []), spearman([], []), pearson([1], [1])]
    scores += [set_f1([], [], "ab", "micro"), set_f1([], [], [], "macro")]
    assert scores == [0] * 9


def test_lengths_must_agree():
    for score in (accuracy, matthews):
        with pytest.raises(ValueError, match="zip"):
            score("10", "1")


# Against the definitions, taken literally.


def _f1(gold, predicted, positive):
    pairs = list(zip(gold, predicted, strict=True))
    true = len([1 for g, p in pairs if p == positive and g == positive])
    called = len([1 for _, p in pairs if p == positive])
    there = len([1 for g, _ in pairs if g == positive])
    if not true:
        return 0.0
    precision, recall = true / called, true / there
    return 2 * precision * recall / (precision + recall)


def _matthews(gold, predicted, classes):
    # Gorodkin's R_K: covariances of the indicators of each class.
    def covariance(x, y):
        total = 0.0
        for c in classes:
            a, b = [float(v == c) for v in x], [float(v == c) for v in y]
            total += sum(
                (i - statistics.mean(a)) * (j - statistics.mean(b))
                for i, j in zip(a, b, strict=True)
            )
        return total

    below = covariance(gold, gold) * covariance(predicted, predicted)
    return covariance(gold, predicted) / math.sqrt(below) if below > 1e-12 else 0.0


def _pearson(x, y):
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return statistics.correlation(x, y)


def _ranks(values):
    below = [sum(v < value for v in values) for value in values]
    same = [sum(v == value for v in values) for value in values]
    return [b + (s + 1) / 2 for b, s in zip(below, same, strict=True)]


def test_labels_against_the_definitions():
    rng = random.Random(0)
    for _ in range(300):
        classes = "abcd"[: rng.randint(2, 4)]
        count = rng.randint(1, 20)
        gold, predicted = (rng.choices(classes, k=count) for _ in range(2))
        assert accuracy(gold, predicted) == statistics.mean(
            float(g == p) for g, p in zip(gold, predicted, strict=True)
        )
        for c in classes:
            assert f1(gold, predicted, c) == pytest.approx(_f1(gold, predicted, c))
        mean = statistics.mean(_f1(gold, predicted, c) for c in classes)
        assert macro_f1(gold, predicted, classes) == pytest.approx(mean)
        expected = _matthews(gold, predicted, classes)
        assert matthews(gold, predicted) == pytest.approx(expected, abs=1e-9)


def test_numbers_against_the_definitions():
    rng = random.Random(1)
    for _ in range(300):
        count = rng.randint(2, 20)
        # Few values, so that there are ties and constants.
        x, y = ([rng.randint(0, 4) / 2 for _ in range(count)] for _ in range(2))
        assert pearson(x, y) == pytest.approx(_pearson(x, y), abs=1e-9)
        assert spearman(x, y) == pytest.approx(_pearson(_ranks(x), _ranks(y)), abs=1e-9)


def test_sets_against_the_definitions():
    rng = random.Random(2)
    for _ in range(200):
        classes = "abcd"[: rng.randint(1, 4)]
        count = rng.randint(1, 10)
        gold, predicted = (
            [tuple(c for c in classes if rng.random() < 0.4) for _ in range(count)]
            for _ in range(2)
        )
        each = [_f1([c in g for g in gold], [c in p for p in predicted], True) for c in classes]
        assert set_f1(gold, predicted, classes, "macro") == pytest.approx(statistics.mean(each))
        places = list(itertools.product(range(count), classes))
        every = _f1([c in gold[i] for i, c in places], [c in predicted[i] for i, c in places], True)
        assert set_f1(gold, predicted, classes, "micro") == pytest.approx(every)


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=tasks.TASKS)
def test_of_nothing_every_score_is_zero(task):
    scores = task.score([], [])
    assert scores[task.metric] == 0 and set(scores.values()) == {0}


def test_a_number_at_the_threshold_is_positive():
    """Two texts of KLUE's STS mean the same from 3.0 on."""
    assert metrics.of_numbers("f1", [[3.0], [2.9]], [[3.0], [2.0]], 3.0) == 1.0
