"""The table of tasks: a row for each data set, of one of four families."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.files import check
from bert_jax.tasks.base import Task
from bert_jax.tasks.choice import TASKS as CHOICE
from bert_jax.tasks.choice import Choice
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.glue import TASKS as GLUE
from bert_jax.tasks.korean import TASKS as KOREAN
from bert_jax.tasks.squad import TASKS as ANSWERING
from bert_jax.tasks.squad import Answering
from bert_jax.tasks.tagging import TASKS as TAGGING
from bert_jax.tasks.tagging import Tagging

FAMILIES: dict[str, Any] = {
    "classification": Classification,
    "answering": Answering,
    "tagging": Tagging,
    "choice": Choice,
}
TASKS: dict[str, Task] = {row.name: row for row in (*GLUE, *ANSWERING, *TAGGING, *CHOICE, *KOREAN)}


def get_task(name: str, custom: Mapping[str, Any] | None = None) -> Task:
    """The row of that name.

    custom: of which "custom" is made: a `family`, and its settings among those of other families.
    Raises: UserError listing the names, or what a custom task lacks.
    """
    if name == "custom":
        settings = dict(custom or {})
        family = settings.pop("family", "classification")
        if family not in FAMILIES:
            raise UserError(f"custom.family={family!r} is unknown; known: {', '.join(FAMILIES)}")
        make = FAMILIES[family].custom
        known = inspect.signature(make).parameters
        return make(**{setting: settings[setting] for setting in known if setting in settings})
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; known: {', '.join([*TASKS, 'custom'])}")
    return TASKS[name]


def setting_acts(name: str, family: str, setting: str) -> str:
    """Why a setting of the config's `custom` section has no effect; "" if it has one.

    name: of the task; family: of a custom one.
    """
    if name != "custom":
        return f"on task={name}: it is for task=custom"
    if setting not in inspect.signature(FAMILIES[family].custom).parameters:
        return f"on a custom task of the family {family}"
    return ""


def family(task: Task) -> str:
    """The family's name."""
    return next(name for name, kind in FAMILIES.items() if isinstance(task, kind))


def heads(task: Any) -> dict[str, int]:
    """The parts of a fine-tuned model above its encoder, with the number of classes of its head."""
    name = family(task)
    if name == "classification":
        return {"pooler": 0, "classifier": task.outputs}
    if name == "choice":
        return {"pooler": 0, "choice_head": 1}
    return {"tag_head": len(task.labels)} if name == "tagging" else {"span_head": 2}


def to_dict(task: Any) -> dict[str, Any]:
    """The row as plain values, to be stored with a model."""
    return {"family": family(task), **dataclasses.asdict(task)}


def from_dict(values: Mapping[str, Any], where: str = "task.json") -> Task:
    """Makes the row that `to_dict` gave; its fields are checked against the types of the row's.

    where: names the values in errors.
    Raises: UserError: they are not those of a task, a field is of another kind, or cannot be.
    """
    name = values.get("family")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{where}: family: one of {', '.join(FAMILIES)} is expected, not {name!r}")
    fields = {field.name for field in dataclasses.fields(FAMILIES[name])}
    unknown = sorted(values.keys() - fields - {"family"})
    if unknown:
        raise UserError(
            f"{where}: the field {unknown[0]!r} is unknown to this version; it is misspelt, or a "
            "newer bert_jax wrote it: update this one"
        )
    return check({k: v for k, v in values.items() if k != "family"}, FAMILIES[name], where)
