"""Text, JSON and JSON-lines files, written whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError


def write_whole(path: Path, text: str) -> Path:
    """Writes a text file under another name and moves it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes a value as JSON for people to read."""
    return write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: UserError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def write_json_lines(path: Path, values: Iterable[Any]) -> Path:
    """Writes a value a line."""
    return write_whole(path, "".join(json.dumps(value) + "\n" for value in values))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, none where there is none; a last one that a kill cut off is left out.

    Raises: UserError: a line is broken.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    values = []
    for number, line in enumerate(lines[:-1], start=1):  # one that was cut off has no end
        try:
            values += [json.loads(line)] if line else []
        except ValueError as error:
            raise UserError(f"{path}:{number}: a broken line ({error}); remove it") from error
    return values
