"""Predictions as a table: the columns of the input, and beside them what was predicted.

The format is that of the file's name: `.tsv` (tabs, no quoting), `.csv` (with quoting) or `.jsonl`
(an object a line, numbers as numbers).
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.files import write_whole
from bert_jax.tasks.base import Task

Row = Mapping[str, Any]  # text, number or None of each column
SUFFIXES = (".tsv", ".csv", ".jsonl")


def check_format(path: Path) -> None:
    """Raises UserError: the name of the file tells no format that is known."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--output={path}: its format must be told by its name; known: {', '.join(SUFFIXES)}"
        )


def check_columns(path: Path, task: Task, examples: Mapping[str, Sequence[Any]]) -> None:
    """Checks, before anything is predicted, that the table can hold what the input holds.

    Raises: UserError: the input has a column of the name of one of ours, or a cell that a .tsv
      cannot hold.
    """
    ours = {*task.predicted_columns, *(["split"] if len(examples) > 1 else [])}
    for example in (example for some in examples.values() for example in some):
        columns = task.input_columns(example)
        if both := ours & columns.keys():
            raise UserError(
                f"{example.where}: the column {sorted(both)[0]!r} is one that --output adds; "
                "give it another name"
            )
        if path.suffix.lower() == ".tsv" and any(
            set(cell) & set("\t\n\r") for cell in columns.values()
        ):
            raise UserError(
                f"{example.where}: a cell holds a tab or a line end, which a .tsv cannot hold; "
                "name the --output .csv or .jsonl"
            )


def write_table(path: Path, rows: Iterable[Row]) -> Path:
    """Writes rows of the same columns; nothing is an empty cell, or null in JSON."""
    suffix, rows = path.suffix.lower(), list(rows)
    if suffix == ".jsonl":
        return write_whole(
            path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    table = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    if suffix == ".tsv":
        return write_whole(path, "".join("\t".join(cells) + "\n" for cells in table))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    return write_whole(path, text.getvalue())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return format(value, ".9g") if isinstance(value, float) else str(value)
