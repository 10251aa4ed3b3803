"""Pictures of what a task gets wrong."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.text import Text

# Tried in this order for each character; the others have Hangul.
_FONTS = ("DejaVu Sans", "Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")


def confusion(path: Path, labels: Sequence[str], gold: Sequence, predicted: Sequence) -> None:
    """Counts, coloured by and with the share of each gold label (the diagonal is recall)."""
    pairs = Counter(zip(gold, predicted, strict=True))
    counts = np.array([[pairs[g, p] for p in labels] for g in labels])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.9 * len(labels)
    figure, axes = plt.subplots(figsize=(size, size))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, place), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        text = f"{counts[row, place]}\n{share:.0%}"
        axes.text(place, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="gold")
    _save(figure, path)


def scatter(path: Path, gold: Sequence, predicted: Sequence) -> None:
    """Predicted over gold numbers, with the line where they agree."""
    figure, axes = plt.subplots(figsize=(4.5, 4.5))
    axes.scatter(gold, predicted, s=6, alpha=0.4)
    low, high = float(np.min(gold)), float(np.max(gold))
    axes.plot((low, high), (low, high), color="grey", linewidth=1)
    axes.set(xlabel="gold", ylabel="predicted")
    axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # no font has it: a box is drawn
        for text in figure.findobj(Text):
            text.set_fontfamily([name for name in _FONTS if name in installed])
        figure.tight_layout()
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    temporary.replace(path)
