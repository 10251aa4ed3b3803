"""Scores of predictions against gold labels or numbers, as fractions; the degenerate cases are 0.

Definitions: van Rijsbergen's F1; Matthews 1975, for any number of classes Gorodkin 2004; Pearson
and Spearman from scipy.stats. Gold labels come first; both sequences have the same length, and of
none the score is 0.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np

Labels = Sequence[Hashable]
LabelSets = Sequence[Collection[str]]
Numbers = Sequence[Sequence[float]]  # one or more of each example


def accuracy(gold: Labels, predicted: Labels) -> float:
    """Share of the examples that are right; of label sets, those that are right as a whole."""
    right = sum(g == p for g, p in zip(gold, predicted, strict=True))
    return right / len(gold) if len(gold) else 0.0


def f1(gold: Labels, predicted: Labels, positive: Hashable) -> float:
    """F1 of the class `positive`; 0 where it is neither gold nor predicted."""
    both = sum(g == p == positive for g, p in zip(gold, predicted, strict=True))
    either = sum(g == positive for g in gold) + sum(p == positive for p in predicted)
    return 2 * both / either if either else 0.0


def macro_f1(gold: Labels, predicted: Labels, classes: Labels) -> float:
    """Mean F1 of the classes; one that never occurs counts as 0."""
    both = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    either = Counter(gold) + Counter(predicted)
    return float(np.mean([2 * both[c] / (either[c] or 1) for c in classes])) if classes else 0.0


def matthews(gold: Labels, predicted: Labels) -> float:
    """Matthews correlation, -1..1; 0 where only one class is gold or predicted."""
    classes = {c: i for i, c in enumerate(dict.fromkeys([*gold, *predicted]))}
    counts = np.zeros((len(classes), len(classes)))
    for g, p in zip(gold, predicted, strict=True):
        counts[classes[g], classes[p]] += 1
    of_gold, of_predicted, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    spread = [total**2 - (of**2).sum() for of in (of_gold, of_predicted)]
    if not all(spread):
        return 0.0
    joint = total * np.trace(counts) - of_gold @ of_predicted
    return float(joint / np.sqrt(spread[0]) / np.sqrt(spread[1]))


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Linear correlation, -1..1; 0 where either side is constant or not finite."""
    if _constant(gold) or _constant(predicted):
        return 0.0
    from scipy import stats  # late: it takes as long to import as JAX

    return float(stats.pearsonr(gold, predicted).statistic)


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's of the ranks (ties share their mean rank); 0 in the same cases."""
    if _constant(gold) or _constant(predicted):
        return 0.0
    from scipy import stats

    return pearson(stats.rankdata(gold), stats.rankdata(predicted))


def of_numbers(name: str, gold: Numbers, predicted: Numbers, threshold: float) -> float:
    """The score of at least one row of numbers: the mean of that of each column.

    name: "pearson", "spearman", "squared_error" (in the unit of the numbers), or "f1", where a
    number that is not below the threshold is positive.
    """
    columns = np.array([gold, predicted], np.float64).transpose(2, 0, 1)
    if name == "squared_error":
        return float(np.mean((columns[:, 0] - columns[:, 1]) ** 2))
    if name == "f1":
        positive = [(g >= threshold, p >= threshold) for g, p in columns]
        return float(np.mean([f1(list(g), list(p), True) for g, p in positive]))
    function = {"pearson": pearson, "spearman": spearman}[name]
    return float(np.mean([function(g, p) for g, p in columns]))


def set_f1(gold: LabelSets, predicted: LabelSets, classes: Sequence[str], average: str) -> float:
    """F1 of sets of labels: "micro" counts every decision alike, "macro" every class."""
    shape = (len(gold), len(classes))
    has = [
        np.array([[c in labels for c in classes] for labels in sets], bool).reshape(shape)
        for sets in (gold, predicted)
    ]
    if average == "micro":
        return f1(has[0].ravel().tolist(), has[1].ravel().tolist(), True)
    pairs = zip(has[0].T.tolist(), has[1].T.tolist(), strict=True)
    return float(np.mean([f1(g, p, True) for g, p in pairs])) if len(classes) else 0.0


def _constant(numbers: Sequence[float]) -> bool:
    """Whether there is nothing to correlate: one value (to rounding), or not all are finite."""
    values = np.asarray(numbers, np.float64)
    if not len(values) or not np.isfinite(values).all():
        return True
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())
