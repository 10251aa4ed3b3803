"""Tables as rows of text by column: TSV, CSV, JSON (lines or lists), parquet, TFDS data sets."""

import csv
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.files import parse_json
from bert_jax.data import records, tfds_source
from bert_jax.data.opened import COMPRESSED, read_lines

Row = tuple[str, dict[str, str]]  # (file:line, text of each column)

# Splits of TFDS for ours, where the names differ.
_TFDS_SPLITS = {
    "dev": ("validation", "validation_matched", "dev"),
    "dev_mismatched": ("validation_mismatched",),
    "test": ("test", "test_matched"),
}
ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt")  # of tables
_GAP = re.compile(r"[\s,]*")


def read_rows(
    path: Path, columns: Sequence[str] | None = None, skip_broken: bool = False
) -> Iterator[Row]:
    """Rows of a table with where they are, as `file:line`.

    The format is that of the suffix. `.tsv` and `.txt`: tabs and no quoting, as in GLUE, so that
    a `"` is text. `.csv`: with quoting. `.jsonl`: an object a line; `.json`: a list of objects,
    or an object a line. `.parquet`. Each may be compressed (`.tsv.gz`, `.jsonl.zst`).
    What is nested in an object gets a dotted name (`labels.label`, `endings.0`); null is "".
    A byte order mark and either line end are taken; blank lines are left out, unless the table
    has only one column.

    Args:
      columns: names of the columns where the file has no header of its own.
      skip_broken: leave out rows with too many or too few fields, with a line on stderr.

    Raises:
      UserError: not UTF-8, not in its format, a row with too many or too few fields, or no rows.
    """
    suffix = next((end for end in reversed(path.suffixes) if end not in COMPRESSED), "")
    if suffix in (".tsv", ".txt", ".csv"):
        lines = _csv_fields(path) if suffix == ".csv" else _tsv_fields(path)
        rows = _table(path, lines, columns, skip_broken)
    elif suffix == ".parquet":
        rows = _parquet(path)
    elif suffix in (".jsonl", ".json"):
        rows = _json_lines(path) if suffix == ".jsonl" else _json(path)
    else:
        known = f"{', '.join(ENDINGS)}, and these with {', '.join(COMPRESSED[1:])}"
        raise UserError(f"{path}: its format must be told by its name; known: {known}")
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{path} holds no rows")


def read_tfds(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]] | None:
    """Rows of one of our splits in a TFDS data set, by feature; None where it has no such split.

    Text comes as str, a class label by its name ("" where it is hidden), everything else as the
    Python values of what TFDS gives; `flat` makes columns of text of it.

    Raises: UserError: there is no such data set, or it cannot be read (see `tfds_source`).
    """
    folder = tfds_source.dataset_folder(name)
    for theirs in _TFDS_SPLITS.get(split, (split,)):
        if opened := tfds_source.open_split(folder, theirs):
            source, info = opened
            return (
                (f"{name}/{theirs}:{place}", {c: _plain(row[c], info.features[c]) for c in row})
                for place, row in ((place, source[place]) for place in range(len(source)))
            )
    return None


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Columns of text of nested dictionaries and lists, under dotted names; None is ""."""
    parts: Any = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list):
        parts = enumerate(value)
    elif not isinstance(value, Mapping):
        text = value if isinstance(value, str) else json.dumps(value)
        return {name: "" if value is None else text}
    if not value:
        return {name: ""}
    dot = f"{name}." if name else ""
    return {key: text for part, inner in parts for key, text in flat(inner, f"{dot}{part}").items()}


def column(row: Row, *names: str) -> str:
    """The text of the first of the columns `names` that is there.

    Raises: UserError that names the columns there are.
    """
    where, fields = row
    for name in names:
        if name in fields:
            return fields[name]
    wanted, known = " or ".join(map(repr, names)), ", ".join(fields)
    raise UserError(
        f"{where}: there is no column {wanted}; the columns are: {known} (of task=custom, "
        "--config.custom says in training what they are)"
    )


def number(where: str, text: str) -> float:
    """The number that a text is; UserError where it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the label {text!r} is not a number")
    return value


def _plain(value: Any, feature: Any) -> Any:
    """TFDS's value of a feature as Python values."""
    if isinstance(value, Mapping):
        inner = getattr(feature, "feature", feature)  # of a sequence of mappings
        return {name: _plain(part, inner[name]) for name, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if getattr(value, "ndim", 0) or isinstance(value, list):
        inner = getattr(feature, "feature", feature)
        return [_plain(part, inner) for part in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, int) and hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else ""
    return value


def _tsv_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path), 1):
        yield number, line.rstrip("\r\n").split("\t")


def _csv_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(read_lines(path), strict=True)
    number = 1
    try:
        for fields in reader:
            yield number, fields or [""]
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{number}: not CSV: {error}") from None


def _table(
    path: Path,
    lines: Iterator[tuple[int, list[str]]],
    columns: Sequence[str] | None,
    skip_broken: bool,
) -> Iterator[Row]:
    names = list(columns) if columns else next(lines, (0, [""]))[1]
    if len(set(names)) < len(names):
        raise UserError(f"{path}:1: two columns of the same name: {', '.join(names)}")
    broken = []
    for number, fields in lines:
        if fields == [""] and len(names) > 1:
            continue
        if len(fields) != len(names):
            broken.append(
                f"{path}:{number}: {len(fields)} fields, where there are {len(names)} columns: "
                f"{', '.join(names)}"
            )
            if not skip_broken:
                raise UserError(broken[0])
            continue
        yield f"{path}:{number}", dict(zip(names, fields, strict=True))
    if broken:
        print(f"{len(broken)} broken rows left out, the first at {broken[0]}", file=sys.stderr)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield _json_row(where, parse_json(line, where))


def _parquet(path: Path) -> Iterator[Row]:
    with records.open_parquet(path) as table:
        groups = range(table.num_row_groups)
        for number, row in enumerate(records.parquet_values(path, table, groups), 1):
            try:
                yield f"{path}, row {number}", flat(row)
            except TypeError:
                kinds = {name: type(value).__name__ for name, value in row.items()}
                raise UserError(
                    f"{path}, row {number}: a column is neither text nor number: {kinds}"
                ) from None


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, or an object a line, which many call .json too."""
    text = "".join(read_lines(path))
    first, _, others = text.lstrip().partition("\n")
    if first.startswith("{") and others.lstrip().startswith("{"):
        return _json_lines(path)
    return _json_list(path, text)


def _json_list(path: Path, text: str) -> Iterator[Row]:
    decoder = json.JSONDecoder()
    place = _end(text, 0)
    if text[place : place + 1] != "[":
        raise UserError(f"{path} is not a JSON list of rows: is it the file of another task?")
    place = _end(text, place + 1)
    line = 1 + text.count("\n", 0, place)
    while text[place : place + 1] != "]":
        try:
            _, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
        except (RecursionError, ValueError):  # which the next line tells better
            end = len(text)
        where = f"{path}:{line}"
        yield _json_row(where, parse_json(text[place:end], where))
        end = _end(text, end)
        line += text.count("\n", place, end)
        place = end


def _end(text: str, place: int) -> int:
    """Past the white space and commas at a place."""
    match = _GAP.match(text, place)
    return match.end() if match else place


def _json_row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a row must be an object {{...}}, not {json.dumps(value)[:40]}")
    return where, flat(value)
