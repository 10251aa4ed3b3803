"""The grids of fine-tuning settings that were published."""

import itertools
from collections.abc import Collection, Mapping
from typing import Any

from bert_jax.errors import UserError

GRIDS: dict[str, dict[str, list[Any]]] = {
    "none": {},
    # BERT paper, section 4.1 (GLUE).
    "paper": {
        "learning_rate": [5e-5, 4e-5, 3e-5, 2e-5], "batch_size": [32], "epochs": [3.0],
    },
    # BERT paper, appendix A.3: other values, as published.
    "paper_a3": {
        "learning_rate": [5e-5, 3e-5, 2e-5], "batch_size": [16, 32], "epochs": [2.0, 3.0, 4.0],
    },
    # google-research/bert README, the 24 smaller models.
    "small": {
        "learning_rate": [3e-4, 1e-4, 5e-5, 3e-5], "batch_size": [8, 16, 32, 64, 128],
        "epochs": [4.0],
    },
}  # fmt: skip


def settings(grid: str) -> list[dict[str, Any]]:
    """Every combination of a grid's values; of "none" one, with nothing in it."""
    values = GRIDS[grid]
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def check_grid(grid: str, config: Any, chosen: Collection[str], option: str) -> None:
    """Checks that the grid overrides no setting that was chosen; it may have it among others.

    config: of a fine-tuning. chosen: names of its fields. option: how the grid is given.
    Raises: UserError, naming the setting.
    """
    for name, values in GRIDS[grid].items():
        if name in chosen and config[name] not in values:
            tried = ", ".join(f"{value:g}" for value in values)
            raise UserError(
                f"{option}={grid} tries {name}={tried}, but the config has {config[name]:g}; "
                f"{option}=none keeps it, and tries seeds alone"
            )


def name_of(point: Mapping[str, Any]) -> str:
    """`learning_rate=5e-05,batch_size=32,epochs=3`, or `default`."""
    return ",".join(f"{name}={value:g}" for name, value in point.items()) or "default"
