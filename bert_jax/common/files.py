"""Files and folders: written whole or not at all; read, parsed and checked in one place.

Every file that the package makes for others to read is written here: under a name of its own beside
the place where it belongs, so that several writers do not meet, and moved there once all of it is
on the disk, so that neither a kill nor a power cut leaves a part of it.
"""

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bert_jax.common.errors import UserError

# How the name of what is being written ends; a writer that was killed leaves it behind.
UNFINISHED = ".unfinished"
_DEEPEST = 100  # levels of JSON
_KINDS = {  # what msgspec calls a kind of value
    "array": "a list", "object": "an object", "str": "a text", "int": "a whole number",
    "float": "a number", "bool": "true or false", "null": "null",
}  # fmt: skip


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a new name beside `path`; the file that was written there becomes `path` in the end.

    If something goes wrong inside, it is removed, and `path` stays as it was.

    Raises: OSError, with the name of `path`: it cannot be written. UserError: it is a device or
      another special file, which the root user could replace by a file.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is a device or another special file; name another")
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


def write_json_lines(path: Path, values: Iterable[Any]) -> Path:
    """Writes a value a line; see `plain`."""
    return write_whole(path, "".join(map(json_line, values)))


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, if it is one: a pipe would block, a device never end.

    Raises: UserError: it is not there, cannot be opened, or is not a regular file.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is a pipe or a device; a file is needed")
    return file


@contextlib.contextmanager
def library_errors(path: Path | str) -> Iterator[None]:
    """Makes one line of whatever a library raises at a file that is damaged; it names the file.

    Panics of libraries in Rust (tokenizers, safetensors) are no `Exception`, and say what they have
    to say on stderr, which is for nobody.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if not panic and not isinstance(error, Exception):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read: {reason or type(error).__name__}") from error


def read_bytes(path: Path) -> bytes:
    """Reads a whole file. Raises: UserError: as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """Reads a whole UTF-8 file; a byte order mark is left out.

    Raises: UserError: as `open_regular`; it is not UTF-8, with the line where it is not.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise UserError(
            f"{path}:{line}: not UTF-8; convert the file, with iconv for example"
        ) from None


def parse_json(text: str, where: str, constants: bool = False) -> Any:
    """Parses JSON, and refuses what JSON parsers read in different ways.

    Args:
      where: the file, or the file and the line that the text is, for errors.
      constants: whether NaN and Infinity are taken, which are not JSON, but in logs of old runs.
    Raises: UserError: it is not JSON, nested thousands of levels deep, a number has thousands of
      digits, an object has a key twice, or a text holds half a surrogate pair.
    """

    def fail(reason: str) -> UserError:
        return UserError(f"{where}: {reason}")

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in value if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} comes twice in an object")
        return value

    try:
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=None if constants else constant,
        )
    except json.JSONDecodeError as error:
        line = "" if re.search(r":\d+$", where) else f":{error.lineno}"
        raise UserError(f"{where}{line}: not JSON: {error.msg}") from None
    except RecursionError:
        raise fail(f"it is nested more than {_DEEPEST} levels deep") from None
    except ValueError as error:
        digits = "digits" in str(error)
        raise fail(f"not JSON: {'a number of thousands of digits' if digits else error}") from None
    if _is_deep(text, value):
        raise fail(f"it is nested more than {_DEEPEST} levels deep")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            place = _half_pair(value, "") or ""
            raise fail(f"{place.lstrip('.')} holds half a surrogate pair; repair it") from None
    return value


def _half_pair(value: Any, place: str) -> str | None:
    """Where in a value the first text is that holds half a surrogate pair; None: nowhere."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return place or "a text"
        return None
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        if broken := next((key for key in value if _half_pair(key, "")), None):
            return f"the key {broken!a}"
        parts = [(f"{place}.{key}", part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(value)]
    return next((found for name, part in parts if (found := _half_pair(part, name))), None)


def _is_deep(text: str, value: Any) -> bool:
    """Whether a value that was parsed of a text is nested deeper than what walks it can take."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return False
    level, depth = [value], 0
    while level := [
        part
        for node in level
        if isinstance(node, list | dict)
        for part in (node.values() if isinstance(node, dict) else node)
    ]:
        depth += 1
        if depth > _DEEPEST:
            return True
    return False


def read_json(path: Path, constants: bool = False) -> dict[str, Any]:
    """Reads the object in a JSON file.

    constants: as in `parse_json`.
    Raises: UserError: as `read_text` and `parse_json`; it holds something else.
    """
    value = parse_json(read_text(path), str(path), constants=constants)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def read_checked(path: Path, schema: Any) -> dict[str, Any]:
    """Reads the object in a JSON file of ours, and checks it.

    schema: one of `bert_jax.common.schemas`.
    Raises: UserError: as `read_json`; a field is missing or is not what the schema says.
    """
    value = read_json(path, constants=True)
    check(value, schema, str(path))
    return value


def check(value: Any, schema: Any, where: str) -> Any:
    """Checks plain values against a schema, of msgspec's types; returns them as the schema's.

    Raises: UserError, naming `where` and the field: one is missing or of another kind.
    """
    try:
        return msgspec.convert(value, schema)
    except UserError as error:  # of a schema's own
        raise UserError(f"{where}: {error}") from error
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
    except (RecursionError, ValueError, OverflowError):
        text, place = "a value is out of all bounds", ""
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing:
        text = f"the field {missing[1]!r} is missing"
    elif found := re.fullmatch(r"Expected (.*?), got (.*)", text):
        wanted, there = (_in_words(part) for part in found.groups())
        text = f"{wanted} is expected, {there} is there"
    else:
        text = f"{_in_words(text.removeprefix('Expected '))} is expected"
    place = place.rstrip("`").lstrip(".")
    raise UserError(f"{where}: {place}{': ' if place else ''}{text}")


def _in_words(text: str) -> str:
    """A description of msgspec's, with kinds of values as people call them."""
    plain = re.sub(r"`([^`]*)`", r"\1", text).replace(" | ", " or ")
    return re.sub(rf"\b({'|'.join(_KINDS)})\b", lambda found: _KINDS[found[1]], plain)


def read_json_lines(path: Path, schema: Any = None) -> list[dict[str, Any]]:
    """Reads a log of ours: a value a line; without its last line, if a kill has cut that off.

    Returns: none, where there is no file.
    Raises: UserError: a line is broken, or is not what the schema says.
    """
    lines = read_text(path).split("\n") if path.exists() else []
    values = []
    for number, line in enumerate(lines[:-1], start=1):  # one that was cut off has no end
        if not line:
            continue
        where = f"{path}:{number}"
        try:
            value = parse_json(line, where, constants=True)
            check(value, dict[str, Any] if schema is None else schema, where)
        except UserError as error:
            reason = str(error).removeprefix(f"{where}:").strip()
            raise UserError(f"{where}: a broken line ({reason}); remove it") from None
        values.append(value)
    return values


def from_home(path: str) -> str:
    """The path with `~` or `~USER` at its beginning replaced by that home folder.

    A shell does so only where they begin a word, and in `--workdir=~/run` they do not.
    Raises: UserError: there is no such user.
    """
    if path.startswith("tfds:~"):
        return "tfds:" + from_home(path.removeprefix("tfds:"))
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(
            f"{path}: there is no home folder {path.split('/')[0]}; a file of that name is ./{path}"
        )
    return expanded
