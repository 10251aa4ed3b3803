"""Files and folders, written whole or not at all; text, JSON and JSON lines.

Every file that the package makes for others to read is written here: under a name of its own beside
the place where it belongs, so that several writers do not meet, and moved there once all of it is
on the disk, so that neither a kill nor a power cut leaves a part of it.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError

# How the name of what is being written ends; a writer that was killed leaves it behind.
UNFINISHED = ".unfinished"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a new name beside `path`; the file that was written there becomes `path` in the end.

    If something goes wrong inside, it is removed, and `path` stays as it was.

    Raises: OSError, with the name of `path`: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = _beside(path)
    try:
        yield made
        _sync(made)
        made.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(made)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        made.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Makes a new folder beside `path`, which becomes `path` in the end.

    `path` must not exist, or be an empty folder. If something goes wrong inside, what was made is
    removed.
    """
    made = _beside(path)
    made.mkdir(parents=True)
    try:
        yield made
        for entry in sorted(made.rglob("*"), reverse=True):
            _sync(entry)
        _sync(made)
        made.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody else uses; short enough for any disk."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}{UNFINISHED}")


def _sync(path: Path) -> None:
    """Returns once what the file or folder holds is on the disk, where the system can say so."""
    if not path.is_dir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return
    with contextlib.suppress(OSError):  # not every file system knows it of folders
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Writes a file: text as UTF-8, or bytes. Returns `path`."""
    data = content.encode() if isinstance(content, str) else content
    with written_whole(path) as made:
        made.write_bytes(data)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Writes a value as JSON for people to read; see `plain` for numbers that JSON has not."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_whole(path, text + "\n")


def json_line(value: Any) -> str:
    """A value as one line of JSON, with its end; see `plain`."""
    return json.dumps(plain(value), allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value with null in the place of NaN and infinity, which are not JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


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
    """Writes a value a line; see `plain`."""
    return write_whole(path, "".join(map(json_line, values)))


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
