"""The corpus on disk, read side: tokenised documents by sentence number.

    OUT/corpus.json                  written last: a folder without it is not a corpus
        tokenizer/tokenizer.json     (and vocab.txt when it is a WordPiece)
        token_counts.npy             int64 [V], occurrences of each id in the train split
        dataset_info.json, features.json, corpus-SPLIT.array_record-IIIII-of-NNNNN
                                     a TFDS data set: tfds.builder_from_directory(OUT)
        index/SPLIT.sentence_lengths.npy  int32 [sentences], tokens of each sentence
        index/SPLIT.document_ends.npy     int64 [documents], sentence where each one ends
        index/SPLIT.record_ends.npy       int64 [records], sentence where each one ends

corpus.json has a digest of every file but the shards, which have checksums of their own and whose
records are compared with the index when they are read: so nothing that was changed is taken.

A record holds consecutive whole sentences of one document, about 2,048 tokens at most, so any
random read is small. Ends are exclusive. `corpus_writer.py` is the write side.
"""

import contextlib
import functools
import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from bert_jax.common import schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import check, open_regular, read_bytes, read_json
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1
SPLITS = ("train", "held_out")
INDICES = {"sentence_lengths": np.int32, "document_ends": np.int64, "record_ends": np.int64}
PARTIAL = ".partial"  # folder with the finished pieces of an unfinished corpus
Array = np.ndarray


class Split:
    """One split of a corpus; picklable, and usable from several threads and processes.

    Attributes:
      sentence_lengths: int32 [sentences], tokens of each sentence.
      document_ends: int64 [documents], exclusive sentence number where each document ends.
      record_ends: int64 [records], exclusive sentence number where each record ends.
    """

    def __init__(self, folder: Path, name: str, shard_records: Sequence[int]):
        """Opens the index of split `name`; `shard_records` counts the records of each shard."""
        self._arguments = (folder, name, tuple(shard_records))
        self.name = name
        for index, dtype in INDICES.items():
            setattr(self, index, load_array(index_path(folder, name, index), dtype))
        self._shard_ends = np.cumsum(shard_records)
        self._readers: dict[tuple[int, int], ArrayRecordReader] = {}
        self._lock = threading.Lock()

    sentence_lengths: Array
    document_ends: Array
    record_ends: Array

    def __reduce__(self):
        return Split, self._arguments

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.sentence_lengths)

    def tokens(self, starts: Array, ends: Array) -> list[Array]:
        """Tokens of K ranges of sentences, in one batched read.

        Args:
          starts: int [K], first sentence of each range.
          ends: int [K], sentence after the last one; a range is never empty and never crosses
            the end of a document.

        Returns: K int32 arrays [tokens of the range]; read-only views, don't keep many for long.
        Raises: IndexError: a range is empty or past the end. UserError: a shard is damaged.
        """
        starts, ends = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
        if not len(starts):
            return []
        if starts.min() < 0 or ends.max() > len(self) or (starts >= ends).any():
            raise IndexError(f"a range of sentences is empty or outside 0..{len(self)}")
        firsts = np.searchsorted(self.record_ends, starts, side="right")
        lasts = np.searchsorted(self.record_ends, ends - 1, side="right")
        wide = firsts < lasts
        wanted = [firsts, *map(np.arange, firsts[wide] + 1, lasts[wide] + 1)]
        records = self._read(np.unique(np.concatenate(wanted)))
        begins = np.where(firsts > 0, self.record_ends[firsts - 1], 0)
        lengths, total = self.sentence_lengths, np.add.reduce
        result = []
        for start, end, first, last, begin in zip(
            starts.tolist(),
            ends.tolist(),
            firsts.tolist(),
            lasts.tolist(),
            begins.tolist(),
            strict=True,
        ):
            tokens = records[first]
            if last > first:
                tokens = np.concatenate([records[i] for i in range(first, last + 1)])
            offset = int(total(lengths[begin:start]))
            result.append(tokens[offset : offset + int(total(lengths[start:end]))])
        return result

    def _read(self, numbers: Array) -> dict[int, Array]:
        """Tokens of each record; `numbers` are sorted and unique."""
        result = {}
        shards = np.searchsorted(self._shard_ends, numbers, side="right")
        cuts = np.flatnonzero(np.diff(shards)) + 1
        for group in np.split(numbers, cuts):
            shard = int(np.searchsorted(self._shard_ends, group[0], side="right"))
            base = int(self._shard_ends[shard - 1]) if shard else 0
            try:
                records = self._reader(shard).read((group - base).tolist())
                for number, record in zip(group.tolist(), records, strict=True):
                    begin = int(self.record_ends[number - 1]) if number else 0
                    lengths = self.sentence_lengths[begin : int(self.record_ends[number])]
                    result[number] = decode_tokens(record, lengths)
            except (RuntimeError, ValueError, IndexError, message.DecodeError) as error:
                reason = str(error).strip().split("\n")[0][:200]
                raise UserError(
                    f"{self._shard_path(shard)} is damaged ({reason}); copy or prepare the corpus "
                    "again"
                ) from error
        return result

    def _reader(self, shard: int) -> ArrayRecordReader:
        key = (os.getpid(), shard)  # a reader doesn't survive a fork
        reader = self._readers.get(key)
        if reader is None:
            with self._lock:
                if key not in self._readers:
                    path = str(self._shard_path(shard))
                    # Without read-ahead: it would read 16 MB for every random record.
                    reader = ArrayRecordReader(path, "readahead_buffer_size:0")
                    wanted = self._arguments[2][shard]
                    if reader.num_records() != wanted:
                        raise ValueError(f"{reader.num_records()} records, where {wanted} were")
                    self._readers[key] = reader
                reader = self._readers[key]
        return reader

    def _shard_path(self, shard: int) -> Path:
        folder, name, shards = self._arguments
        return shard_path(folder, name, shard, len(shards))


class Corpus:
    """An opened corpus: `path`, `info` (corpus.json), `splits`, `tokenizer`, `token_counts`."""

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path, self.info = path, info
        self.splits: dict[str, Split] = {
            name: Split(path, name, info["splits"][name]["shards"]) for name in SPLITS
        }

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the corpus, loaded at first use.

        Raises: UserError: it is not there, or is another now.
        """
        tokenizer = load_tokenizer(self.path / "tokenizer")
        if tokenizer_digest(self.path) != self.info["tokenizer_sha256"]:
            raise UserError(
                f"{self.path}/tokenizer/tokenizer.json is not the one that made the corpus; bring "
                "that back, or prepare it again"
            )
        return tokenizer

    @functools.cached_property
    def token_counts(self) -> Array:
        """int64 [V]: how often each id occurs in the train split.

        Raises: UserError: the file is damaged, or of another vocabulary.
        """
        path = self.path / "token_counts.npy"
        counts = load_array(path, np.int64)
        if len(counts) != self.info["vocab_size"] or (counts < 0).any():
            raise UserError(f"{path} is not of the vocabulary of the corpus; prepare it again")
        return counts


def open_corpus(path: str | os.PathLike) -> Corpus:
    """Opens what `bert_jax.prepare` wrote.

    Raises:
      UserError: there is no corpus, it is unfinished, of another version, or damaged.
    """
    path = Path(path)
    again = "run the same bert_jax.prepare command again to finish it"
    if not path.is_dir():
        raise UserError(f"corpus {path} does not exist; make it with python -m bert_jax.prepare")
    if not (path / "corpus.json").exists():
        if (path / PARTIAL).exists():
            raise UserError(f"corpus {path} is unfinished; {again}")
        raise UserError(f"{path} is not a corpus (it has no corpus.json)")
    file = path / "corpus.json"
    with _damage_told(path):
        info = read_json(file)
    if info.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {info.get('format')!r:.40}, this version reads {FORMAT}; prepare "
            "it again, or update bert_jax"
        )
    with _damage_told(path):
        check(info, schemas.Corpus, str(file))
        if changed := differing(path, info.get("digests", {})):
            raise UserError(f"{changed} is not as it was when the corpus was made")
        corpus = Corpus(path, info)
        for name, split in corpus.splits.items():
            if reason := _wrong(path, name, split, info["splits"][name]):
                raise UserError(reason)
    return corpus


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Says of an error which corpus it is of, and what to do."""
    try:
        yield
    except UserError as error:
        raise UserError(f"corpus {path} is damaged ({error}); copy or prepare it again") from error


def load_array(path: Path, dtype: Any) -> Array:
    """Maps an array of one axis into memory.

    Raises: UserError: the file is missing, damaged, or holds something else.
    """
    open_regular(path).close()
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{path} cannot be read: {reason}") from error
    if array.dtype != dtype or array.ndim != 1:
        raise UserError(f"{path} holds {array.dtype}{list(array.shape)}")
    return array.view(np.ndarray)  # a plain one: slices of np.memmap itself are slow to make


def _wrong(path: Path, name: str, split: Split, counts: dict[str, Any]) -> str:
    """How the files of a split and corpus.json do not agree; "" where they do."""
    arrays = (split.sentence_lengths, split.document_ends, split.record_ends)
    for what, array in zip(("sentences", "documents", "records"), arrays, strict=True):
        if len(array) != counts[what]:
            return f"{name} has {len(array)} {what} in its index, not {counts[what]}"
    for what, ends in (("document_ends", split.document_ends), ("record_ends", split.record_ends)):
        rises = len(ends) and ends[0] > 0 and (np.diff(ends) > 0).all()
        if not rises or ends[-1] != counts["sentences"]:
            return f"index/{name}.{what}.npy does not rise up to the number of sentences"
    if sum(counts["shards"]) != counts["records"]:
        return f"the shards of {name} do not have as many records as it"
    if split.sentence_lengths.min() < 1 or split.sentence_lengths.sum() != counts["tokens"]:
        return f"index/{name}.sentence_lengths.npy does not add up to {counts['tokens']} tokens"
    for shard in range(len(counts["shards"])):
        file = shard_path(path, name, shard, len(counts["shards"]))
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                return f"{file} is not a file"
        except OSError as error:
            return f"{file}: {error.strerror}"
    return ""


_PIECE = 16 << 20  # bytes that one thread hashes at a time


def digest(path: Path) -> str:
    """SHA-256 of a file; of one of several pieces of 16 MiB, that of the pieces' own.

    The pieces are hashed beside one another: the index of a large corpus has gigabytes.
    Raises: UserError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return hashlib.sha256().hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            if size <= _PIECE:
                return hashlib.sha256(view).hexdigest()

            def one(start: int) -> bytes:
                with view[start : start + _PIECE] as piece:
                    return hashlib.sha256(piece).digest()

            with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
                pieces = b"".join(threads.map(one, range(0, size, _PIECE)))
            return hashlib.sha256(pieces).hexdigest()


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The digest of each file, by its path in the folder."""
    return {file.relative_to(folder).as_posix(): digest(file) for file in sorted(files)}


def differing(folder: Path, wanted: dict[str, str]) -> Path | None:
    """The first file of a folder that has another digest now, or None.

    Raises: UserError: one is missing.
    """
    return next((folder / name for name in wanted if digest(folder / name) != wanted[name]), None)


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of a corpus's tokenizer."""
    return hashlib.sha256(read_bytes(folder / "tokenizer" / "tokenizer.json")).hexdigest()


def index_path(folder: Path, split: str, index: str) -> Path:
    """File of one of the INDICES of a split."""
    return folder / "index" / f"{split}.{index}.npy"


def shard_path(folder: Path, split: str, shard: int, shards: int) -> Path:
    """File of one shard, named as TFDS names it."""
    return folder / f"corpus-{split}.array_record-{shard:05d}-of-{shards:05d}"


def _example_class():
    """Message class with the wire format of tf.train.Example (tensorflow example.proto).

    Made here under another name, because importing TFDS's own costs half a second and 60 MB in
    every worker, and defining `tensorflow.Example` twice in a process is an error.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="bert_jax/example.proto", package="bert_jax", syntax="proto3"
    )

    def make(name: str, *fields: tuple[str, int, str, bool]):
        result = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            scalar = {"int64": 3, "bytes": 12, "string": 9}.get(kind)
            result.field.add(
                name=field, number=number, label=3 if repeated else 1,
                type=scalar or 11, type_name=None if scalar else f".bert_jax.{kind}",
            )  # fmt: skip
        return result

    make("BytesList", ("value", 1, "bytes", True))
    make("Int64List", ("value", 1, "int64", True))
    feature = make(
        "Feature", ("bytes_list", 1, "BytesList", False), ("int64_list", 3, "Int64List", False)
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = make("Features", ("feature", 1, "Features.FeatureEntry", True))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".bert_jax.Feature")
    make("Example", ("features", 1, "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bert_jax.Example"))


_Example = _example_class()


def encode_record(document: int, tokens: Array, sentence_lengths: Array) -> bytes:
    """One record, as TFDS reads it; the arrays are little-endian int32 (encoding `bytes`)."""
    example = _Example()
    feature = example.features.feature
    feature["document"].int64_list.value.append(document)
    feature["tokens"].bytes_list.value.append(tokens.astype("<i4").tobytes())
    feature["sentence_lengths"].bytes_list.value.append(sentence_lengths.astype("<i4").tobytes())
    return example.SerializeToString(deterministic=True)


def decode_tokens(record: bytes, sentence_lengths: Array) -> Array:
    """Decodes a record, whose sentences are as long as the index says.

    Args: sentence_lengths: int32 [sentences] of the record, by the index.
    Returns: int32 [tokens], read-only.
    Raises: DecodeError, IndexError or ValueError: it is another record than the index is of.
    """
    feature = _Example.FromString(record).features.feature
    if feature["sentence_lengths"].bytes_list.value[0] != sentence_lengths.tobytes():
        raise ValueError("its records are not those of the index")
    return np.frombuffer(feature["tokens"].bytes_list.value[0], "<i4")
