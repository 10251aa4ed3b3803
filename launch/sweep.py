"""Fine-tunes one task over a grid of settings and several seeds.

  python launch/sweep.py --config=configs/finetune.py:task=rte --config.init_from=RUN \
      --config.data=glue_data/RTE --grid=paper --seeds=5 --workdir=SWEEP

A seed decides the new head, the data order and dropout. Finished runs are not run again: the same
command continues a sweep, and called again beside itself, in another terminal or on another machine
with the same disk, the two share it. Only the best run keeps its checkpoint. Runs that end no
better than the baseline that needs no model count as collapsed. --grid=none tries seeds alone, with
the settings that the config has: those of preset=stable, for example. A grid of your own is
written as
--grid='learning_rate=1e-5,3e-5;batch_size=16,32', or stands in a JSON file:
{"learning_rate": [1e-5, 3e-5], "batch_size": [16, 32]}.
"""

import functools
import shutil
import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from matplotlib.figure import Figure

from bert_jax import finetune
from bert_jax.common import entry, errors, figures, schemas
from bert_jax.common.command_line import CONFIG, WORKDIR, given, read_config
from bert_jax.common.files import read_checked, write_json, write_whole
from bert_jax.common.outputs import check_folder, check_report
from bert_jax.experiments import disk
from bert_jax.experiments.grid import GRIDS, check_grid, name_of, read_grid, settings
from bert_jax.experiments.jobs import Job, quietly, work
from bert_jax.tasks.settings import FINETUNE
from bert_jax.training import distributed, memory
from bert_jax.training.compile_cache import keep_programs
from bert_jax.weights import opening
from configs.finetune import get_config

_GRID = flags.DEFINE_string(
    "grid",
    "paper",
    f"The settings to try: {', '.join(GRIDS)} (none: seeds alone); or your own, in a JSON file or "
    "as in 'learning_rate=1e-5,3e-5;batch_size=16,32'.",
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each setting.", lower_bound=1)


def main() -> None:
    config, workdir = read_config(CONFIG, FINETUNE), WORKDIR.value
    if config is None or not workdir:
        raise errors.UserError("--config=configs/finetune.py:task=... and --workdir are needed")
    if config.mode != "train":
        raise errors.UserError(f"a sweep trains: mode={config.mode} is for bert_jax.finetune")
    memory.keep_freed_memory()
    distributed.initialize()
    keep_programs()
    check_chosen(config, given(), _GRID.value)
    folder = check_folder(Path(workdir))
    check_report(folder, ("sweep.json", "sweep.md", "sweep.png"), ("settings", "best_run"))
    model = opening.open_model(config.init_from)
    # Of the best run so far and of the one at work: the newest, the best, and one being written.
    size = disk.checkpoint_bytes(model.model, model.tokenizer.vocab_size)
    distributed.say(disk.told(2 * (config.keep_checkpoints + 2) * size, folder))
    points = settings(read_grid(_GRID.value, config))
    for point in points:
        FINETUNE.check(with_point(config, point))
    todo = [job_of(config, p, seed, folder) for p in points for seed in range(_SEEDS.value)]
    for job in todo:
        job.check()
    work(todo, functools.partial(_drop_checkpoints, todo))
    _drop_checkpoints(todo)  # processes that ended at the same time left two
    results = [result_of(job) for job in todo]
    if not distributed.is_main():
        return
    table = summarise(results)
    write_json(folder / "sweep.json", table)
    text = as_markdown(table)
    write_whole(folder / "sweep.md", text)
    plot(results, table, folder / "sweep.png")
    print(text)
    print(f"table {folder / 'sweep.md'}   plot {folder / 'sweep.png'}")


def check_chosen(config: Any, chosen: Collection[str], grid: str) -> None:
    """Checks that the sweep overrides no setting that a preset or the user chose.

    chosen: fields that the user set; of the grid's, those that differ from the paper's value for
    the task are a preset's or the user's, too.
    Raises: UserError, naming the setting.
    """
    FINETUNE.check(config, [name for name in chosen if name != "seed"])
    if "seed" in chosen:
        raise errors.UserError("--config.seed has no effect: --seeds=N tries the seeds 0 to N-1")
    paper = get_config(f"task={config.task},family={config.custom.family}")
    # A grid of one's own is chosen as the others are not: it goes before a preset.
    differing = {name for name in GRIDS.get(grid, ()) if config[name] != paper[name]}
    check_grid(grid, config, differing.union(chosen), "--grid")


def job_of(config: Any, point: Mapping[str, Any], seed: int, folder: Path) -> Job:
    """Makes the job of one setting with one seed."""
    workdir = folder / name_of(point) / f"seed{seed}"
    one = with_point(config, {**point, "seed": seed})

    def run() -> None:
        with quietly():
            finetune.finetune(one, workdir)

    free = finetune.MAY_CHANGE_OF_TABLES
    return Job(workdir, workdir / "results.json", run, config=one, may_change=free)


def result_of(job: Job) -> dict[str, Any]:
    """Reads what a job that is done came to."""
    result = read_checked(job.result, schemas.Results)
    return {
        "point": job.folder.parent.name,
        "seed": job.config.seed,
        "workdir": str(job.folder),
        "metric": result["metric"],
        "score": result["scores"]["dev"][result["metric"]],
        "baseline": result["baselines"]["dev"][result["metric"]],
        "collapsed": result["collapsed"],
    }


def with_point(config: Any, point: Mapping[str, Any]) -> Any:
    """A copy of the config with these fields; those of a section have dotted names."""
    one = config.copy_and_resolve_references()
    one.update_from_flattened_dict(dict(point))
    return one


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each setting: best, median, spread and how many collapsed; the best run of all."""
    rows = []
    for point in dict.fromkeys(result["point"] for result in results):
        mine = [result for result in results if result["point"] == point]
        scores = [result["score"] for result in mine]
        rows.append(
            {
                "point": point,
                "n": len(mine),
                "best": max(scores),
                "median": statistics.median(scores),
                "worst": min(scores),
                "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
                "collapsed": sum(result["collapsed"] for result in mine),
            }
        )
    best = max(results, key=lambda result: result["score"])
    return {
        "metric": best["metric"],
        "baseline": best["baseline"],
        "settings": rows,
        "best_run": best["workdir"],
    }


def as_markdown(table: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    metric, baseline = table["metric"], table["baseline"]
    text = [
        f"{metric} on dev; baseline {baseline:.4f}; best run: {table['best_run']}",
        "",
        "| setting | n | best | median | worst | standard deviation | collapsed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table["settings"]:
        spread = "" if row["deviation"] is None else f"{row['deviation']:.4f}"
        flag = f"**{row['collapsed']}**" if row["collapsed"] else "0"
        text.append(
            f"| {row['point']} | {row['n']} | {row['best']:.4f} | {row['median']:.4f} | "
            f"{row['worst']:.4f} | {spread} | {flag} |"
        )
    return "\n".join(text) + "\n"


def plot(results: Sequence[Mapping[str, Any]], table: Mapping[str, Any], path: Path) -> None:
    """Every run as a dot by setting; collapsed ones are crosses."""
    points = [row["point"] for row in table["settings"]]
    figure = Figure(figsize=(6, 1 + 0.4 * len(points)))
    axis = figure.subplots()
    for collapsed, marker in ((False, "o"), (True, "x")):
        some = [result for result in results if result["collapsed"] == collapsed]
        axis.scatter(
            [result["score"] for result in some],
            [points.index(result["point"]) for result in some],
            marker=marker, alpha=0.7, label="collapsed" if collapsed else "run",
        )  # fmt: skip
    axis.axvline(table["baseline"], color="grey", ls="--", lw=1, label="baseline")
    axis.set(xlabel=table["metric"], yticks=range(len(points)), yticklabels=points)
    axis.legend(fontsize=8)
    figures.save(figure, path)


def _drop_checkpoints(todo: Sequence[Job]) -> None:
    """Removes the checkpoints of the runs that are done, but for the best of them."""
    done = [result_of(job) for job in todo if job.result.exists()]
    best = max(done, key=lambda result: result["score"])
    for result in done if distributed.is_main() else ():
        if result is not best:
            shutil.rmtree(Path(result["workdir"]) / "checkpoints", ignore_errors=True)
    distributed.wait_for_all("the checkpoints are gone")


if __name__ == "__main__":
    entry.run(main)
