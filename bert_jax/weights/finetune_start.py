"""What a fine-tuning starts from: its examples, and the model of `init_from` with a new head."""

import dataclasses
import filecmp
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import tasks
from bert_jax.common import errors
from bert_jax.common.files import read_json
from bert_jax.tasks import scaling
from bert_jax.tasks.base import Examples, Source, Task, hold_out
from bert_jax.tasks.classification import Classification
from bert_jax.training import distributed
from bert_jax.training.trainer import Trainer
from bert_jax.weights import opening, store

HEADS = {"classifier", "span_head", "tag_head", "choice_head"}


def read_splits(task: Task, config: Any) -> Examples:
    """The splits that the config's mode needs, each at least one example long.

    Raises: UserError: one that is needed is not there, or has nothing in it.
    """
    files = {name: config[name] for name in ("train", "dev", "test") if config[name]}
    source = Source(config.data, files)
    if not config.data and not files:
        raise errors.UserError(
            "--config.data=FOLDER is needed, or single files (--config.train, dev, test)"
        )
    wanted = {
        "train": task.splits,
        "eval": [split for split in task.splits if split.startswith("dev")],
        "predict": [s for s in task.splits if s != "train" and not s.startswith("dev")],
    }[config.mode]
    examples: Examples = {
        split: found for split in wanted if (found := task.read(source, split)) is not None
    }
    empty = [split for split, found in examples.items() if not found]
    where = config.data or ", ".join(files.values())
    missed = {
        split: f" (looked for {', '.join(names)})"
        for split, names in source.missed.items()
        if names
    }
    if empty:
        raise errors.UserError(f"{where}: the {empty[0]} split of {task.name} is empty")
    if config.mode != "train":
        if not examples:
            raise errors.UserError(
                f"{where} has no split of {task.name} to {config.mode}{''.join(missed.values())}"
            )
        return examples
    if "train" not in examples:
        raise errors.UserError(
            f"{where} has no train split of {task.name}; --config.train=FILE"
            f"{missed.get('train', '')}"
        )
    _check_apart(source.found)
    if config.train_examples > len(examples["train"]):
        distributed.say(
            f"note: train_examples={config.train_examples}, but there are only "
            f"{len(examples['train']):,}"
        )
    if config.train_examples:
        examples["train"] = examples["train"][: config.train_examples]
    if "dev" in examples:
        if config.dev_share:
            distributed.say("dev_share is not used: there is a dev split")
    else:
        if not config.dev_share:
            raise errors.UserError(
                f"{where} has no dev split of {task.name}: give --config.dev=FILE, or "
                "--config.dev_share=0.1 to hold out a tenth of the training examples"
                f"{missed.get('dev', '')}"
            )
        examples["train"], examples["dev"] = hold_out(examples["train"], config.dev_share)
    return examples


def _check_apart(files: Mapping[str, Path]) -> None:
    """Checks that nothing is scored on the examples that it was trained on.

    files: of each split that is a file. Raises: UserError: a dev split is the train split's file.
    """
    if "train" not in files:  # it is of TFDS
        return
    train = files["train"]
    for split, file in files.items():
        if split == "train":
            continue
        if train.samefile(file) and split.startswith("dev"):
            raise errors.UserError(
                f"the {split} file {file} is the train file, so scores would be of what was "
                "learnt; --config.dev_share=0.1 without a dev file holds examples out"
            )
        if filecmp.cmp(train, file, shallow=False):
            distributed.say(f"note: the {split} file {file} holds the same as the train file")


def as_begun(task: Task, workdir: Path) -> Task:
    """The task as the run in the work directory has it.

    One of numbers that began before these were learnt in standard deviations goes on as it began.
    """
    if not (isinstance(task, Classification) and task.scales):
        return task
    if "standardise" in read_json(workdir / "task.json"):
        return task
    return dataclasses.replace(task, standardise=False, scales=())


def open_initial(config: Any) -> store.Pretrained:
    """The model to start from, with the config's dropout and new tokens.

    Raises: UserError: there is none.
    """
    if not config.init_from:
        raise errors.UserError(
            "--config.init_from=FOLDER is needed: a pre-trained model (with "
            "--config.from_scratch=true only its sizes and vocabulary are used)"
        )
    model = opening.open_model(config.init_from)
    if config.add_tokens:
        tokens = store.read_tokens(Path(config.add_tokens))
        model = store.add_tokens(model, tokens, config.seed)
    for note in model.notes:
        distributed.say(note)
    rates = {"hidden_dropout": config.dropout, "attention_dropout": config.dropout}
    remat = config.remat or model.model.get("remat", False)
    return dataclasses.replace(model, model={**model.model, **rates, "remat": remat})


def initial_params(config: Any, model: store.Pretrained, task: Task, trainer: Trainer) -> Any:
    """The parameters to start from, on the mesh; says what of them is new."""
    fresh = trainer.init()["params"]
    if config.from_scratch:
        distributed.say("from scratch: all parameters are new, from random")
        return fresh
    given = dict(model.params)
    if not same_labels(model.task, task):  # the head of another task
        for head in HEADS & given.keys():
            del given[head]
    elif isinstance(task, Classification) and task.kind == "numbers":
        before: Any = tasks.from_dict(model.task or {})
        if old := given.get("classifier"):  # absent where parts were left out since
            given["classifier"] = scaling.rescaled_head(old, before.scales, task.scales)
    if _reads_others(fresh, given):
        del given["pooler"]
    params, new, unused = store.merge(fresh, given, config.init_from)
    backbone = model.body(config.dtype).backbone
    encoders = params["encoder"], fresh["encoder"]
    params["encoder"], layers = backbone.reinit(*encoders, config.reinit_layers)
    new += [f"encoder/{name}" for name in layers]
    if config.reinit_layers and "pooler" in params and "pooler" not in new:
        params["pooler"], new = fresh["pooler"], [*new, "pooler"]
    distributed.say(
        f"from {config.init_from}; new, from random: {', '.join(new) or 'nothing'}; "
        f"not used: {', '.join(unused) or 'nothing'}"
    )
    shardings = jax.tree.map(lambda x: x.sharding, trainer.abstract_state["params"])
    return jax.device_put(params, shardings)


def _reads_others(fresh: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the given pooler is of other vectors than the new one: not of a BiLSTM's, say."""
    if "pooler" not in fresh or "pooler" not in given:
        return False
    shapes = [jax.tree.map(np.shape, tree["pooler"]) for tree in (fresh, given)]
    return "bilstm" in fresh.keys() - given.keys() or shapes[0] != shapes[1]


def same_labels(before: Mapping[str, Any] | None, task: Task) -> bool:
    # As JSON, so that lists and tuples are the same.
    before, now = json.loads(json.dumps([before, tasks.to_dict(task)]))
    names = ["family", "labels", "kind"]
    if now.get("kind") == "numbers":
        names.append("label")  # the columns are what the outputs mean
    return before is not None and all(before.get(name) == now.get(name) for name in names)
