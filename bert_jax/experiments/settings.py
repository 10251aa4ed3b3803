"""What the fields of configs/reproduce.py may be."""

from typing import Any

from bert_jax.common.fields import Field, Settings, one_of, path, whole
from bert_jax.experiments.grid import GRIDS
from bert_jax.experiments.paper import SIZES, TASKS
from bert_jax.families import family_of
from bert_jax.tasks.settings import FINETUNE

_REPRODUCE: dict[str, Field] = {
    "table": one_of(*TASKS, argument="configs/reproduce.py:table=..."),
    "scale": one_of(*SIZES, argument="configs/reproduce.py:scale=..."),
    "grid": one_of(*GRIDS),
    "seeds": whole(1, 1_000),
    "checkpoint": path(),
    "glue": path(),
}


def settings_of(config: Any) -> Settings:
    """Gives the settings of a table: its own, and those of its pre-training and of each task."""
    rows = dict(_REPRODUCE)
    pretraining = family_of(config.pretraining).settings.rows
    rows.update({f"pretraining.{name}": field for name, field in pretraining.items()})
    for task in config.finetuning:
        rows.update({f"finetuning.{task}.{name}": field for name, field in FINETUNE.rows.items()})
    return Settings(rows)
