"""The grids of fine-tuning settings that were published."""

import itertools
from collections.abc import Mapping
from typing import Any

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


def name_of(point: Mapping[str, Any]) -> str:
    """`learning_rate=5e-05,batch_size=32,epochs=3`, or `default`."""
    return ",".join(f"{name}={value:g}" for name, value in point.items()) or "default"
