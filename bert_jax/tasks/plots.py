"""Pictures of what a task gets wrong. Imported late: matplotlib takes as long as a third of JAX."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bert_jax.common.figures import save
from bert_jax.tasks.squad_score import SCORERS, threshold_curve

_MOST_CLASSES = 25  # more make no picture


def confusion(
    path: Path, labels: Sequence[str], gold: Sequence, predicted: Sequence
) -> Path | None:
    """Counts, coloured by and with the share of each gold label (the diagonal is recall).

    None of a great many labels, which nobody could read.
    """
    if len(labels) > _MOST_CLASSES:
        return None
    pairs = Counter(zip(gold, predicted, strict=True))
    counts = np.array([[pairs[g, p] for p in labels] for g in labels])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.9 * len(labels)
    figure = Figure(figsize=(size, size))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, place), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        text = f"{counts[row, place]}\n{share:.0%}"
        axes.text(place, row, text, ha="center", va="center", color=colour, fontsize=8)
    names = [label.replace("$", r"\$") for label in labels]  # else matplotlib reads mathematics
    axes.set_xticks(range(len(labels)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), names)
    axes.set(xlabel="predicted", ylabel="gold")
    return save(figure, path)


def scatter(path: Path, gold: Sequence, predicted: Sequence) -> Path:
    """Predicted over gold numbers, with the line where they agree."""
    figure = Figure(figsize=(4.5, 4.5))
    axes = figure.subplots()
    axes.scatter(gold, predicted, s=6, alpha=0.4)
    low, high = float(np.min(gold)), float(np.max(gold))
    axes.plot((low, high), (low, high), color="grey", linewidth=1)
    axes.set(xlabel="gold", ylabel="predicted")
    axes.grid(alpha=0.3)
    return save(figure, path)


def threshold_curves(
    path: Path, scores: np.ndarray, answered: np.ndarray, answerable: np.ndarray,
    odds: np.ndarray, threshold: float,
) -> Path:  # fmt: skip
    """F1 and exact match against the threshold, all and by kind; scores float64[N, 2]."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    everything = np.ones(len(odds), bool)
    lines = {
        "F1": (1, everything, "C0-"),
        "exact": (0, everything, "C1-"),
        "F1, has an answer": (1, answerable, "C2--"),
        "F1, has none": (1, ~answerable, "C3--"),
    }
    for label, (column, rows, style) in lines.items():
        if rows.any():
            parts = scores[rows, column], answered[rows], answerable[rows], odds[rows]
            rising, means = threshold_curve(*parts)
            axes.step(rising, means[1:], style, where="post", label=label)
    axes.axvline(threshold, color="black", linewidth=1, label=f"threshold {threshold:.2f}")
    axes.set(xlabel="threshold of the null odds", ylabel="score", ylim=(0, 1))
    axes.legend()
    return save(figure, path)


def f1_by_length(path: Path, golds: Sequence[Sequence[str]], f1: np.ndarray, scorer: str) -> Path:
    """Mean F1 by the length of the first gold answer, in what F1 counts."""
    normalise, units = SCORERS[scorer]
    lengths = np.array([len(units(normalise(gold[0]))) if gold else 0 for gold in golds])
    edges = [0, 1, 2, 3, 4, 6, 8, 12, 16]
    names = ["0", "1", "2", "3", "4-5", "6-7", "8-11", "12-15", "16+"]
    places = np.searchsorted(edges, lengths, side="right") - 1
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for place in np.unique(places):
        rows = places == place
        bar = axes.bar(names[place], f1[rows].mean(), color="C0")
        axes.bar_label(bar, [f"n={rows.sum()}"])
    unit = "characters" if scorer == "korquad" else "words"
    axes.set(xlabel=f"{unit} of the answer", ylabel="F1", ylim=(0, 1.05))
    return save(figure, path)
