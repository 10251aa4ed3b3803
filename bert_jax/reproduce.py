"""Reproduces a table or figure of the BERT paper: whatever it needs, beside the paper's numbers.

  python -m bert_jax.reproduce --config=configs/reproduce.py:table=5,scale=laptop \
      --config.pretraining.corpus=CORPUS --config.glue=glue_data --workdir=OUT
  python -m bert_jax.reproduce --config=... --topology=v5e:16x16

Runs lie in OUT/pretraining and OUT/finetuning, and tables of one OUT share them: what is finished
is not run again, and the same command continues what was killed. Called again beside itself (in
another terminal, or on another machine with the same disk), the two share the work: two processes
of one thread each do more on two cores than one of two. The results are OUT/TABLE/table.md,
table.json and plots. With --topology nothing is run: each pre-training is compiled for that slice
instead, and its chip-hours printed.
"""

import contextlib
import functools
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax import finetune, plan
from bert_jax import main as pretraining
from bert_jax.common import entry, schemas
from bert_jax.common.command_line import CONFIG, SLICES, TOPOLOGY, WORKDIR, given
from bert_jax.common.errors import UserError
from bert_jax.common.files import read_checked
from bert_jax.common.outputs import check_folder, check_report
from bert_jax.data.corpus import open_corpus
from bert_jax.experiments import disk
from bert_jax.experiments.grid import GRIDS, check_grid, name_of, settings
from bert_jax.experiments.jobs import Job, quietly, work
from bert_jax.experiments.paper import (
    FROM_CHECKPOINT,
    PRETRAININGS,
    SIZES,
    Column,
    Row,
    Table,
    columns,
    get_table,
    size_name,
)
from bert_jax.experiments.settings import settings_of
from bert_jax.experiments.table_report import Cell, Result, write_table
from bert_jax.families import build_objective, family_of
from bert_jax.planning import tpu
from bert_jax.tasks import TASKS, family
from bert_jax.tasks.settings import FINETUNE
from bert_jax.training import distributed, memory
from bert_jax.training.compile_cache import keep_programs
from bert_jax.training.config import choose
from bert_jax.weights import opening, store

# Folders of GLUE's archive.
_GLUE = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI",
    "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI",
}  # fmt: skip
# Fields of a fine-tuning that are the table's, and what there is in their place.
_OF_THE_TABLE = {
    "task": "tasks are named after the colon, as tasks=mrpc+cola",
    "mode": "a table is of trained models",
    "seed": "--config.seeds=N tries the seeds 0 to N-1",
    "init_from": "the table pre-trains its models, or is of --config.checkpoint",
}


def main() -> None:
    config = CONFIG.value
    if config is None or "pretraining" not in config:
        raise UserError("--config=configs/reproduce.py:table=... is needed")
    settings_of(config).expand_paths(config)
    if TOPOLOGY.value:
        jax.config.update("jax_platforms", "cpu")  # a TPU that is here stays free
        plan_pretrainings(config, tpu.open_slice(TOPOLOGY.value, SLICES.value))
        return
    if not WORKDIR.value:
        raise UserError("--workdir=FOLDER is needed, or --topology to plan only")
    memory.keep_freed_memory()
    distributed.initialize()
    keep_programs()
    reproduce(config, check_folder(Path(WORKDIR.value)), given())


def reproduce(config: Any, out: Path, chosen: Collection[str] = ()) -> list[Cell]:
    """Runs what is not there yet, and writes the table. chosen: fields that the user set."""
    check_chosen(config, chosen)
    table, columns_, left_out = layout(config)
    out = out / config.scale
    for line in left_out:
        distributed.say(line)
    cells = [
        Cell(row, column, runs(config, row, column, out))
        for row in table.rows
        for column in columns_
    ]
    folder = out / (config.table if config.table.startswith("figure") else f"table{config.table}")
    check_report(folder, ("table.json", "table.md", "table.png"), ("title", "rows"))
    todo = jobs(config, table, cells, out)
    for job in todo:
        if job.result.exists():  # else the run itself checks
            job.check()
            if "pretraining" in job.folder.parts[-2:]:
                pretraining.check_corpus(job.folder, Path(job.config.corpus))
    check_settings(config, todo)
    if needed := disk_needed(config, todo):
        distributed.say(disk.told(needed, out))
    work(todo)
    if distributed.is_main():
        write_table(folder, table, cells, perplexities(config, table, out), left_out)
        print((folder / "table.md").read_text(encoding="utf-8"))
        print(f"table {folder / 'table.md'}   plot {folder / 'table.png'}")
    return cells


def check_chosen(config: Any, chosen: Collection[str]) -> None:
    """Checks that no field was set that the table, the grid or every row overrides.

    What makes a row what it is (`bilstm`, `features` and their rates) does so in that row alone.
    Raises: UserError, naming the field.
    """
    choose("grid", config.grid, GRIDS)
    settings_of(config).check_effects([config], [name for name in chosen if "." not in name])
    on_glue = sorted(_GLUE.keys() & config.finetuning.keys())
    for name in ("grid", "glue"):
        if name in chosen and not on_glue:
            raise UserError(f"{name} has no effect: none of the tasks is of GLUE")
    rows = get_table(config.table, config.scale).rows
    for task, one in config.finetuning.items():
        prefix = f"finetuning.{task}."
        mine = [name.removeprefix(prefix) for name in chosen if name.startswith(prefix)]
        for name in mine:
            if name in _OF_THE_TABLE:
                raise UserError(f"--config.{prefix}{name} has no effect: {_OF_THE_TABLE[name]}")
        with _told_of(task):
            all_columns = columns(config.table, task, family(TASKS[task]) == "tagging")
            variants = [
                changed(one, {**row.finetuning, **column.finetuning})
                for row in rows
                for column in all_columns
            ]
            FINETUNE.check_effects(variants, mine)
            check_grid(_grid(config, task), one, mine, "grid")
    mine = [name.partition(".")[2] for name in chosen if name.startswith("pretraining.")]
    for name in mine:
        if starts_from_checkpoint(config):
            why = "the table is of --config.checkpoint"
        elif name == "keep_every":
            why = "the table keeps the checkpoints that it needs"
        else:
            continue
        raise UserError(f"--config.pretraining.{name} has no effect: {why}")
    settings = family_of(config.pretraining).settings
    settings.check_effects([pretraining_config(config, row.pretraining) for row in rows], mine)


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a fine-tuning's config with some of its fields set."""
    one = config.copy_and_resolve_references()
    one.update(changes)
    return one


@contextlib.contextmanager
def _told_of(task: str) -> Iterator[None]:
    """Errors of a fine-tuning name the task, and its settings as they are called here."""
    try:
        yield
    except UserError as error:
        message = str(error).replace("--config.", f"--config.finetuning.{task}.")
        raise UserError(f"finetuning.{task}: {message}") from error


def layout(config: Any) -> tuple[Table, list[Column], list[str]]:
    """The table, its columns, and a line for each task that has no data.

    Raises: UserError: no task has, or something that the table starts from is not given.
    """
    settings_of(config).check_values(config)
    found, left_out = [], []
    for task, one in config.finetuning.items():
        in_glue = not (one.data or one.train) and config.glue and task in _GLUE
        if in_glue:
            one.data = str(Path(config.glue) / _GLUE[task])
        if not (one.train or (one.data and _is_there(one.data))):
            where = f"{one.data} is not there" if one.data else "no data"
            left_out.append(f"{task} is left out: {where} (--config.finetuning.{task}.data=FOLDER)")
            continue
        with _told_of(task):
            FINETUNE.check(one)
            if one.add_tokens:
                store.read_tokens(one.add_tokens)
        try:  # now, not after hours of pre-training
            with _told_of(task):
                _, splits = finetune.read_examples(one)
        except UserError as error:
            if not in_glue:
                raise
            left_out.append(f"{task} is left out: {error}")
            continue
        for column in columns(config.table, task, family(TASKS[task]) == "tagging"):
            if column.split in splits:
                found.append(column)
            else:
                left_out.append(f"{column.name} is left out: {one.data} has no such split")
    if not found:
        raise UserError(f"no task has data: {'; '.join(left_out)}")
    if config.table in FROM_CHECKPOINT and not config.checkpoint:
        raise UserError(f"table {config.table} is fine-tuned from --config.checkpoint=MODEL")
    given = starts_from_checkpoint(config)
    if config.checkpoint and not given:
        raise UserError(f"table {config.table} pre-trains its own models: no --config.checkpoint")
    if not given and not config.pretraining.corpus:
        raise UserError("--config.pretraining.corpus=FOLDER is needed (bert_jax.prepare makes it)")
    table = get_table(config.table, config.scale)
    for row in () if given else table.rows:
        one = pretraining_config(config, row.pretraining)
        family_of(one).settings.check(one)
    return table, found, left_out


def _is_there(data: str) -> bool:
    return data.startswith("tfds:") or Path(data).exists()


def starts_from_checkpoint(config: Any) -> bool:
    """Whether the table fine-tunes a given model rather than pre-train its own."""
    return bool(config.checkpoint) and config.table in (*FROM_CHECKPOINT, "7")


def pretraining_config(config: Any, name: str) -> Any:
    """The config of a pre-training of `paper.PRETRAININGS`, or of a size of the scale."""
    one = config.pretraining.copy_and_resolve_references()
    sizes = {size_name(size): size for size in SIZES[config.scale]}
    if name in sizes:
        one.model.layers, one.model.width, one.model.heads = sizes[name]
    else:
        one.update_from_flattened_dict(dict(PRETRAININGS[name]))
    one.keep_every = max(one.steps // 10, 1) if shares_of(name, config.scale) else 0
    return one


def shares_of(name: str, scale: str) -> set[float]:
    """The shares of a pre-training's steps whose checkpoints figure 5 fine-tunes."""
    rows = get_table("figure5", scale).rows
    return {row.share for row in rows if row.pretraining == name and row.share < 1}


def kept_steps(config: Any, name: str, scale: str) -> set[int]:
    """The steps of those checkpoints. config: of the pre-training."""
    every = config.keep_every
    return {round(share * config.steps / every) * every for share in shares_of(name, scale)}


def pretrain(config: Any, folder: Path, kept: Collection[int]) -> None:
    """Pre-trains; of the checkpoints the newest and those of the kept steps stay."""
    pretraining.pretrain(config, folder)
    if distributed.is_main():
        found = {int(path.name): path for path in (folder / "checkpoints").glob("[0-9]*")}
        for step in found.keys() - {max(found, default=0), *kept}:
            shutil.rmtree(found[step])
    distributed.wait_for_all("checkpoints that nothing needs are gone")


def disk_needed(config: Any, todo: Sequence[Job]) -> int:
    """Bytes of checkpoints that the jobs that are left need at most, about."""
    left = [job for job in todo if not job.result.exists()]
    pretrainings = [job for job in left if "model" in job.config]
    vocab_size, stay, passing = 0, 0, [0]
    if config.pretraining.corpus:
        vocab_size = open_corpus(config.pretraining.corpus).tokenizer.vocab_size
    for job in pretrainings:
        size = disk.checkpoint_bytes(job.config.model, vocab_size)
        kept = kept_steps(job.config, job.folder.name, config.scale)
        stay += size * (1 + len(kept))
        # While it runs: all of `keep_every`, the newest, the best, and the one being written.
        along = job.config.steps // job.config.keep_every if kept else 0
        passing.append(size * (along + job.config.keep_checkpoints + 1 - len(kept)))
    sizes = [disk.checkpoint_bytes(job.config.model, vocab_size) for job in pretrainings]
    if starts_from_checkpoint(config):
        model = opening.open_model(config.checkpoint)
        sizes.append(disk.checkpoint_bytes(model.model, model.tokenizer.vocab_size))
    tunings = [job.config.keep_checkpoints + 2 for job in left if "task" in job.config]
    passing += [max(tunings, default=0) * max(sizes, default=0)]
    return stay + max(passing)


def check_settings(config: Any, todo: Sequence[Job]) -> None:
    """Checks each fine-tuning against the model that it will start from, before that is made.

    Raises: UserError, naming the task.
    """
    made: dict[Path | None, Any] = {
        job.result: family_of(job.config).backbone(job.config.model.to_dict(), 1, job.config.dtype)
        for job in todo
        if "model" in job.config
    }
    left = [job for job in todo if "task" in job.config and not job.result.exists()]
    if left and starts_from_checkpoint(config):
        made[None] = opening.open_model(config.checkpoint).body("auto").backbone
    for job in left:
        with _told_of(job.config.task):
            finetune.check_settings(job.config, made[job.needs])


def runs(config: Any, row: Row, column: Column, out: Path) -> dict[str, list[Result]]:
    """Of a cell: by setting of the grid, a result for each seed."""
    source = "checkpoint" if starts_from_checkpoint(config) else row.pretraining
    if row.share < 1:
        source += f"@{row.share:g}"
    changes = {**row.finetuning, **column.finetuning}
    variant = ",".join([column.task, *(f"{name}={value}" for name, value in changes.items())])
    base = out / "finetuning" / source / variant
    metric = column.metric or TASKS[column.task].metric
    return {
        name_of(point): [
            Result(base / name_of(point) / f"seed{seed}", seed, column.split, metric)
            for seed in range(config.seeds)
        ]
        for point in points(config, row, column)
    }


def points(config: Any, row: Row, column: Column) -> list[dict[str, Any]]:
    """The settings to try: of the grid for GLUE, as the paper did; else the task's own alone."""
    features = {**row.finetuning, **column.finetuning}.get("features")
    return settings({} if features else GRIDS[_grid(config, column.task)])


def _grid(config: Any, task: str) -> str:
    return config.grid if task in _GLUE else "none"


def jobs(config: Any, table: Table, cells: Sequence[Cell], out: Path) -> list[Job]:
    """What must be run, each once: pre-trainings first, of them the longest, so that processes that
    share the work end together."""
    found: dict[Path, Job] = {}
    given = starts_from_checkpoint(config)
    made = {r.pretraining: pretraining_config(config, r.pretraining) for r in table.rows}
    by_length = sorted(made.items(), key=lambda m: -m[1].model.layers * m[1].model.width ** 2)
    for name, one in () if given else by_length:
        folder = out / "pretraining" / name
        run = functools.partial(pretrain, one, folder, kept_steps(one, name, config.scale))
        found[folder] = Job(folder, folder / "report.json", run, None, one, pretraining.MAY_CHANGE)
    for cell in cells:
        folder = out / "pretraining" / cell.row.pretraining
        start = Path(config.checkpoint) if given else folder
        if cell.row.share < 1:
            every = made[cell.row.pretraining].keep_every
            kept = round(cell.row.share * made[cell.row.pretraining].steps / every) * every
            start = folder / "checkpoints" / str(kept)
        for point in points(config, cell.row, cell.column):
            for result in cell.runs[name_of(point)]:
                changes = {**point, **cell.row.finetuning, **cell.column.finetuning}
                changes |= {"seed": result.seed, "init_from": str(start)}
                one = changed(config.finetuning[cell.column.task], changes)
                needs = None if given else folder / "report.json"
                run = functools.partial(finetune_quietly, one, result.folder)
                # Which model a run began from matters where the folders do not say it.
                free = finetune.MAY_CHANGE_OF_TABLES + (() if given else ("init_from",))
                job = Job(result.folder, result.path, run, needs, one, free)
                found.setdefault(result.folder, job)
    return list(found.values())


def finetune_quietly(config: Any, folder: Path) -> None:
    """Fine-tunes; what the run says about itself is in its folder. Its checkpoints are dropped."""
    with quietly(), _told_of(config.task):
        finetune.finetune(config, folder)
    if distributed.is_main():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    distributed.wait_for_all("the checkpoints are gone")


def perplexities(config: Any, table: Table, out: Path) -> dict[str, float]:
    """Held-out perplexity by pre-training, where the table has it."""
    if not table.perplexity:
        return {}
    found = {}
    for row in table.rows:
        report = read_checked(out / "pretraining" / row.pretraining / "report.json", schemas.Report)
        found[row.pretraining] = report["held_out"]["mlm_perplexity"]
    return found


def plan_pretrainings(config: Any, target: tpu.Slice) -> None:
    """Compiles each pre-training of the table for the slice, and prints what it takes.

    Raises: UserError: the table has none.
    """
    if config.table in FROM_CHECKPOINT:
        raise UserError(f"table {config.table} pre-trains nothing")
    total = 0.0
    for name in dict.fromkeys(
        row.pretraining for row in get_table(config.table, config.scale).rows
    ):
        one = pretraining_config(config, name)
        if one.dtype == "auto":
            one.dtype = "bfloat16"
        vocabulary = (
            open_corpus(one.corpus).tokenizer.vocabulary if one.corpus else plan.stand_in(30522)
        )
        result = plan.plan(one, build_objective(one, vocabulary), target)
        hours = result.get("chip_hours")
        total += hours or 0.0
        shown = f"~{hours:,.0f} chip-hours" if hours is not None else "does not fit"
        print(f"{name}: {shown}")
    print(f"all: ~{total:,.0f} chip-hours of {target.name}, pre-training alone")


if __name__ == "__main__":
    entry.run(main)
