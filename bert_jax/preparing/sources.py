"""What a corpus is made of: files, their kinds and their digests."""

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from bert_jax.common.errors import UserError
from bert_jax.common.progress import follow
from bert_jax.data import opened, records, tfds_source
from bert_jax.data.records import RECORDS
from bert_jax.preparing import pydocs
from bert_jax.preparing.text import KINDS, SOURCES


def find_files(patterns: str, source: str) -> list[tuple[str, str]]:
    """(kind of source, path) of the files that comma-separated patterns match, each one once.

    A pattern may begin with its own kind of source (`book:books/**/*.txt`); a folder stands for
    all files in it. Sorted by path within a pattern.

    Raises:
      UserError: a pattern matches nothing.
    """
    found: dict[str, str] = {}
    for item in filter(None, (p.strip() for p in patterns.split(","))):
        kind, colon, pattern = item.partition(":")
        if not colon or kind not in (*KINDS, "pydocs", "tfds"):
            kind, pattern = source, item
        if kind == "pydocs" and pattern not in ("", "pydocs"):
            raise UserError(
                f"source=pydocs reads the installed packages, not {pattern!r}: say what the files "
                "are, as in --config=configs/prepare.py:source=text (wikiextractor, book)"
            )
        if kind in ("pydocs", "tfds"):
            found[pattern or kind] = kind
            continue
        pattern = os.path.expanduser(pattern)
        if os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "**")
        elif os.path.isfile(pattern):
            pattern = glob.escape(pattern)
        matches = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
        if not matches:
            raise UserError(f"input pattern {pattern!r} matches no file")
        for path in matches:
            found.setdefault(path, kind)
    return [(kind, path) for path, kind in found.items()]


def held_out_files(
    config: ml_collections.ConfigDict, files: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The files that are held out whole; none where a share of the documents is."""
    held_out = find_files(config.held_out_input, config.source)
    if any(kind == "pydocs" for kind, _ in held_out):
        raise UserError("held_out_input takes files: the installed packages are one source")
    both = {os.path.realpath(path) for _, path in files}
    both &= {os.path.realpath(path) for _, path in held_out}
    if both:
        raise UserError(f"{min(both)} is in the input and in held_out_input; leave it out of one")
    return held_out


def check_kind(source: str, path: str) -> str:
    """Checks that a file is not plainly of another kind than `source`.

    Returns: `source`, or `wikijson` where a file of `wikiextractor` was written with --json.
    Raises: UserError: it is; the message says what to do.
    """
    if source == "tfds":
        return source
    what, todo = opened.looks_like(Path(path))
    lines = {"jsonl": "JSON lines", "wikiextractor": "output of WikiExtractor"}
    if source == "wikiextractor" and what == "JSON lines":
        return "wikijson"
    if source == "parquet" and what != "a parquet file":
        with records.open_parquet(Path(path)):  # says what is wrong
            return source
    if what and what != lines.get(source, "a parquet file" if source == "parquet" else ""):
        raise UserError(f"{path} is {what}, not source={source}: {todo}")
    name = next((s for s in reversed(Path(path).suffixes) if s not in opened.COMPRESSED), "")[1:]
    if source in SOURCES and name in RECORDS:
        raise UserError(
            f"{path} would be read as running text, source={source}: say source={name}, and which "
            "field or column holds the text (--config.text_feature); or give it another ending"
        )
    return source


def hash_sources(
    files: Sequence[tuple[str, str]], held_out: Sequence[tuple[str, str]], config: Any
) -> list[dict[str, Any]]:
    """`path`, `bytes` and `sha256` of each source; Python packages are summed up."""
    result = []
    every = [*files, *held_out]
    for number, (kind, path) in enumerate(follow(every, "reading", len(every), "file")):
        # The name of a file need not be UTF-8, as JSON must be.
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        entry: dict[str, Any] = {"source": kind, "path": shown}
        if number >= len(files):
            entry["split"] = "held_out"
        if kind == "pydocs":
            digest, size = hashlib.sha256(), 0
            for name, file in pydocs.python_files():
                sha, length = _hash_file(file)
                digest.update(f"{name} {sha}\n".encode())
                size += length
            entry |= {"bytes": size, "sha256": digest.hexdigest()}
        elif kind == "tfds":
            entry |= _hash_folder(tfds_source.dataset_folder(path))
        else:
            sha, size = _hash_file(Path(path))
            entry |= {"bytes": size, "sha256": sha}
        result.append(entry)
    if config.vocab:
        if not Path(config.vocab).exists():
            raise UserError(f"vocabulary {config.vocab} does not exist")
        result.append({"source": "vocab", "path": config.vocab, **_hash_folder(Path(config.vocab))})
    return result


def _hash_folder(path: Path) -> dict[str, Any]:
    """`bytes` and `sha256` of the files in a folder, or of a file."""
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    digests = [_hash_file(file) for file in files]
    text = " ".join(sha for sha, _ in digests)
    sha = digests[0][0] if len(digests) == 1 else hashlib.sha256(text.encode()).hexdigest()
    return {"bytes": sum(size for _, size in digests), "sha256": sha}


def _hash_file(path: Path) -> tuple[str, int]:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
