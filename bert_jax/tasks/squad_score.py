"""The official metrics of SQuAD 1.1, SQuAD 2.0 and KorQuAD 1.0.

Sources: evaluate-v1.1.py and evaluate-v2.0.py of rajpurkar/SQuAD-explorer; evaluate-v1.0.py of
KorQuAD, which is SQuAD 1.1's with another normalisation and F1 over characters. Everything here is
a fraction (1.0 is perfect), the scripts print per cent.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))


def squad_normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def korquad_normalised(text: str) -> str:
    """Quotation marks and brackets are spaces; lower case, no ASCII punctuation, single spaces."""
    return " ".join(text.translate(_MARKS).lower().translate(_PUNCTUATION).split())


def _words(normalised: str) -> list[str]:
    return normalised.split()


def _characters(normalised: str) -> list[str]:
    return list(normalised.replace(" ", ""))


# By the name of a task's scorer: the normalisation, and what F1 counts in a normalised text.
SCORERS: dict[str, tuple[Callable[[str], str], Callable[[str], list[str]]]] = {
    "squad": (squad_normalised, _words),
    "korquad": (korquad_normalised, _characters),
}


def raw_scores(
    golds: Sequence[Sequence[str]], texts: Sequence[str], scorer: str, unanswerable: bool
) -> np.ndarray:
    """float64[N, 2]: exact match and F1 of each text, each the best over its gold answers.

    unanswerable: by the rules of SQuAD 2.0, where no gold answers (or none with anything left
    after normalisation) mean that "" is right. By those of 1.1 two empty texts have F1 0.
    """
    normalise, units = SCORERS[scorer]
    scores = np.zeros((len(texts), 2))
    for place, (gold, text) in enumerate(zip(golds, texts, strict=True)):
        answers = [normalise(answer) for answer in gold]
        if unanswerable:
            answers = [answer for answer in answers if answer] or [""]
        predicted = normalise(text)
        counts = Counter(units(predicted))
        for answer in answers:
            exact = answer == predicted
            f1 = float(exact and unanswerable) if not answer else _f1(counts, units(answer))
            scores[place] = np.maximum(scores[place], (exact, f1))
    return scores


def _f1(predicted: Counter[str], gold: list[str]) -> float:
    same = sum((predicted & Counter(gold)).values())
    if not same:
        return 0.0
    precision, recall = same / predicted.total(), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def summary(scores: np.ndarray, answerable: np.ndarray, unanswerable: bool) -> dict[str, float]:
    """{"exact", "f1", "total"} of raw scores [N, 2]; for SQuAD 2.0 also by kind, as HasAns_f1.

    answerable: bool[N], where there are gold answers.
    """
    parts = {"": np.ones(len(scores), bool)}
    if unanswerable:
        parts |= {"HasAns_": answerable, "NoAns_": ~answerable}
    result: dict[str, float] = {}
    for prefix, rows in parts.items():
        if rows.any() or not prefix:
            exact, f1 = scores[rows].sum(axis=0) / max(rows.sum(), 1)
            values = {"exact": exact, "f1": f1, "total": rows.sum()}
            result |= {prefix + name: float(value) for name, value in values.items()}
    return result


def threshold_curve(
    scores: np.ndarray, answered: np.ndarray, answerable: np.ndarray, odds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean score when the k questions of the lowest odds keep their answers, k = 0 .. N.

    Args:
      scores: float64[N] of the answers, exact or F1.
      answered: bool[N], where the answer is not "". answerable: bool[N], as in `summary`.
      odds: float64[N], of having no answer; a threshold keeps those that are not above it.
    Returns: (odds float64[N] in rising order, mean scores float64[N + 1]).
    """
    order = np.argsort(odds, kind="stable")
    gains = np.where(answerable, scores, -1.0 * answered)[order]
    # Summed one by one from the start, as the official script does, so rounding is the same.
    return odds[order], np.cumsum([(~answerable).sum(), *gains]) / max(len(scores), 1)


def best_threshold(
    scores: np.ndarray, answered: np.ndarray, answerable: np.ndarray, odds: np.ndarray
) -> tuple[float, float]:
    """(best mean score, its threshold), arguments as in `threshold_curve`.

    The threshold is 0, as in the official script, when nothing beats answering nothing.
    """
    rising, means = threshold_curve(scores, answered, answerable, odds)
    best = int(means.argmax())
    return float(means[best]), float(rising[best - 1]) if best else 0.0
