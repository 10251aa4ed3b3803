"""Files of text as people have them: plain or compressed, and plainly something else.

What a file is, its first bytes decide, not its name.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from bert_jax.common.errors import UserError
from bert_jax.common.files import open_regular

COMPRESSED = ("", ".gz", ".zst", ".bz2", ".xz")  # how the name of a file may end after its own
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x50\x2a\x4d\x18", "zstd"),  # a frame to skip, as pzstd begins its files
)
# What no source reads as text: how it begins, what it is, and what to do.
_OTHERS = (
    (b"%PDF-", "a PDF file", "extract its text first, with pdftotext for example"),
    (b"PK\x03\x04", "a zip file (or a .docx, .xlsx, .epub)", "unpack it, or extract its text"),
    (b"PAR1", "a parquet file", "say so: source=parquet"),
    (b"{\\rtf", "an RTF file", "extract its text first"),
    (b"\xd0\xcf\x11\xe0", "a .doc or .xls file", "extract its text first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", "unpack it first"),
    (b"Rar!", "a rar file", "unpack it first"),
    (b"SQLite format 3", "an SQLite database", "write its texts to a file first"),
    (b"\x89HDF", "an HDF5 file", "write its texts to a file first"),
    (b"ARROW1", "an Arrow file", "write it as parquet, and say source=parquet"),
    (b"\xff\xfe", "UTF-16 text", "convert it to UTF-8, with iconv for example"),
    (b"\xfe\xff", "UTF-16 text", "convert it to UTF-8, with iconv for example"),
)
_MARKED_UP = (
    (b"<mediawiki", "a dump of a wiki", "extract its text with WikiExtractor first"),
    (b"<!doctype html", "an HTML page", "extract its text first"),
    (b"<html", "an HTML page", "extract its text first"),
    (b"<doc id=", "output of WikiExtractor", "say so: source=wikiextractor"),
)
_HEAD = 1 << 16  # bytes that are looked at
_FIRST_FIELD = re.compile(rb'\{\s*"([^"\\]+)"\s*:')  # of a JSON object

_SPREAD_OUT = re.compile(rb'\{[ \t]*\r?\n\s*"[^"]*"\s*:')  # of several lines


def compression(path: Path) -> str:
    """How a file is compressed: gzip, bzip2, xz, zstd, or "" where it is not."""
    with open_regular(path) as file:
        head = file.read(6)
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def open_bytes(path: Path) -> tuple[IO[bytes], IO[bytes]]:
    """Opens a file for reading from its start, decompressed where it is compressed.

    Returns: the content; and the file on the disk, whose `tell` says how far that has been read.
    Raises: UserError: it cannot be opened; while reading: its compressed data is damaged.
    """
    file = cast(io.BufferedReader, open_regular(path))
    head = file.peek(6)
    kind = next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")
    if not kind:
        return file, file
    return io.BufferedReader(_Decompressed(path, kind, file), 1 << 18), file


@contextlib.contextmanager
def open_seekable(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading at any place; a compressed one is unpacked to a temporary file."""
    content, file = open_bytes(path)
    with content:
        if content is file:
            yield content
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(content, unpacked, 1 << 20)
            unpacked.seek(0)
            yield cast(IO[bytes], unpacked)


class _Decompressed(io.RawIOBase):
    """The content of a compressed file, as a raw stream."""

    def __init__(self, path: Path, kind: str, file: IO[bytes]):
        self._path, self._kind, self._file = path, kind, file
        openers: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
        self._inner = openers[kind](file) if kind in openers else None
        self._chunks = _zstd(file) if kind == "zstd" else iter(())
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            if self._inner is not None:
                data = self._inner.read(len(buffer))
            else:
                data = self._rest or next(self._chunks, b"")
                data, self._rest = data[: len(buffer)], data[len(buffer) :]
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            if getattr(error, "errno", None):  # of the disk, not of the data
                raise
            raise UserError(
                f"{self._path}: its {self._kind} data is damaged or cut off ({error}); bring the "
                "whole file"
            ) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a zstd file of any number of frames.

    Raises: ValueError: damaged, or cut off.
    """
    import zstandard

    frames = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    while data := file.read(1 << 14):
        while data:
            frame = frame or frames.decompressobj()
            try:
                content = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from error
            if content:
                yield content
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise ValueError("the last frame has no end")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends, which are \\n or \\r\\n, without a byte order mark.

    Raises: UserError: it cannot be opened, or is not UTF-8.
    """
    file, _ = open_bytes(path)
    with file:
        for number, data in enumerate(file, 1):
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(
                    f"{path}:{number}: not UTF-8; convert the file, with iconv for example"
                ) from None
            if number == 1 and "\r" in line.rstrip("\r\n"):
                raise UserError(f"{path}: lines end in a carriage return alone; make it \\n")
            yield line


def line_number(path: Path, position: int) -> int:
    """Number of the line in which a byte of a file (of its content, if compressed) stands."""
    number = 1
    file, _ = open_bytes(path)
    with file:
        while position > 0 and (data := file.read(min(position, 1 << 20))):
            number += data.count(b"\n")
            position -= len(data)
    return number


def looks_like(path: Path) -> tuple[str, str]:
    """What a file plainly is, where that is no running text: (what, what to do); else ("", "").

    Raises: UserError: it cannot be read.
    """
    file, _ = open_bytes(path)
    with file:
        head = file.read(_HEAD)
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    start = begin[:100].lower()
    for magic, what, todo in (*_OTHERS, *_MARKED_UP):
        if head.startswith(magic) or start.startswith(magic):
            return what, todo
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it first"
    if fields := json_fields(begin):
        return "JSON lines", (
            "say so: source=jsonl, and which field holds the text: "
            f"--config.text_feature=NAME ({', '.join(fields[:8])})"
        )
    if begin[:1] == b"[" and begin[1:].lstrip()[:1] == b"{":
        return "a JSON list", "write it as JSON lines (jq -c '.[]'), and say source=jsonl"
    if _SPREAD_OUT.match(begin):
        return "JSON over several lines", "write a record a line (jq -c), and say source=jsonl"
    return "", ""


def json_fields(begin: bytes) -> list[str]:
    """Names of the fields of the JSON object in the first line of a file; [] where there is none.

    begin: the first bytes of the file; a line that is longer than they are counts by its start.
    """
    line, end, _ = begin.partition(b"\n")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        if end:
            return []
        cut_off = _FIRST_FIELD.match(line)
        return [cut_off[1].decode("utf-8", "replace")] if cut_off else []
    return list(value) if isinstance(value, dict) else []
