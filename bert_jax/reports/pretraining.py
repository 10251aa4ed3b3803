"""What a pre-training run leaves for people: report.json, report.md, curves.png, a table."""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.common import schemas
from bert_jax.common.files import read_checked, write_json, write_whole
from bert_jax.data.corpus import Corpus, Split
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference import loading
from bert_jax.objectives.base import Metric, Pretraining
from bert_jax.training import goodput
from bert_jax.training.metrics import read_metrics
from bert_jax.training.sharding import ahead

_EXAMPLES = 5


def write_report(
    workdir: Path, corpus: Corpus, objective: Pretraining, params: Any, steps: int,
    held_out: dict[str, float], batches: Iterable[Mapping[str, np.ndarray]],
) -> None:  # fmt: skip
    """Writes the report of a finished run and prints it.

    params: on this process. held_out: the final held-out metrics, and the batches they are of.
    """
    lines = read_metrics(workdir)
    report = {
        "steps": steps,
        "held_out": held_out,
        "baseline": baselines(corpus, objective, batches),
        "speed": _speed(lines),
        "goodput": goodput.shares(workdir),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    if warning := no_better(objective.metrics[0], held_out, report["baseline"]):
        report["warning"] = warning
        print(f"warning: {warning}", file=sys.stderr)
    model = loading.Model(objective.backbone, params, corpus.tokenizer)
    if model.fills_masks:
        report["fill_mask"] = fill_mask_examples(corpus, model)
    markdown = as_markdown(report, objective.metrics)
    write_whole(workdir / "report.md", markdown)
    # A perplexity is its loss once more, and a loss without a baseline says little beside.
    told = [m for m in objective.metrics if m.name in report["baseline"]]
    names = [metric.name for metric in told if not metric.perplexity_of]
    plot_curves(lines, report["baseline"], workdir / "curves.png", [*names, "learning_rate"])
    # Last and whole: it marks the run as finished.
    write_json(workdir / "report.json", report)
    print(markdown)
    print(f"report {workdir / 'report.md'}   plots {workdir / 'curves.png'}")


def is_finished(workdir: Path, steps: int) -> bool:
    """Whether the run was trained to `steps` and reported."""
    files = [workdir / name for name in ("report.json", "report.md")]
    if not all(file.exists() for file in files):
        return False
    return read_checked(files[0], schemas.Report)["steps"] == steps


def baselines(
    corpus: Corpus, objective: Pretraining, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """What no model is needed for, on the very tokens and pairs of the held-out evaluation.

    Unigram: each predicted token's frequency in the train split (add-one smoothed); accuracy of
    always answering the most frequent token; share of the more frequent NSP label.
    """
    counts = corpus.token_counts + 1
    log_p = np.log(counts / counts.sum())
    targets = jax.jit(lambda batch: objective.targets(batch, train=False))
    rows = {metric.name: metric for metric in objective.metrics}
    sums: dict[str, np.ndarray] = {}  # of each name: weights, losses or labels, right guesses
    for _, found in ahead((None, targets(batch)) for batch in batches):
        for name, (labels, weights) in jax.device_get(found).items():
            if rows[f"{name}_loss"].baseline == "unigram":
                parts = weights, -log_p[labels] * weights, (labels == counts.argmax()) * weights
            else:  # of two labels
                parts = weights, labels * weights, 0 * weights
            here = np.array([float(part.sum()) for part in parts])
            sums[name] = sums.get(name, 0) + here
    result: dict[str, float] = {}
    for name, (total, summed, hits) in sums.items():
        mean = summed / max(total, 1)
        if rows[f"{name}_loss"].baseline == "unigram":
            result[f"{name}_loss"] = mean
            result[f"{name}_perplexity"] = float(np.exp(mean))
            result[f"{name}_accuracy"] = hits / max(total, 1)
        else:
            result[f"{name}_accuracy"] = max(mean, 1 - mean)
    return result


def no_better(metric: Metric, held_out: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    """What to say of a model that predicts tokens no better than their frequencies do; else ""."""
    if metric.name not in baseline:
        return ""
    loss, unigram = held_out[metric.name], baseline[metric.name]
    if loss < unigram:  # nor nan
        return ""
    return (
        f"the held-out loss {loss:.3f} is no better than {unigram:.3f}, that of the tokens' "
        "frequencies alone: the model has learnt nothing of use yet; train for more steps, or with "
        "another learning_rate or a longer warm-up"
    )


def fill_mask_examples(corpus: Corpus, model: loading.Model) -> list[dict[str, Any]]:
    """Makes sentences of held-out text with one whole word masked, and the model's guesses."""
    tokenizer = corpus.tokenizer
    examples = []
    longest = min(40, model.backbone.max_positions - tokenizer.template.around(1))
    for tokens, place in _maskable(corpus.splits["held_out"], tokenizer, longest):
        mask = tokenizer.tokens[tokenizer.mask_id]
        before = tokenizer.decode(tokens[:place].tolist())
        after = tokenizer.decode(tokens[place + 1 :].tolist())
        text = f"{before} {mask} {after}"
        guesses = model.fill_mask(text, top=3)[0]
        examples.append(
            {
                "text": text,
                "answer": tokenizer.tokens[tokens[place]].lstrip("▁"),
                "guesses": [[g.token.lstrip("▁"), round(g.probability, 3)] for g in guesses],
            }
        )
    return examples


def _maskable(split: Split, tokenizer: Tokenizer, longest: int) -> list[tuple[np.ndarray, int]]:
    """Sentences of 12 tokens to `longest`, spread over the split, and a whole word of each."""
    lengths = np.asarray(split.sentence_lengths)
    fitting = np.flatnonzero((lengths >= 12) & (lengths <= longest))
    found: list[tuple[np.ndarray, int]] = []
    # 40 candidates at even distances give the same five sentences every time.
    for sentence in fitting[np.linspace(0, len(fitting) - 1, min(40, len(fitting))).astype(int)]:
        (tokens,) = split.tokens(np.array([sentence]), np.array([sentence + 1]))
        words = [
            place
            for place in range(2, len(tokens) - 2)
            if not tokenizer.continuation[tokens[place]]
            and not tokenizer.continuation[tokens[place + 1]]
            and len(word := tokenizer.tokens[tokens[place]].lstrip("▁")) > 1
            and word.isalpha()
        ]
        if words and tokenizer.unk_id not in tokens:
            found.append((tokens, words[len(words) // 2]))
        if len(found) == _EXAMPLES:
            break
    return found


def _speed(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Median speed over the logged stretches, and the seconds spent in training."""
    times = [line["time"] for line in lines if line["split"] == "train"]
    names = [name for name in ("tokens_per_second", "steps_per_second", "mfu") if name in times[-1]]
    speed = {name: statistics.median(t[name] for t in times if name in t) for name in names}
    return speed | {"training_seconds": sum(t["seconds"] for t in times)}


_BASELINES = {"unigram": "unigram", "majority": "majority label"}


def as_markdown(report: dict[str, Any], metrics: Sequence[Metric]) -> str:
    """Gives the report as Markdown. metrics: the objective's."""
    held_out, baseline, speed = report["held_out"], report["baseline"], report["speed"]
    text = ["| held-out | model | baseline | |", "|---|---:|---:|---|"]
    for metric in metrics:
        name, what = metric.name, _BASELINES.get(metric.baseline, "")
        if name not in held_out or name not in baseline:
            continue
        if metric.baseline == "unigram" and metric.better == "higher":
            what = "most frequent token"
        values = (metric.form.format(values[name]) for values in (held_out, baseline))
        text.append(f"| {metric.title} | {' | '.join(values)} | {what} |")
    if "warning" in report:
        text += ["", f"**Warning**: {report['warning']}."]
    mfu = f", MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
    text += [
        "",
        f"{report['parameters']:,} parameters on {report['devices']}: "
        f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}, "
        f"{speed['training_seconds']:,.0f} s of training.",
        "",
        goodput.as_text(report["goodput"]),
    ]
    if "fill_mask" in report:
        text += ["", "Words of held-out text, masked and guessed:", ""]
    for example in report.get("fill_mask", ()):
        guesses = ", ".join(f"{token} {share:.2f}" for token, share in example["guesses"])
        text += [f"- {example['text']}", f"  - **{example['answer']}** — guessed {guesses}"]
    return "\n".join(text) + "\n"


def plot_curves(
    lines: list[dict[str, Any]], baseline: Mapping[str, float], path: Path, names: Sequence[str]
) -> None:
    """The named metrics that there are over the steps, with the baselines dashed."""
    from matplotlib.figure import Figure  # late: most of a run does without

    from bert_jax.common import figures

    panels = [name for name in dict.fromkeys(names) if any(name in line for line in lines)]
    figure = Figure(figsize=(4.5 * len(panels), 3.6))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, name in zip(axes[0], panels, strict=True):
        for split, style in (("train", {"alpha": 0.6}), ("held_out", {"marker": "o", "ms": 3})):
            points = [(x["step"], x[name]) for x in lines if x["split"] == split and name in x]
            if points:
                axis.plot(*zip(*points, strict=True), label=split.replace("_", "-"), **style)
        if name in baseline:
            axis.axhline(baseline[name], color="grey", ls="--", lw=1, label="baseline")
        axis.set(title=name.replace("_", " "), xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figures.save(figure, path)
