"""The task of a fine-tuned model in a Hugging Face config: its classes, and all else of its row.

transformers knows names of classes and kinds of labels. The rest of a task (the threshold of SQuAD
2.0, tags of characters, columns) stands beside them as `bert_jax_task`, which it ignores and keeps.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.tasks import scaling
from bert_jax.tasks.choice import Choice
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.squad import Answering
from bert_jax.tasks.tagging import Tagging
from bert_jax.weights.store import Pretrained, some

_OURS = "bert_jax_task"
_PROBLEMS = {  # kinds of classification, and their problem_type
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "numbers": "regression",
}


def read_task(
    config: Mapping[str, Any], parts: Mapping[str, int], where: Path
) -> tuple[dict[str, Any] | None, list[str]]:
    """The row of the task of a head, None without one; and notes.

    It is the row that `task_config` wrote, if that is of such a head: a model that was trained
    further elsewhere may have another. Else it is that of a task for a user's own data.

    Args: parts: the heads, with the numbers of their classes.
    Raises: UserError, naming `where`: classes are not numbered, or the row is none.
    """
    labels, notes = _class_names(config, parts, where)
    guess = _guess(config, parts, labels)
    if _OURS not in config:
        return guess, notes
    row = _row(config[_OURS], where)
    if guess is not None and _same_head(row, guess):
        return row, notes
    return guess, [*notes, f"not used: {_OURS} in the config, which is of another head or classes"]


def task_config(task: Mapping[str, Any] | None, parts: Mapping[str, int]) -> dict[str, Any]:
    """What a config says of a task, and of the classes of a head even without one.

    Args: parts: those that are written, with the numbers of their classes.
    """
    config: dict[str, Any] = {}
    labels: tuple[str, ...] = ()
    if {"classifier", "tag_head"} & parts.keys():
        labels = _names(enumerate(_labels(task) if task else ()), parts)
        config["id2label"] = dict(enumerate(labels))
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    if "classifier" in parts:
        config["problem_type"] = _PROBLEMS[(task or {}).get("kind", "single")]
    if task is not None:
        row = tasks.to_dict(tasks.from_dict(task))  # of task.json, with lists
        guess = _guess(config, parts, labels)
        if guess is not None and row != guess and _same_head(row, guess):
            config[_OURS] = row
    return config


def in_own_unit(pretrained: Pretrained) -> Pretrained:
    """Returns a model of numbers whose head gives them in their own unit, as transformers reads it.

    The means and standard deviations of `tasks.scaling` go into the weights of the head. Other
    models stay as they are.
    """
    task = pretrained.task
    if task is None or not task.get("scales"):
        return pretrained
    scales = tuple(map(tuple, task["scales"]))
    head = scaling.rescaled_head(pretrained.params["classifier"], scales, ())
    params = {**pretrained.params, "classifier": head}
    return dataclasses.replace(pretrained, params=params, task={**task, "scales": ()})


def _guess(
    config: Mapping[str, Any], parts: Mapping[str, int], labels: tuple[str, ...]
) -> dict[str, Any] | None:
    """The row of a task for a user's own data that fits the head, with its label names."""
    if "classifier" in parts:
        kinds = {problem: kind for kind, problem in _PROBLEMS.items()}
        problem = _PROBLEMS["numbers"] if len(labels) == 1 else config.get("problem_type")
        kind = kinds.get(str(problem), "single")
        row = Classification.custom(kind=kind)
        if kind == "numbers":
            row = dataclasses.replace(row, label=tuple((label,) for label in labels))
        else:
            row = dataclasses.replace(row, labels=labels)
        return tasks.to_dict(dataclasses.replace(row, texts=()))  # nothing says whether of pairs
    if "tag_head" in parts:
        return tasks.to_dict(dataclasses.replace(Tagging.custom(), labels=labels))
    if "choice_head" in parts:
        return tasks.to_dict(Choice.custom())
    return tasks.to_dict(Answering.custom()) if "span_head" in parts else None


def _row(given: Any, where: Path) -> dict[str, Any]:
    """A row as it stood in a config, its values checked.

    Raises: UserError, naming `where`: it is none.
    """
    try:
        return tasks.to_dict(tasks.from_dict(given if isinstance(given, dict) else {}, _OURS))
    except UserError as error:
        reason = str(error).removeprefix(f"{_OURS}: ")
        raise UserError(
            f"{where}: {_OURS} in the config is no task ({reason}); remove it, and the model is "
            "read as one from elsewhere"
        ) from error


def _same_head(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a head of the one row is as good as of the other."""
    kinds = [(row["family"], row.get("kind"), _labels(row)) for row in (one, other)]
    return kinds[0] == kinds[1]


def _labels(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a task's head, where it has such."""
    if task.get("kind") == "numbers":
        return tuple(next(iter(column), "") for column in task["label"])
    return tuple(task["labels"]) if task["family"] in ("classification", "tagging") else ()


def _class_names(
    config: Mapping[str, Any], parts: Mapping[str, int], where: Path
) -> tuple[tuple[str, ...], list[str]]:
    """The names of a head's classes that a config has; a note if texts have two of one name.

    Those get another: label names are how a text's probabilities are told apart.

    Raises: UserError, naming `where`: the config does not number the classes.
    """
    given = config.get("id2label") or {}
    if not isinstance(given, dict) or not all(map(str.isdecimal, given)):
        raise UserError(
            f'{where}: id2label in the config must name classes by number, as {{"0": "no"}}; it is '
            f"{given!r:.80}"
        )
    names = _names(given.items(), parts)
    if "classifier" not in parts:
        return names, []
    labels: list[str] = []
    for number, name in enumerate(names):
        while name in labels:
            name = f"{name} ({number})"
        labels.append(name)
    new = [name for name in labels if name not in names]
    notes = [f"classes of the same name; called by their numbers: {some(new)}"] if new else []
    return tuple(labels), notes


def _names(given: Iterable[tuple[Any, Any]], parts: Mapping[str, int]) -> tuple[str, ...]:
    """A name for each class of a head, as transformers calls those that have none."""
    names = {int(number): str(name) for number, name in given}
    count = max(parts.get("classifier", 0), parts.get("tag_head", 0))
    return tuple(names.get(number, f"LABEL_{number}") for number in range(count))
