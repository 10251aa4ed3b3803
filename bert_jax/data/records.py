"""Files whose records are documents: JSON lines, TSV, CSV, parquet, and pairs of texts.

A record's text is in a field or column with a name; its lines are the paragraphs of the document.
Records are read one by one, so memory does not depend on the size of a file.
"""

import contextlib
import csv
import html
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.data import opened

RECORD_BYTES = 1 << 26  # a longer line is a bad record
PARQUET_ROWS = 256  # read at once
_BOM = b"\xef\xbb\xbf"

Document = list[str]  # paragraphs
# Called with a record that cannot be read: how to tell where it is, and what is wrong with it.
Bad = Callable[[Callable[[], str], str], None]


class BadRecord(Exception):
    """A record that cannot be read: what is wrong with it."""


class RecordReader:
    """Reads the records of a part of a file into documents.

    Attributes:
      position: how far the file has been read: bytes of it, or row groups of a parquet file.
    """

    def __init__(self, source: str, path: Path, field: str, bad: Bad):
        """Sets what is read.

        Args:
          source: one of RECORDS.
          field: the name of the field or column that holds the text.
          bad: called with each record that cannot be read, which is then left out.
        """
        self._source, self._path, self._field, self._bad = source, path, field, bad
        self.position = 0

    def documents(self, begin: int, end: int) -> Iterator[Document]:
        """Documents of the records in bytes begin..end, or in these row groups of a parquet file.

        A file that cannot be cut (a compressed one, CSV) is read whole.

        Raises: UserError: it is not of its kind, or lacks the column.
        """
        if self._source == "parquet":
            return self._parquet(begin, end)
        return self._csv() if self._source == "csv" else self._lines(begin, end)

    def _lines(self, begin: int, end: int) -> Iterator[Document]:
        parse = _PARSERS[self._source]
        content, file = opened.open_bytes(self._path)
        with content:
            header: list[str] = []
            offset = 0  # in the content
            if self._source == "tsv":
                line = content.readline(RECORD_BYTES)
                offset = len(line)
                header = _tabs(self._decode(line.removeprefix(_BOM)))
                self._check(header)
            if begin > offset:
                content.seek(begin)
                offset = begin
            while content is not file or offset < end:
                start, data = offset, content.readline(RECORD_BYTES)
                if not data:
                    return
                offset += len(data)
                cut = len(data) == RECORD_BYTES and not data.endswith(b"\n")
                while cut and (rest := content.readline(RECORD_BYTES)):
                    offset += len(rest)
                    if rest.endswith(b"\n"):
                        break
                self.position = offset if content is file else file.tell()
                data = data.removeprefix(_BOM) if start == 0 else data
                try:
                    if cut:
                        raise BadRecord(f"a line of more than {RECORD_BYTES >> 20} MiB")
                    if not data.strip():
                        continue
                    document = parse(_decode(data).rstrip("\r\n"), self._field, header)
                except BadRecord as error:
                    self._bad(lambda at=start: self._line(at), str(error))  # type: ignore[misc]
                    continue
                yield document

    def _line(self, position: int) -> str:
        return f"{self._path}:{opened.line_number(self._path, position)}"

    def _decode(self, header: bytes) -> str:
        try:
            return _decode(header)
        except BadRecord as error:
            raise UserError(f"{self._path}:1: {error}") from None

    def _check(self, names: Sequence[str]) -> None:
        """Raises UserError unless one column, and one only, has the name of the field."""
        if names.count(self._field) != 1:
            found = "several columns" if self._field in names else "no column"
            raise UserError(
                f"{self._path} has {found} {self._field!r}, but {', '.join(names)[:200]}: "
                "set --config.text_feature to the one that holds the text"
            )

    def _csv(self) -> Iterator[Document]:
        content, file = opened.open_bytes(self._path)

        def lines() -> Iterator[str]:
            for number, data in enumerate(content, 1):
                self.position = file.tell()
                try:
                    yield _decode(data.removeprefix(_BOM) if number == 1 else data)
                except BadRecord as error:
                    self._bad(lambda at=number: f"{self._path}:{at}", str(error))  # type: ignore[misc]
                    yield "\n"  # so that the numbers of the lines stay right

        csv.field_size_limit(RECORD_BYTES)
        with content:
            reader = csv.reader(lines(), strict=True)
            names: list[str] = []
            while True:
                number = reader.line_num + 1
                try:
                    fields = next(reader)
                    if not fields:
                        continue
                    if not names:
                        self._check(names := fields)
                        continue
                    document = _cell(fields, self._field, names)
                except StopIteration:
                    return
                except (csv.Error, BadRecord) as error:
                    told = f"not CSV: {error}" if isinstance(error, csv.Error) else str(error)
                    self._bad(lambda at=number: f"{self._path}:{at}", told)  # type: ignore[misc]
                    continue
                yield document

    def _parquet(self, begin: int, end: int) -> Iterator[Document]:
        with open_parquet(self._path) as table:
            self._check(table.schema_arrow.names)
            kind = table.schema_arrow.field(self._field).type
            if str(kind) not in ("string", "large_string", "string_view"):
                raise UserError(
                    f"{self._path}: column {self._field!r} holds {kind}, not text: set "
                    "--config.text_feature to the one that does"
                )
            groups = range(table.num_row_groups)
            if not opened.compression(self._path):
                groups = groups[begin:end]
            row = sum(table.metadata.row_group(group).num_rows for group in range(groups.start))
            for group in groups:
                for text in parquet_values(self._path, table, [group], [self._field]):
                    row += 1
                    if isinstance(text[self._field], str):
                        yield text[self._field].split("\n")
                    else:
                        where = f"{self._path}, row {row}"
                        self._bad(lambda at=where: at, f"{self._field!r} is null")  # type: ignore[misc]
                self.position = group + 1


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Opens a `pyarrow.parquet.ParquetFile`.

    Raises: UserError: the file is no parquet file, or pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: parquet files need pyarrow: pip install pyarrow") from error
    with opened.open_seekable(path) as content:
        try:
            table = parquet.ParquetFile(content)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is not a parquet file, or damaged ({reason})") from error
        yield table


def parquet_values(
    path: Path, table: Any, groups: Sequence[int], columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of these row groups of an opened parquet file, with all columns or some.

    Raises: UserError: they are damaged.
    """
    try:
        for batch in table.iter_batches(PARQUET_ROWS, row_groups=list(groups), columns=columns):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}); bring it again") from error


# --- What a line holds -------------------------------------------------------------------------


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"invalid UTF-8 at byte {error.start + 1} of the line") from None


def _tabs(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _json(line: str, field: str) -> tuple[str, dict[str, Any]]:
    """The text in the field of a JSON object, and the object; a dotted name goes into objects."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise BadRecord("JSON that is nested too deep") from None
    except ValueError as error:
        raise BadRecord(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadRecord("not a JSON object {...}")
    text: Any = value
    for name in [field] if field in value else field.split("."):
        if not isinstance(text, dict) or name not in text:
            raise BadRecord(
                f"no field {field!r}, but {', '.join(value)[:200] or 'none'} "
                "(--config.text_feature is the one that holds the text)"
            )
        text = text[name]
    if not isinstance(text, str):
        raise BadRecord(f"the field {field!r} is not a text, but {json.dumps(text)[:40]}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRecord(f"the field {field!r} holds half a surrogate pair")
    return text, value


def _json_document(line: str, field: str, names: Sequence[str]) -> Document:
    return _json(line, field)[0].split("\n")


def _wiki_document(line: str, field: str, names: Sequence[str]) -> Document:
    """WikiExtractor's --json: the text without the title, which some versions put before it."""
    text, value = _json(line, "text")
    paragraphs = [html.unescape(paragraph).strip() for paragraph in text.split("\n")]
    if paragraphs and paragraphs[0] == html.unescape(str(value.get("title", ""))).strip():
        del paragraphs[0]
    return paragraphs


def _cell(fields: Sequence[str], field: str, names: Sequence[str]) -> Document:
    """The text in the column of a row."""
    if len(fields) != len(names):
        raise BadRecord(f"{len(fields)} fields, where the first line names {len(names)} columns")
    return fields[names.index(field)].split("\n")


def _tsv_document(line: str, field: str, names: Sequence[str]) -> Document:
    return _cell(_tabs(line), field, names)


def _pair_document(line: str, field: str, names: Sequence[str]) -> Document:
    texts = [text.strip() for text in _tabs(line)]
    if len(texts) != 2 or not all(texts):
        raise BadRecord("not a pair: two texts with a tab between them")
    return texts


_PARSERS: dict[str, Callable[[str, str, Sequence[str]], Document]] = {
    "jsonl": _json_document,
    "wikijson": _wiki_document,
    "tsv": _tsv_document,
    "pairs": _pair_document,
}
# What a user may name; `wikijson` is what a file of wikiextractor turns out to be.
RECORDS = ("jsonl", "tsv", "csv", "parquet", "pairs")
