"""What the config.json of a run means, whichever version of bert_jax wrote it.

A run goes on under a later version as it would have gone on under its own. For that there are two
means. A field of the config that was added since has an entry in `MEANT`: the value that runs
without the field were made with. And a change of what the same fields mean (of the random keys,
say) raises `FORMAT`, which each run keeps as it was when the run began.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.files import read_json
from bert_jax.common.version import VERSION

# Of the runs that begin now; a config.json without "format" is of format 1.
# 2: each purpose of random keys has a root of its own (`keys`).
FORMAT = 2

# Dotted name of a field of configs/pretrain.py or configs/finetune.py that is newer than format 1:
# what a run meant whose config.json lacks it. Never change an entry: old runs stay as they are.
MEANT: dict[str, Any] = {
    "checkpoint_minutes": 0.0,
}


def read_config(workdir: Path) -> dict[str, Any]:
    """The config.json of a run, with what its version did not have yet filled in.

    Raises: UserError: it cannot be read, or is of a newer version of bert_jax.
    """
    path = workdir / "config.json"
    return filled(read_json(path), path)


def filled(config: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """A run's config with its format, and with every field that it lacks as it was meant then.

    Args:
      config: what config.json holds. where: its path, for errors.
    Returns: a config of its own; `config` stays as it is.
    Raises: UserError: it is of a newer version.
    """
    number = config.get("format", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"{where}: format is {number!r}, but must be a whole number from 1")
    if number > FORMAT:
        raise newer(where, f"format {number}")
    result = {n: dict(v) if isinstance(v, dict) else v for n, v in config.items()}
    for name, value in MEANT.items():
        *sections, field = name.split(".")
        part: Any = result
        for section in sections:
            part = part.get(section) if isinstance(part, dict) else None
        if isinstance(part, dict):  # a config without the section has no such fields
            part.setdefault(field, value)
    return result | {"format": number}


def format_of(workdir: Path) -> int:
    """The format of the run in a folder; where there is none yet, that of a new run.

    Raises: UserError: as `read_config`.
    """
    if not (workdir / "config.json").exists():
        return FORMAT
    return read_config(workdir)["format"]


def newer(where: str | Path, what: str) -> UserError:
    """The error about something in a run that this version does not know."""
    return UserError(
        f"{where}: this run was made by a newer bert_jax than {VERSION}, which does "
        f"not know its {what}; use the version that made it, or a later one"
    )
