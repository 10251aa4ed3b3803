"""What a fine-tuning run leaves for people: results.json, report.md, predictions and plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.common.files import write_json, write_whole
from bert_jax.reports.pretraining import plot_curves
from bert_jax.tasks import to_dict
from bert_jax.tasks.base import Examples, Task
from bert_jax.training import goodput
from bert_jax.training.metrics import read_metrics


def write_results(
    workdir: Path,
    folder: Path,
    task: Task,
    examples: Examples,
    predicted: Mapping[str, list[Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores the dev splits, and writes everything into `folder`.

    Args:
      workdir: of the fine-tuned model. folder: the same, or one in it.
      examples: by split; where there is "train", baselines are made from it.
      predicted: predictions by split, of all but "train".
      facts: what else to put into `results.json`.
    Returns: what is in `results.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "train" in examples and (tuned := task.tuned(examples["dev"], predicted["dev"])) != task:
        predicted = {split: tuned.with_threshold(some) for split, some in predicted.items()}
        task = tuned
        write_task(workdir, task)
    scores, baselines = {}, {}
    for split, predictions in predicted.items():
        some = examples[split]
        if split.startswith("dev"):
            scores[split] = task.score(some, predictions)
            if "train" in examples:
                guessed = task.baseline(examples["train"], some)
                baselines[split] = task.score(some, guessed)
            task.plot(folder / f"{split}.png", some, predictions)
        task.write(folder / "predictions", split, some, predictions)
    results = {
        "task": task.name,
        "metric": task.metric,
        **facts,
        "examples": {split: len(some) for split, some in examples.items()},
        "scores": scores,
        "baselines": baselines,
    }
    lines = read_metrics(workdir)
    if "train" in examples:
        times = [line["time"]["seconds"] for line in lines]
        results["goodput"] = goodput.shares(workdir)
        results["seconds"] = {"training_and_evaluating": sum(times)}
        # A run that learnt nothing must not pass for a result.
        name = task.metric
        results["collapsed"] = scores["dev"][name] <= baselines["dev"][name]
        names = ("loss", "accuracy", name, "learning_rate")
        plot_curves(lines, baselines["dev"], folder / "curves.png", names)
    report = as_markdown(results)
    write_whole(folder / "report.md", report)
    write_json(folder / "results.json", results)
    print(report)
    print(f"results {folder / 'results.json'}   predictions {folder / 'predictions'}")
    return results


def write_task(folder: Path, task: Task) -> None:
    """Stores the row of the task, with the label names, for whoever uses the model."""
    write_json(folder / "task.json", to_dict(task))


def as_markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    text = []
    for split, scores in results["scores"].items():
        baseline = results["baselines"].get(split, {})
        text += [f"| {results['task']}, {split} | model | baseline |", "|---|---:|---:|"]
        for name, value in scores.items():
            other = f"{baseline[name]:.4f}" if name in baseline else ""
            mark = " (decides)" if name == results["metric"] else ""
            text.append(f"| {name}{mark} | {value:.4f} | {other} |")
        text.append("")
    if results.get("collapsed"):
        text += ["**Collapsed**: no better than the baseline.", ""]
    if "padding" in results:
        padding, seconds = results["padding"], results["seconds"]["training_and_evaluating"]
        text += [
            f"{results['parameters']:,} parameters on {results['devices']}; {results['steps']} "
            f"steps over {results['train_examples']:,} examples in {seconds:,.0f} s. "
            f"{padding['computed_tokens']:,} tokens computed in {padding['widths']} widths "
            f"({padding['computed_without_buckets'] / padding['computed_tokens']:.2f} times "
            "fewer than padded to the longest).",
            "",
            goodput.as_text(results["goodput"]),
            "",
        ]
    return "\n".join(text)
