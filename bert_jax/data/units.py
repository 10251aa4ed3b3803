"""Preparing in parallel: the input cut into work units, and a pool of processes for them.

Units depend on the input alone, never on the number of processes; so does what comes out.
"""

import glob
import hashlib
import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data import pydocs, tfds_source
from bert_jax.data.corpus_writer import UnitWriter, write_json
from bert_jax.data.text import SOURCES, Reader, document_start
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.files import check, parse_json, read_text, written_whole

SMALLEST_UNIT, LARGEST_UNIT = 2_000_000, 16_000_000  # bytes of input
BATCH_CHARS = 200_000  # text tokenised in one call


class Piece(NamedTuple):
    """Whole documents of one file: bytes begin..end of it, or examples of a TFDS data set."""

    source: str
    path: str
    begin: int
    end: int
    size: int  # bytes, for a data set about


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
        if not colon or kind not in (*SOURCES, "pydocs", "tfds"):
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


def plan_units(files: Sequence[tuple[str, str]], text_feature: str) -> list[list[Piece]]:
    """Cuts files into units of 2 to 16 MB, larger where there would be more than 256."""
    sizes = [_size(source, path, text_feature) for source, path in files]
    total = sum(sizes)
    wanted = max(SMALLEST_UNIT, min(LARGEST_UNIT, total // 16), total // 256)
    units: list[list[Piece]] = [[]]
    room = wanted
    for (source, path), size in zip(files, sizes, strict=True):
        scale = 1.0  # bytes for each step of begin and end
        length = size
        if source == "tfds":
            length = len(tfds_source.open_text(Path(path), text_feature)[0])
            scale = size / max(1, length)
        begin = 0
        while begin < length:
            end = length
            if (length - begin) * scale > room:
                end = min(length, begin + math.ceil(room / scale))
                if source != "tfds":
                    end = document_start(source, Path(path), end)
            taken = int((end - begin) * scale)
            units[-1].append(Piece(source, path, begin, end, taken))
            room -= taken
            begin = end
            if room <= 0:
                units.append([])
                room = wanted
    return [unit for unit in units if unit]


def _size(source: str, path: str, text_feature: str) -> int:
    if source == "tfds":
        return tfds_source.open_text(Path(path), text_feature)[1]
    return os.path.getsize(path)


# --- What a worker does ------------------------------------------------------------------------


def tokenize_unit(pieces: Sequence[Piece], folder: Path, settings: dict[str, Any]) -> None:
    """Makes the unit folder of the documents in `pieces`."""
    tokenizer = load_tokenizer(settings["tokenizer"])
    reader = Reader(settings["on_error"], settings["text_feature"])
    writer = UnitWriter(folder, tokenizer.vocab_size)
    documents = _documents(pieces, reader)
    prepared = (_sentences(document, reader, settings["split_sentences"]) for document in documents)
    for batch in _batches(prepared):
        flat, lengths = _encode(tokenizer, [s for document in batch for s in document])
        first = offset = 0
        for document in batch:
            own = lengths[first : first + len(document)]
            end = offset + int(own.sum())
            if end > offset:
                text = "\n".join(document).encode()
                number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
                split = "held_out" if number < settings["held_out"] * 2**64 else "train"
                writer.add(split, number >> 1, flat[offset:end], own[own > 0], len(text))
            first, offset = first + len(document), end
    writer.close(dict(reader.notes))


def _encode(tokenizer: Tokenizer, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """int32 [tokens] of all sentences, and int32 [sentences], how many each has."""
    flat, lengths = [], []
    for i in range(0, len(sentences), 1000):  # a document of millions of characters is too large
        ids = tokenizer.encode_batch(sentences[i : i + 1000])
        lengths.append(np.fromiter(map(len, ids), np.int32, len(ids)))
        chained = itertools.chain.from_iterable(ids)
        flat.append(np.fromiter(chained, np.int32, int(lengths[-1].sum())))
    return np.concatenate(flat), np.concatenate(lengths)


def _documents(pieces: Sequence[Piece], reader: Reader) -> Iterator[list[str]]:
    for piece in pieces:
        done = 0
        for document in reader.documents(piece.source, Path(piece.path), piece.begin, piece.end):
            yield document
            share = (reader.position - piece.begin) / (piece.end - piece.begin)
            now = int(min(share, 1) * piece.size)
            report(now - done)
            done = now
        report(piece.size - done)


def _sentences(document: list[str], reader: Reader, split: bool) -> list[str]:
    return [s for paragraph in document for s in reader.sentences(paragraph, split)]


def _batches(documents: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    size = 0
    for document in documents:
        if document:
            batch.append(document)
            size += sum(map(len, document))
        if size > BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def sample_unit(
    pieces: Sequence[Piece], path: Path, share: float, settings: dict[str, Any]
) -> None:
    """Writes `share` of the paragraphs, evenly spread, to a text file, a paragraph a line."""
    reader = Reader(settings["on_error"], settings["text_feature"])
    seen = kept = 0
    with written_whole(path) as made, open(made, "w", encoding="utf-8", newline="\n") as file:
        for document in _documents(pieces, reader):
            for paragraph in document:
                seen += len(paragraph)
                if kept < share * seen:
                    kept += len(paragraph)
                    file.write(paragraph + "\n")


def extract_unit(files: Sequence[Path], path: Path) -> None:
    """Writes the prose of Python source files to a JSON file: a list of documents."""
    documents = []
    for file in files:
        documents.append(pydocs.module_prose(file))
        report(file.stat().st_size)
    write_json(path, [document for document in documents if document])


# --- The pool ----------------------------------------------------------------------------------

_state: Any = None  # in a worker: the shared counter of bytes done, negative to stop


class Stopped(Exception):
    """A worker was told to stop, because another one failed."""


def report(size: int) -> None:
    """Counts bytes of input as done, for the progress bar.

    Raises: Stopped: another worker failed.
    """
    if _state is None:
        return
    with _state.get_lock():
        if _state.value < 0:
            raise Stopped
        _state.value += size


def _start_worker(counter: Any, parent: int) -> None:
    global _state
    _state = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells workers to stop

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # the parent was killed: don't go on alone

    threading.Thread(target=watch, daemon=True).start()


def _run(function: Callable, *arguments: Any) -> int:
    function(*arguments)
    return peak_memory()


def run_pool(tasks: Sequence[tuple], workers: int, on_progress: Callable[[int], None]) -> int:
    """Runs `(function, *arguments)` tasks in `workers` processes.

    Args:
      on_progress: called about twice a second with the bytes of input done so far.

    Returns: the largest peak memory of a worker, in bytes.
    Raises:
      UserError: from a task, or because a worker process died.
    """
    if not tasks:
        return 0
    context = multiprocessing.get_context("spawn")  # fork would copy threads in unknown states
    counter = context.Value("q", 0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is parallel enough
    peak = 0
    with ProcessPoolExecutor(
        min(workers, len(tasks)), context, _start_worker, (counter, os.getpid())
    ) as pool:
        pending = {pool.submit(_run, *task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, 0.5, FIRST_EXCEPTION)
                for future in done:
                    peak = max(peak, future.result())
                on_progress(counter.value)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died (out of memory, or killed); run the same command again to "
                f"go on, perhaps with fewer --config.workers than {workers}"
            ) from error
        finally:
            if pending:
                pool.shutdown(wait=False, cancel_futures=True)
                with counter.get_lock():
                    counter.value = -(2**62)
    return peak


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes; 0 where the system doesn't tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def read_documents(path: Path) -> list[list[str]]:
    """Reads what `extract_unit` wrote. Raises: UserError: it is damaged."""
    return check(parse_json(read_text(path), str(path)), list[list[str]], str(path))
