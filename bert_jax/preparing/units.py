"""Preparing in parallel: the input cut into work units, and a pool of processes for them.

Units depend on the input alone, never on the number of processes; so does what comes out.
"""

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

from bert_jax.common.errors import UserError
from bert_jax.common.files import check, parse_json, read_text, written_whole
from bert_jax.data import opened, records, tfds_source
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.preparing import pydocs
from bert_jax.preparing.corpus_writer import UnitWriter, write_json
from bert_jax.preparing.text import Reader, document_start

SMALLEST_UNIT, LARGEST_UNIT = 2_000_000, 16_000_000  # bytes of input
BATCH_CHARS = 200_000  # text tokenised in one call


class Piece(NamedTuple):
    """Whole documents of one file: bytes begin..end of it.

    Of a TFDS data set, begin and end count its examples, of a parquet file its row groups.
    """

    source: str
    path: str
    begin: int
    end: int
    size: int  # bytes on the disk, for a data set about
    split: str = ""  # the one that all its documents go to; "": a hash of their text decides


def plan_units(
    files: Sequence[tuple[str, str]], text_feature: str, split: str = ""
) -> list[list[Piece]]:
    """Cuts files into units of 2 to 16 MB, larger where there would be more than 256.

    A compressed file, a book and a CSV file are never cut.

    split: where all their documents go; "" for a hash of their text to decide.
    """
    sizes = [_size(source, path, text_feature) for source, path in files]
    total = sum(sizes)
    wanted = max(SMALLEST_UNIT, min(LARGEST_UNIT, total // 16), total // 256)
    units: list[list[Piece]] = [[]]
    room = wanted
    for (source, path), size in zip(files, sizes, strict=True):
        length = _length(source, path, size, text_feature)
        scale = size / max(1, length)  # bytes for each step of begin and end
        begin = 0
        while begin < length:
            end = length
            if (length - begin) * scale > room:
                end = min(length, begin + math.ceil(room / scale))
                if length == size:
                    end = document_start(source, Path(path), end)
            taken = int((end - begin) * scale)
            units[-1].append(Piece(source, path, begin, end, taken, split))
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


def _length(source: str, path: str, size: int, text_feature: str) -> int:
    """In how many steps a file can be cut: bytes, examples of a data set, row groups."""
    if source == "tfds":
        return len(tfds_source.open_text(Path(path), text_feature)[0])
    if source == "parquet":
        if opened.compression(Path(path)):
            return 1
        with records.open_parquet(Path(path)) as table:
            return table.num_row_groups
    return size


# --- What a worker does ------------------------------------------------------------------------


def tokenize_unit(pieces: Sequence[Piece], folder: Path, settings: dict[str, Any]) -> None:
    """Makes the unit folder of the documents in `pieces`."""
    tokenizer = load_tokenizer(settings["tokenizer"])
    reader = Reader(settings["on_error"], settings["text_feature"])
    writer = UnitWriter(folder, tokenizer.vocab_size)
    limit = settings.get("held_out_below", settings["held_out"] * 2**64)
    smallest, largest = 2**64, -1  # numbers of the documents that a hash puts into a split
    for split, batch in _batches(_documents(pieces, reader, settings["split_sentences"])):
        flat, lengths = _encode(tokenizer, [s for document in batch for s in document])
        first = offset = 0
        for document in batch:
            own = lengths[first : first + len(document)]
            end = offset + int(own.sum())
            if end > offset:
                text = "\n".join(document).encode()
                number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
                where = split or ("held_out" if number < limit else "train")
                writer.add(where, number >> 1, flat[offset:end], own[own > 0], len(text))
                smallest, largest = min(smallest, number), max(largest, number)
            first, offset = first + len(document), end
    writer.close(dict(reader.notes), smallest, largest)


def _encode(tokenizer: Tokenizer, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """int32 [tokens] of all sentences, and int32 [sentences], how many each has."""
    flat, lengths = [], []
    for i in range(0, len(sentences), 1000):  # a document of millions of characters is too large
        ids = tokenizer.encode_batch(sentences[i : i + 1000])
        lengths.append(np.fromiter(map(len, ids), np.int32, len(ids)))
        chained = itertools.chain.from_iterable(ids)
        flat.append(np.fromiter(chained, np.int32, int(lengths[-1].sum())))
    return np.concatenate(flat), np.concatenate(lengths)


def _documents(
    pieces: Sequence[Piece], reader: Reader, split: bool
) -> Iterator[tuple[str, list[str]]]:
    """The split that each document is given to, if to any, and its sentences."""
    for piece in pieces:
        for document in read_piece(piece, reader):
            if piece.source == "pairs":  # its two texts, whatever they hold
                yield piece.split, document
            else:
                yield piece.split, [s for text in document for s in reader.sentences(text, split)]


def read_piece(piece: Piece, reader: Reader) -> Iterator[list[str]]:
    """The documents of a piece as paragraphs; what was read is reported."""
    done = 0
    for document in reader.documents(piece.source, Path(piece.path), piece.begin, piece.end):
        yield document
        share = (reader.position - piece.begin) / (piece.end - piece.begin)
        now = int(min(share, 1) * piece.size)
        report(now - done)
        done = now
    report(piece.size - done)


def _batches(documents: Iterator[tuple[str, list[str]]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Documents of one split, as many as are tokenised in one call."""
    for split, group in itertools.groupby(documents, lambda document: document[0]):
        batch: list[list[str]] = []
        size = 0
        for _, document in group:
            if document:
                batch.append(document)
                size += sum(map(len, document))
            if size > BATCH_CHARS:
                yield split, batch
                batch, size = [], 0
        if batch:
            yield split, batch


def sample_unit(
    pieces: Sequence[Piece], path: Path, share: float, settings: dict[str, Any]
) -> None:
    """Writes `share` of the paragraphs, evenly spread, to a text file, a paragraph a line."""
    reader = Reader(settings["on_error"], settings["text_feature"])
    seen = kept = 0
    documents = (document for piece in pieces for document in read_piece(piece, reader))
    with written_whole(path) as made, open(made, "w", encoding="utf-8", newline="\n") as file:
        for paragraph in itertools.chain.from_iterable(documents):
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
