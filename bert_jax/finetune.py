"""Fine-tuning on a task, evaluation and prediction with a fine-tuned model.

  python -m bert_jax.finetune --config=configs/finetune.py:task=mrpc \
      --config.init_from=RUN --config.data=glue_data/MRPC --workdir=OUT

Starts from a run of ours, a Hugging Face folder or a TF1 release; keeps the checkpoint that is best
by the official dev metric; writes `results.json`, `report.md`, predictions and plots. The same
command continues a run that was stopped or killed, to the bit. With `mode=eval` or `mode=predict`
the model is the one in --workdir.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import tasks
from bert_jax.common import entry, errors, run_format, schemas
from bert_jax.common.command_line import CONFIG, OUTPUT, WORKDIR, changed, given, read_config
from bert_jax.common.files import read_checked, read_text
from bert_jax.common.outputs import check_folder, check_output
from bert_jax.data import buckets
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference import loading
from bert_jax.models.backbone import Backbone
from bert_jax.models.body import Body
from bert_jax.objectives.base import Metric
from bert_jax.objectives.finetuning import TaskObjective
from bert_jax.reports.finetuning import write_results, write_task
from bert_jax.tasks import prediction_table
from bert_jax.tasks.base import ONE_SEGMENT, Examples, Feature, Task, run_features
from bert_jax.tasks.settings import FINETUNE
from bert_jax.training import distributed, loop, memory, optim, sharding
from bert_jax.training.checkpoint import has_checkpoint, load_params
from bert_jax.training.compile_cache import keep_programs
from bert_jax.training.trainer import Trainer, build_trainer
from bert_jax.training.workdir import alone_in, check_same, format_of, prepare_workdir
from bert_jax.weights import store
from bert_jax.weights.finetune_start import as_begun, initial_params, open_initial, read_splits

MAY_CHANGE = (
    "data", "train", "dev", "test", "init_from", "log_every", "checkpoint_minutes",
    "keep_checkpoints", "mesh", "accumulation", "remat", "model.remat", "model.scan_layers",
)  # fmt: skip
MAY_GROW = ("epochs", "steps")
# Of one in a table: what it was trained and scored on and began from make it another.
MAY_CHANGE_OF_TABLES = ("test", "log_every", "checkpoint_minutes", "keep_checkpoints", "mesh")


def main() -> None:
    config = read_config(CONFIG, FINETUNE)
    if config is None or not WORKDIR.value:
        raise errors.UserError(
            "both --config=configs/finetune.py:task=... and --workdir=FOLDER are needed"
        )
    memory.keep_freed_memory()
    distributed.initialize()
    keep_programs()
    workdir = Path(WORKDIR.value)
    output = Path(OUTPUT.value) if OUTPUT.value else None
    if output and config.mode == "train":
        raise errors.UserError("--output has no effect in training: it is for mode=predict or eval")
    if not output:
        check_folder(workdir)
    if config.mode == "train":
        finetune(config, workdir, changed())
    else:
        apply_model(config, workdir, given(), output)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a fine-tuning is made of: all that follows from its config and files."""

    task: Task  # fitted to the training examples
    examples: Examples
    features: dict[str, list[Feature]]  # of each split of the examples
    model: store.Pretrained  # to start from
    backbone: Backbone
    widths: Sequence[int]  # that batches may have; of training and evaluation
    phase: loop.Phase


def read_inputs(config: Any, workdir: Path | None = None, chosen: Collection[str] = ()) -> Inputs:
    """Reads all of it, so that what is wrong with a file is told before any training.

    workdir: of a run that may have begun already, and then goes on with its own task.
    chosen: names of fields that the user set.
    Raises: UserError: for everything in the settings and files that prevents the fine-tuning.
    """
    FINETUNE.check(config, chosen)
    task, examples = read_examples(config)
    if workdir and (workdir / "config.json").exists():
        task = as_begun(task, workdir)
    model = open_initial(config)
    backbone = model.body(config.dtype).backbone
    check_settings(config, backbone)
    featurise = functools.partial(
        _featurise, task, model.tokenizer, config.max_length, backbone.max_positions
    )
    features = {split: featurise(split, some) for split, some in examples.items()}
    paired = any(feature.arrays["segments"].any() for feature in features["train"])
    if backbone.segment_types == 1 and paired:
        distributed.say(f"{config.init_from} has one segment type: {ONE_SEGMENT}")
    if not features["train"]:
        raise errors.UserError("nothing of the training examples can be learnt from")
    steps = max(1, int(len(features["train"]) / config.batch_size * config.epochs))
    if steps >= 2**31:
        raise errors.UserError(
            f"epochs={config.epochs:g} makes {steps:.1e} steps, which is too many"
        )
    if not (widths := recorded_widths(config, workdir)):
        lengths = np.array([one.arrays["tokens"].shape[-1] for one in features["train"]])
        widths = buckets.training_widths(lengths, config.batch_size, steps, config.max_length)
    phase = build_phase(config, backbone, features["train"], model.tokenizer, steps, widths)
    return Inputs(task, examples, features, model, backbone, widths, phase)


def finetune(config: Any, workdir: Path, chosen: Collection[str] = ()) -> dict[str, Any]:
    """Trains, evaluates and predicts; returns what is in `results.json`.

    chosen: names of fields that the user set.
    """
    inputs = read_inputs(config, workdir, chosen)
    task, examples, features, phase = inputs.task, inputs.examples, inputs.features, inputs.phase
    model, tokenizer, widths = inputs.model, inputs.model.tokenizer, inputs.widths
    body = Body(inputs.backbone, config.features, config.bilstm, config.bilstm_width)
    objective = task.objective(body)
    trainer = _trainer(config, inputs, objective, workdir)
    trainer.check_memory()
    begins = not distributed.from_main(has_checkpoint(workdir))
    initial = initial_params(config, model, task, trainer) if begins else None
    longer = loop.longer(config, phase.stop, workdir)
    prepare_workdir(
        workdir, _described(config, inputs), (*MAY_CHANGE, "widths"), tokenizer,
        lambda folder: write_task(folder, task), may_grow=MAY_GROW,
    )  # fmt: skip
    distributed.say(longer)
    if _is_finished(workdir, phase.stop):
        _say_finished(workdir)
        return _results(workdir)
    for line in FINETUNE.never_reached(config, phase.stop, chosen):
        distributed.say(line)
    predict = trainer.jit(objective.predict)

    def predictions(params: Any, split: str) -> list[Any]:
        outputs = run_features(
            lambda batch: predict(params, trainer.put(batch, config.batch_size)),
            features[split], tokenizer.pad_id, widths, config.batch_size,
        )  # fmt: skip
        return task.decode(examples[split], features[split], outputs)

    def evaluate(params: Any, phase: loop.Phase) -> dict[str, float]:
        return task.score(examples["dev"], predictions(params, "dev"))

    every = config.eval_every or max(1, math.ceil(phase.stop / max(config.epochs, 1)))
    schedule = loop.Schedule(
        phase.stop, config.log_every, every, every, config.keep_checkpoints,
        best=Metric(task.metric, task.metric, "higher"),
        checkpoint_minutes=config.checkpoint_minutes,
    )  # fmt: skip
    with alone_in(workdir):
        loop.run(trainer, [phase], schedule, workdir, initial, evaluate)
    best = load_params(workdir, trainer.abstract_state["params"], best=True)
    facts = {
        "steps": phase.stop,
        "train_examples": len(examples["train"]),
        "train_features": len(features["train"]),
        "max_length": config.max_length,
        "parameters": sum(x.size for x in jax.tree.leaves(best)),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "padding": buckets.padding(
            [f.arrays for f in features["train"]],
            config.batch_size,
            config.seed,
            phase.stop,
            widths,
        ),
    }
    predicted = {split: predictions(best, split) for split in examples if split != "train"}
    return _write(workdir, workdir, task, examples, predicted, facts)


def _trainer(config: Any, inputs: Inputs, objective: TaskObjective, workdir: Path) -> Trainer:
    first = [inputs.features["train"][0].arrays]
    # At its greatest width, lest the initialisation be another program with other data.
    example = buckets.collate(first, 1, inputs.model.tokenizer.pad_id, inputs.widths[-1:])
    return build_trainer(
        config, sharding.make_mesh(config.mesh), inputs.phase.stop, objective, example,
        frozen=["encoder"] if config.features else (), format=format_of(workdir),
    )  # fmt: skip


def _described(config: Any, inputs: Inputs) -> dict[str, Any]:
    """Makes the config.json of a run: its config, its model, and digests of what it learns from."""
    return config.to_dict() | {
        "family": inputs.model.family,
        "model": dict(inputs.model.model),
        "steps": inputs.phase.stop,
        "widths": list(inputs.widths),
        # The order of batches is made of these, and the scores of checkpoints are of those.
        "train_features": _fingerprint(inputs.features["train"]),
        "dev_examples": _fingerprint_of(inputs.examples["dev"]),
    }


def recorded_widths(config: Any, workdir: Path | None) -> Sequence[int]:
    """Returns the widths of batches that the run in `workdir` began with; none: there is no run."""
    if not workdir or not (workdir / "config.json").exists():
        return ()
    # Runs of before took the whole ladder, however few steps they had.
    ladder = buckets.ladder(config.max_length)
    stored = run_format.read_config(workdir)
    if stored.get("max_length") != config.max_length:
        return ()  # the run will be refused
    found = stored.get("widths", list(ladder))
    if not isinstance(found, list) or found != [w for w in ladder if w in found] or not found:
        raise errors.UserError(
            f"{workdir}/config.json: widths is {found!r}, but must be widths of batches, of "
            f"{', '.join(map(str, ladder))}"
        )
    return found


def _featurise(
    task: Task, tokenizer: Tokenizer, longest: int, limit: int, split: str, examples: Sequence[Any]
) -> list[Feature]:
    """Features of a split; says how many texts were cut. limit: the model's positions."""
    made = task.featurise(examples, tokenizer, longest, train=split == "train")
    if cut := sum(feature.cut for feature in made):
        distributed.say(
            f"{split}: {cut:,} of {len(made):,} examples are over max_length={longest} and "
            f"were cut; --config.max_length can be up to {limit}"
        )
    return made


def _is_finished(workdir: Path, steps: int) -> bool:
    """Returns whether the run was trained to `steps`, and its results written."""
    there = (workdir / "results.json").exists()
    return distributed.from_main(there and _results(workdir).get("steps") == steps)


def _say_finished(workdir: Path) -> None:
    if distributed.is_main():
        print(read_text(workdir / "report.md"))
        print(
            f"{workdir} is finished: nothing left to train; its scores are of the data given "
            "then (mode=eval scores other data)"
        )


def apply_model(
    config: Any,
    workdir: Path,
    chosen: Mapping[str, Any] | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Evaluates or predicts with the model in the work directory; writes into MODE/ in it.

    Args:
      chosen: fields that the user set.
      output: a file for the table of `prediction_table`. Then nothing is written into MODE/.
    Returns: what is in MODE/results.json; with `output`, the scores alone, by split.
    Raises: UserError: it holds no model of this task; the data has no such split; a chosen field
      that has no effect here is not as it was in training; `output` cannot be written.
    """
    FINETUNE.check(config, {"task", "custom.family"}.intersection(chosen or ()))
    for name in ("task.json", "config.json"):
        if not (workdir / name).exists():
            raise errors.UserError(f"{workdir} holds no fine-tuned model (it has no {name})")
    split = "dev" if config.mode == "eval" else "test"
    used = ("task", "mode", "data", split, "batch_size", "dtype")
    check_same(workdir, chosen or {}, used, whole=False)
    if output:
        prediction_table.check_format(output)
        output = check_output(output)
    model = loading.load(workdir, config.dtype)
    task = model.task
    if task is None or task.name != config.task:
        trained = "nothing" if task is None else task.name
        raise errors.UserError(f"{workdir} was fine-tuned on {trained}, not on {config.task}")
    examples = read_splits(task, config)
    if output:
        prediction_table.check_columns(output, task, examples)
    found = {
        split: model.predict_table(some, batch_size=config.batch_size)
        for split, some in examples.items()
    }
    predicted = {split: predictions for split, (predictions, _) in found.items()}
    if output:
        tables = {split: rows for split, (_, rows) in found.items()}
        return _write_table(output, task, examples, predicted, tables)
    folder = workdir / config.mode
    if (folder / "results.json").exists():
        distributed.say(f"{folder} is written anew; --output=FILE keeps what is there")
    return _write(workdir, folder, task, examples, predicted, {})


def _write_table(
    output: Path, task: Task, examples: Examples, predicted: Mapping[str, list[Any]],
    tables: Mapping[str, Iterable[prediction_table.Row]],
) -> dict[str, Any]:  # fmt: skip
    """Writes one table of all splits, and prints the scores of those that have any."""
    which = {name: {"split": name} if len(tables) > 1 else {} for name in tables}
    rows = [{**which[split], **row} for split, table in tables.items() for row in table]
    scores = {
        split: task.score(examples[split], predictions)
        for split, predictions in predicted.items()
        if split.startswith("dev")
    }
    if distributed.is_main():
        prediction_table.write_table(output, rows)
        if scores:
            print(json.dumps(scores, indent=2))
        print(f"{output}: {len(rows):,} rows")
    distributed.wait_for_all("the table is written")
    return {"scores": scores}


def _write(workdir: Path, folder: Path, *what: Any) -> dict[str, Any]:
    """`write_results` by one process; what is in `results.json` on all."""
    if distributed.is_main():
        write_results(workdir, folder, *what)
    return _results(folder)


def _results(folder: Path) -> dict[str, Any]:
    """What is in `results.json`, as the main process sees it."""
    return distributed.from_main(
        read_checked(folder / "results.json", schemas.Results) if distributed.is_main() else {}
    )


def build_task(config: Any) -> Task:
    """The row of the config's task, not yet fitted."""
    return tasks.get_task(config.task, config.custom.to_dict())


def read_examples(config: Any) -> tuple[Task, Examples]:
    """The task fitted to its training examples, and all splits.

    Raises: UserError: as `read_splits`; what is in them can't be trained on or scored.
    """
    task = build_task(config)
    examples = read_splits(task, config)
    task = task.fit(examples["train"])
    for some in (examples[split] for split in examples if split.startswith("dev")):
        task.score(some, task.baseline(examples["train"], some))
    return task, examples


def check_settings(config: Any, backbone: Backbone) -> None:
    """Checks what needs no example: the settings against the backbone of `init_from`.

    Raises: UserError: one that cannot be, or that does not go with the model or the devices.
    """
    for name, most in (("reinit_layers", "layers"), ("max_length", "max_positions")):
        if config[name] > (there := getattr(backbone, most)):
            what = f"{there} {most.removeprefix('max_')} of {config.init_from}"
            raise errors.UserError(f"{name}={config[name]} is over the {what}")
    if config.reinit_layers and config.features:
        raise errors.UserError(
            f"with features={config.features} the encoder stays as it is: reinit_layers must be 0"
        )
    Body(backbone, config.features)
    sharding.check_batch(sharding.make_mesh(config.mesh), config.batch_size, config.accumulation)
    optim.optimizer(config.optimizer, optim.schedule(config, 10**9))  # the features tell the steps


def build_phase(
    config: Any, backbone: Backbone, features: Sequence[Feature], tokenizer: Tokenizer,
    steps: int, widths: Sequence[int],
) -> loop.Phase:  # fmt: skip
    """The one phase of fine-tuning: `steps` over the features (windows of long texts)."""
    arrays = [feature.arrays for feature in features]

    def batches(start: int, stop: int):
        return buckets.train_batches(
            arrays, config.batch_size, config.seed, steps, tokenizer.pad_id, widths, start, stop,
        )  # fmt: skip

    def flops(batch: Mapping[str, Any]) -> float:
        *rows, width = batch["tokens"].shape
        passes = 3 if config.features else 1  # a frozen encoder has no backward pass: a third
        return backbone.flops(int(np.prod(rows)), width) / passes

    return loop.Phase(0, steps, config.max_length, config.batch_size, flops, batches, lambda: ())


def _fingerprint(features: Sequence[Feature]) -> str:
    digest = hashlib.sha256()
    for feature in features:
        for name, value in sorted(feature.arrays.items()):
            digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def _fingerprint_of(examples: Sequence[Any]) -> str:
    plain = [dataclasses.replace(example, where="") for example in examples]
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


if __name__ == "__main__":
    entry.run(main)
