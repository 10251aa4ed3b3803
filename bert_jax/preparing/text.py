"""Raw text files to documents, and paragraphs to sentences.

A document is a list of paragraphs (str). Files are read as streams of lines, so memory does not
depend on the size of a file, a document or a line: a line is cut after 1 MiB, a document after
4 million characters, a sentence after 2,000 characters, at white space where there is some.
"""

import html
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from bert_jax.common.errors import UserError
from bert_jax.data import opened, tfds_source
from bert_jax.data.records import RECORDS, RecordReader
from bert_jax.data.sentences import split_sentences

LINE_BYTES = 1 << 20
DOCUMENT_CHARS = 4_000_000
SENTENCE_CHARS = 2000

Lines = Iterator[str]


class Reader:
    """Reads byte ranges of files into documents.

    Attributes:
      position: byte up to which the file at hand has been read (of parquet: row group).
      notes: Counter of what was met on the way: `invalid_lines`, `bad_records` (left out),
        `long_lines`, `long_documents`, `long_sentences` (cut), `nul_bytes` (left out).
    """

    def __init__(self, on_error: str = "stop", text_feature: str = "text"):
        """Sets what to do with what cannot be read, and where the text of a record is.

        Args:
          on_error: `stop` at lines that are not UTF-8 and at bad records, or `skip` them.
          text_feature: name of the feature, field or column that holds the text.
        """
        self._on_error = on_error
        self._text_feature = text_feature
        self.notes: Counter[str] = Counter()
        self.position = 0

    def documents(
        self, source: str, path: Path, begin: int = 0, end: int | None = None
    ) -> Iterator[list[str]]:
        """Documents of bytes begin..end, which `document_start` has aligned.

        With the source `tfds`, begin and end count the examples of the data set in folder `path`,
        with `parquet` the row groups of the file. A compressed file is read whole.

        Raises:
          UserError: invalid UTF-8 or a bad record (file and line), unless those are left out.
        """
        if source == "tfds":
            examples, _ = tfds_source.open_text(path, self._text_feature)
            for self.position in range(begin, len(examples) if end is None else end):
                data = examples[self.position][self._text_feature]
                where = f"{path}, example {self.position}"
                texts = (self._decode(line, where, 1) for line in data.split(b"\n"))
                yield from self._cut(text for text in texts if text)
            return
        end = os.path.getsize(path) if end is None else end
        if source not in SOURCES:
            records = RecordReader(source, path, self._text_feature, self._bad)
            for paragraphs in records.documents(begin, end):
                self.position = records.position
                cleaned = (self._clean(paragraph) for paragraph in paragraphs)
                yield from self._cut(text for text in cleaned if text)
            return
        split_documents, _ = SOURCES[source]
        content, file = opened.open_bytes(path)
        with content:
            if content is file:
                file.seek(begin)
            lines = self._lines(content, file, path, begin, end)
            for document in split_documents(lines):
                yield from self._cut(document)

    def _bad(self, where: Callable[[], str], what: str) -> None:
        """Counts a bad record, or raises UserError."""
        self.notes["bad_records"] += 1
        if self._on_error == "stop":
            raise UserError(
                f"{where()}: {what}; mend it, or leave such records out with --config.on_error=skip"
            )

    def _lines(
        self, content: IO[bytes], file: IO[bytes], path: Path, begin: int, end: int
    ) -> Lines:
        """Each line, without line end; blank lines as ""."""
        plain = content is file
        offset, rest = begin, b""
        while not plain or offset < end:
            unread = end - offset - len(rest) if plain else LINE_BYTES
            data = rest + content.readline(min(LINE_BYTES - len(rest), unread))
            if not data:
                return
            rest = b""
            if len(data) == LINE_BYTES and not data.endswith(b"\n"):
                data, rest = _cut_bytes(data)
                self.notes["long_lines"] += 1
            start, offset = offset, offset + len(data)
            self.position = offset if plain else file.tell()
            text = self._decode(data, path, start)
            if text is not None:
                yield text

    def _decode(self, data: bytes, path: Path | str, start: int) -> str | None:
        if start == 0 and data.startswith(b"\xef\xbb\xbf"):
            data, start = data[3:], 3
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.notes["invalid_lines"] += 1
            if self._on_error == "skip":
                return None
            at = start + error.start
            where = f"{path}:{opened.line_number(path, at)}" if isinstance(path, Path) else path
            raise UserError(
                f"{where}: invalid UTF-8 (byte {at}); convert the file to UTF-8, "
                "or leave such lines out with --config.on_error=skip"
            ) from None
        return self._clean(text)

    def _clean(self, text: str) -> str:
        if "\0" in text:
            self.notes["nul_bytes"] += text.count("\0")
            text = text.replace("\0", "")
        return text.strip()

    def _cut(self, paragraphs: Iterator[str]) -> Iterator[list[str]]:
        """Documents of at most about DOCUMENT_CHARS from the paragraphs of one."""
        document: list[str] = []
        size = 0
        for paragraph in paragraphs:
            if size > DOCUMENT_CHARS:
                self.notes["long_documents"] += 1
                yield document
                document, size = [], 0
            document.append(paragraph)
            size += len(paragraph)
        if document:
            yield document

    def sentences(self, paragraph: str, split: bool = True) -> list[str]:
        """Sentences of a paragraph (itself, without `split`), the overlong ones cut."""
        result = split_sentences(paragraph) if split else [paragraph]
        if len(paragraph) > SENTENCE_CHARS and any(len(s) > SENTENCE_CHARS for s in result):
            self.notes["long_sentences"] += sum(len(s) > SENTENCE_CHARS for s in result)
            result = [piece for sentence in result for piece in _cut_text(sentence)]
        return result


def document_start(source: str, path: Path, position: int) -> int:
    """First byte at or after `position` where a document starts, else the size of the file."""
    _, is_start = SOURCES.get(source, _RECORD)
    size = os.path.getsize(path)
    if position <= 0 or is_start is None or source == "csv" or opened.compression(path):
        return 0 if position <= 0 else size
    with open(path, "rb") as file:
        file.seek(position - 1)
        # The first line may have begun before `position`: it neither starts a document nor is it
        # known to be blank.
        before, whole = b"x", file.readline(LINE_BYTES).endswith(b"\n")
        while line := file.readline(LINE_BYTES):
            if whole and is_start(before, line):
                return file.tell() - len(line)
            before, whole = line, line.endswith(b"\n")
    return size


def _cut_bytes(data: bytes) -> tuple[bytes, bytes]:
    """Cuts a piece of a longer line at its last white space, or else between two characters."""
    at = max(data.rfind(b" "), data.rfind(b"\t")) + 1
    if at <= 0:
        at = len(data) - 1
        while at > len(data) - 4 and data[at] & 0xC0 == 0x80:
            at -= 1
    return data[:at], data[at:]


def _cut_text(sentence: str) -> Iterator[str]:
    while len(sentence) > SENTENCE_CHARS:
        at = sentence.rfind(" ", 1, SENTENCE_CHARS + 1)
        at = at if at > 0 else SENTENCE_CHARS
        yield sentence[:at]
        sentence = sentence[at:].lstrip()
    if sentence:
        yield sentence


def _text_documents(lines: Lines) -> Iterator[Iterator[str]]:
    """Plain text: a blank line between documents, a line is a paragraph or a sentence."""
    for first in lines:
        if first:
            yield _until_blank(first, lines)


def _until_blank(first: str, lines: Lines) -> Iterator[str]:
    yield first
    for line in lines:
        if not line:
            return
        yield line


def _wiki_documents(lines: Lines) -> Iterator[Iterator[str]]:
    """WikiExtractor: `<doc ... title="...">`, the title again, a paragraph a line, `</doc>`."""
    for line in lines:
        if line.startswith("<doc "):
            found = re.search(r'title="(.*)"', line)
            yield _wiki_paragraphs(html.unescape(found[1]) if found else "", lines)


def _wiki_paragraphs(title: str, lines: Lines) -> Iterator[str]:
    first = True
    for line in lines:
        if line == "</doc>":
            return
        line = html.unescape(line)  # WikiExtractor escapes the text by default
        if line and not (first and line == title):
            yield line
        first = first and not line


def _book_documents(lines: Lines) -> Iterator[Iterator[str]]:
    """A book a file: blank lines between paragraphs, whose hard-wrapped lines are joined.

    Headings lose their Markdown marks; lines without any letter or digit (rules) are left out.
    """
    yield _book_paragraphs(lines)


def _book_paragraphs(lines: Lines) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        heading = line.startswith("#")
        text = line.lstrip("#").strip() if heading else line
        if paragraph and (not line or heading or sum(map(len, paragraph)) > LINE_BYTES):
            yield " ".join(paragraph)
            paragraph = []
        if not text or _NO_WORD(text):
            continue
        if heading:
            yield text
        else:
            paragraph.append(text)
    if paragraph:
        yield " ".join(paragraph)


_NO_WORD = re.compile(r"[\W_]*").fullmatch


# How to read each source, and whether a document starts at (line before, line); None: a file is
# one document.
SOURCES: dict[str, tuple[Callable, Callable[[bytes, bytes], bool] | None]] = {
    "text": (_text_documents, lambda before, line: not before.strip() and bool(line.strip())),
    "wikiextractor": (_wiki_documents, lambda before, line: line.startswith(b"<doc ")),
    "book": (_book_documents, None),
}
_RECORD = (_text_documents, lambda before, line: True)  # each line is a record
KINDS = (*SOURCES, *RECORDS)  # of files
