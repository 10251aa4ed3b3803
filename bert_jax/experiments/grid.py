"""Grids of fine-tuning settings: those that were published, and one's own."""

import itertools
import json
import urllib.parse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.files import read_json

Grid = Mapping[str, list[Any]]  # the values to try of each field

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
# Fields that make another task or data set of it; and the seed, which --seeds tries.
_FIXED = ("task", "mode", "seed", "data", "train", "dev", "test", "dev_share", "custom", "mesh")


def read_grid(text: str, config: Any) -> Grid:
    """Reads a grid: a name of GRIDS, `learning_rate=1e-5,3e-5;batch_size=16,32`, or a JSON file.

    Args: config: of a fine-tuning, whose fields and types of values these are.
    Raises: UserError: it is none of these; there is no such field, or no value of its type.
    """
    if text in GRIDS:
        return GRIDS[text]
    if "=" in text and not text.endswith(".json"):
        parts = [part.partition("=") for part in text.split(";") if part.strip()]
        given: dict[str, Any] = {}
        for name, _, values in parts:
            if name.strip() in given:
                raise UserError(f"--grid={text}: {name.strip()} is there twice")
            given[name.strip()] = [value.strip() for value in values.split(",")]
    elif Path(text).is_file():
        given = read_json(Path(text))
    else:
        raise UserError(
            f"--grid={text} is none of {', '.join(GRIDS)}, nor NAME=VALUE,VALUE;NAME=..., nor a "
            "JSON file that there is"
        )
    grid = {name: _values(text, name, values, config) for name, values in given.items()}
    if not grid:
        raise UserError(f"--grid={text} names no field; --grid=none tries seeds alone")
    return grid


def _values(grid: str, name: str, given: Any, config: Any) -> list[Any]:
    """The values of a field, of its type in the config."""
    if name.partition(".")[0] in _FIXED:
        hint = "; --seeds=N tries seeds" if name == "seed" else ""
        raise UserError(f"--grid={grid}: {name} cannot be one of its fields{hint}")
    kind = type(_field(config, name))
    if kind not in (bool, int, float, str):
        raise UserError(f"--grid={grid}: the config has no field {name!r} of which to try values")
    values = []
    for value in given if isinstance(given, list) else [given]:
        try:
            # JSON's true is what the command line writes as true.
            text = value if isinstance(value, str) else json.dumps(value)
            made = {"true": True, "false": False}[text] if kind is bool else kind(text)
        except (KeyError, ValueError, TypeError):
            raise UserError(
                f"--grid={grid}: {name}={value} must be of the type {kind.__name__}"
            ) from None
        if made in values:
            raise UserError(f"--grid={grid}: {name}={value} is there twice")
        values.append(made)
    if not values:
        raise UserError(f"--grid={grid}: {name} has no values")
    return values


def settings(grid: Grid) -> list[dict[str, Any]]:
    """Every combination of a grid's values; of "none" one, with nothing in it."""
    return [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]


def check_grid(grid: str, config: Any, chosen: Collection[str], option: str) -> None:
    """Checks that the grid overrides no setting that was chosen; it may have it among others.

    Args:
      grid: as it was given with `option`. config: of a fine-tuning. chosen: names of its fields.
    Raises: UserError, naming the setting.
    """
    for name, values in read_grid(grid, config).items():
        value = _field(config, name)
        if name in chosen and value not in values:
            tried = ", ".join(map(_text, values))
            raise UserError(
                f"{option}={grid} tries {name}={tried}, but the config has {_text(value)}; "
                f"{option}=none keeps it, and tries seeds alone"
            )


def _field(config: Any, name: str) -> Any:
    """The value of a field, which may be in a section: `optimizer.beta1`; None of one not there."""
    for part in name.split("."):
        config = config.get(part) if hasattr(config, "items") else None
    return config


def name_of(point: Mapping[str, Any]) -> str:
    """`learning_rate=5e-05,batch_size=32,epochs=3`, or `default`: also the name of a folder."""
    return ",".join(f"{name}={_text(value)}" for name, value in point.items()) or "default"


def _text(value: Any) -> str:
    """A value in as few characters as tell it from others, none of which parts a path."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return urllib.parse.quote(str(value), safe="")
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
