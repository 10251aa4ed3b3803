"""The table of a reproduction: means and spreads beside the paper's figures, and plots."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from bert_jax.common import figures, schemas
from bert_jax.common.files import read_checked, write_json, write_whole
from bert_jax.experiments.paper import Column, Row, Table

SIGNIFICANT = 0.05  # a difference less likely than this by chance counts as one


@dataclasses.dataclass(frozen=True)
class Result:
    """A fine-tuning run, finished or not."""

    folder: Path
    seed: int
    split: str
    metric: str

    @property
    def path(self) -> Path:
        """The file that is there when the run is finished."""
        return self.folder / "results.json"

    def read(self) -> dict[str, Any]:
        """What `finetune` wrote."""
        return read_checked(self.path, schemas.Results)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row's score on a column."""

    row: Row
    column: Column
    runs: Mapping[str, Sequence[Result]]  # by setting of the grid, one a seed

    def scores(self) -> tuple[str, list[float]]:
        """The setting with the best mean, and its scores in percent, one a seed."""
        found = {point: [_score(run) for run in runs] for point, runs in self.runs.items()}
        best = max(found, key=lambda point: statistics.fmean(found[point]))
        return best, found[best]


def _score(run: Result) -> float:
    return 100 * run.read()["scores"][run.split][run.metric]


def compare(ours: Sequence[float], reference: Sequence[float]) -> str:
    """How scores differ from those of the reference: above, below, or noise.

    Welch's t-test, two-sided at 5%; with fewer than two of either nothing is told: noise.
    """
    if min(len(ours), len(reference)) < 2:
        return "noise"
    means = statistics.fmean(ours), statistics.fmean(reference)
    if max(np.ptp(ours), np.ptp(reference)) == 0:
        probability = float(means[0] == means[1])
    else:
        probability = scipy.stats.ttest_ind(ours, reference, equal_var=False).pvalue
    if probability >= SIGNIFICANT:
        return "noise"
    return "above" if means[0] > means[1] else "below"


def summarise(
    table: Table, cells: Sequence[Cell], perplexities: Mapping[str, float], out: Path
) -> list[dict[str, Any]]:
    """A dictionary a row, as in `table.json`: its cells with every run, by its folder in `out`."""
    summary = []
    found = {(cell.row.label, cell.column.name): cell.scores()[1] for cell in cells}
    for row in table.rows:
        reference = row.reference or table.rows[0].label
        entry: dict[str, Any] = {"label": row.label, "pretraining": row.pretraining, "cells": {}}
        if row.pretraining in perplexities:
            entry["perplexity"] = perplexities[row.pretraining]
            entry["published_perplexity"] = row.published.get("perplexity")
        for cell in cells:
            if cell.row is not row:
                continue
            name = cell.column.name
            point, scores = cell.scores()
            entry["cells"][name] = {
                "setting": point,
                "scores": scores,
                "mean": statistics.fmean(scores),
                "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
                "difference": ""
                if row.label == reference
                else compare(scores, found[reference, name]),
                "collapsed": sum(run.read()["collapsed"] for run in cell.runs[point]),
                "published": row.published.get(name),
                "runs": [
                    str(run.folder.relative_to(out)) for runs in cell.runs.values() for run in runs
                ],
            }
        summary.append(entry)
    return summary


def as_markdown(table: Table, summary: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """The table as Markdown."""
    names = list(summary[0]["cells"])
    header = ["", *(["held-out perplexity"] if table.perplexity else []), *names]
    lines = [
        f"# {table.title}",
        "",
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * (len(header) - 1),
    ]
    for entry in summary:
        cells = [entry["label"]]
        if table.perplexity:
            cells.append(
                _with_published(f"{entry['perplexity']:.2f}", entry["published_perplexity"])
            )
        for cell in entry["cells"].values():
            text = f"{cell['mean']:.1f}"
            if cell["deviation"] is not None:
                text += f" ± {cell['deviation']:.1f}"
            text += f", n={len(cell['scores'])}"
            text += {"above": " ↑", "below": " ↓", "noise": " ≈", "": ""}[cell["difference"]]
            if cell["collapsed"]:
                text += f" ({cell['collapsed']} collapsed)"
            cells.append(_with_published(text, cell["published"]))
        lines.append(f"| {' | '.join(cells)} |")
    others = any(row.reference for row in table.rows)
    beside = "the row it is compared with" if others else "the first row"
    lines += [
        "",
        "Dev scores in percent: mean ± standard deviation over n seeds of fine-tuning; in brackets "
        f"the paper's. Beside {beside}: ↑ above, ↓ below, ≈ no more than noise (Welch's "
        "t-test, 5%). Each row is one pre-training, so its own chance is not in the spread.",
        *([table.note] if table.note else []),
        *(f"- {note}" for note in notes),
        "",
        "Runs, a folder a seed:",
        *(
            f"- {entry['label']}, {name}: {cell['setting']}, {', '.join(_parents(cell['runs']))}"
            for entry in summary
            for name, cell in entry["cells"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _parents(folders: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(str(Path(folder).parent) for folder in folders))


def _with_published(text: str, published: float | None) -> str:
    return text if published is None else f"{text} [{published:g}]"


def plot(table: Table, summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel a column: every seed a dot, the mean a line; of figure 5 curves over the steps."""
    names = list(summary[0]["cells"])
    along = any(row.share < 1 for row in table.rows)
    height = 3.6 if along else 1.2 + 0.4 * len(summary)
    figure = Figure(figsize=(4 * len(names) + 1.5, height))
    axes = figure.subplots(1, len(names), sharey=not along, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        cells = [entry["cells"][name] for entry in summary]
        if along:
            _curves(axis, table, cells)
        else:
            for place, cell in enumerate(cells):
                axis.plot(cell["scores"], [place] * len(cell["scores"]), "o", alpha=0.5, color="C0")
                axis.plot([cell["mean"]] * 2, [place - 0.3, place + 0.3], color="C1")
            axis.set_yticks(range(len(cells)), [entry["label"] for entry in summary])
            axis.set_ylim(len(cells) - 0.5, -0.5)
        axis.set_title(name)
        axis.grid(alpha=0.3)
    figures.save(figure, path)


def _curves(axis: Any, table: Table, cells: Sequence[Mapping[str, Any]]) -> None:
    for pretraining in dict.fromkeys(row.pretraining for row in table.rows):
        points = [
            (row.share, cell["mean"], cell["deviation"] or 0.0, row.label.partition(",")[0])
            for row, cell in zip(table.rows, cells, strict=True)
            if row.pretraining == pretraining
        ]
        shares, means, deviations, labels = zip(*points, strict=True)
        axis.errorbar(shares, means, deviations, marker="o", capsize=3, label=labels[0])
    axis.set_xlabel("share of the pre-training steps")
    axis.legend(fontsize=8)


def write_table(
    folder: Path, table: Table, cells: Sequence[Cell], perplexities: Mapping[str, float],
    notes: Sequence[str],
) -> None:  # fmt: skip
    """Writes table.md, table.json and table.png."""
    summary = summarise(table, cells, perplexities, folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"title": table.title, "note": table.note, "left_out": list(notes), "rows": summary}
    write_json(folder / "table.json", whole)  # first: it tells whose the others are
    write_whole(folder / "table.md", as_markdown(table, summary, notes))
    plot(table, summary, folder / "table.png")
