"""The corpus on disk, read side: tokenised documents by sentence number.

    OUT/corpus.json                  written last: a folder without it is not a corpus
        tokenizer/tokenizer.json     (and vocab.txt when it is a WordPiece)
        token_counts.npy             int64 [V], occurrences of each id in the train split
        dataset_info.json, features.json, corpus-SPLIT.array_record-IIIII-of-NNNNN
                                     a TFDS data set: tfds.builder_from_directory(OUT)
        index/SPLIT.sentence_lengths.npy  int32 [sentences], tokens of each sentence
        index/SPLIT.document_ends.npy     int64 [documents], sentence where each one ends
        index/SPLIT.record_ends.npy       int64 [records], sentence where each one ends

A record holds consecutive whole sentences of one document, about 2,048 tokens at most, so any
random read is small. Ends are exclusive. `corpus_writer.py` is the write side.
"""

import functools
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.errors import UserError

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
        for index in INDICES:
            array = np.load(index_path(folder, name, index), mmap_mode="r")
            # A plain view of the memory map: slices of np.memmap itself are slow to make.
            setattr(self, index, array.view(np.ndarray))
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
            except RuntimeError as error:
                reason = str(error).strip().split("\n")[0][:200]
                raise UserError(
                    f"{self._shard_path(shard)} is damaged ({reason}); copy or prepare the corpus "
                    "again"
                ) from error
            for number, record in zip(group.tolist(), records, strict=True):
                result[number] = decode_tokens(record)
        return result

    def _reader(self, shard: int) -> ArrayRecordReader:
        key = (os.getpid(), shard)  # a reader doesn't survive a fork
        reader = self._readers.get(key)
        if reader is None:
            with self._lock:
                if key not in self._readers:
                    path = str(self._shard_path(shard))
                    # Without read-ahead: it would read 16 MB for every random record.
                    self._readers[key] = ArrayRecordReader(path, "readahead_buffer_size:0")
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
        """int64 [V]: how often each id occurs in the train split."""
        return np.load(self.path / "token_counts.npy")


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
    try:
        info = json.loads((path / "corpus.json").read_text(encoding="utf-8"))
        if info.get("format") != FORMAT:
            raise UserError(
                f"corpus {path} has format {info.get('format')}, this version reads {FORMAT}; "
                "prepare it again"
            )
        corpus = Corpus(path, info)
        for name, split in corpus.splits.items():
            _check(path, name, split, info["splits"][name])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"corpus {path} is damaged ({error}); prepare it again") from error
    return corpus


def _check(path: Path, name: str, split: Split, counts: dict[str, Any]) -> None:
    """Raises ValueError or OSError where files and corpus.json don't agree."""
    arrays = (split.sentence_lengths, split.document_ends, split.record_ends)
    for what, array in zip(("sentences", "documents", "records"), arrays, strict=True):
        if len(array) != counts[what]:
            raise ValueError(f"{name} has {len(array)} {what} in its index, not {counts[what]}")
    for shard in range(len(counts["shards"])):
        shard_path(path, name, shard, len(counts["shards"])).stat()


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of a corpus's tokenizer."""
    return hashlib.sha256((folder / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()


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

    def message(name: str, *fields: tuple[str, int, str, bool]):
        result = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            scalar = {"int64": 3, "bytes": 12, "string": 9}.get(kind)
            result.field.add(
                name=field, number=number, label=3 if repeated else 1,
                type=scalar or 11, type_name=None if scalar else f".bert_jax.{kind}",
            )  # fmt: skip
        return result

    message("BytesList", ("value", 1, "bytes", True))
    message("Int64List", ("value", 1, "int64", True))
    feature = message(
        "Feature", ("bytes_list", 1, "BytesList", False), ("int64_list", 3, "Int64List", False)
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", 1, "Features.FeatureEntry", True))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".bert_jax.Feature")
    message("Example", ("features", 1, "Features", False))
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


def decode_tokens(record: bytes) -> Array:
    """The tokens of a record: int32 [tokens], read-only."""
    feature = _Example.FromString(record).features.feature["tokens"]
    return np.frombuffer(feature.bytes_list.value[0], "<i4")
