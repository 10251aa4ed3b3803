"""The corpus on disk, write side: pieces written in parallel, then put together.

Each work unit becomes a folder OUT/.partial/unit-IIIII with one shard per split and its part of
the index; `assemble` moves the shards into place, joins the index and writes corpus.json last.
Every step is a rename of something complete, and can be done again after a kill at any point.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from bert_jax.common import schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import folder_written_whole, read_checked, write_whole, written_whole
from bert_jax.data.corpus import (
    FORMAT,
    INDICES,
    PARTIAL,
    SPLITS,
    differing,
    digests,
    encode_record,
    index_path,
    load_array,
    shard_path,
    tokenizer_digest,
)
from bert_jax.data.tokenizer import Tokenizer

RECORD_TOKENS = 2048
ASSEMBLING = "assembling"  # in PARTIAL: from now on, files beside it may be the corpus's
# zstd:1 halves the size (against uncompressed) for 10 us a record read, 40 us a record written.
_OPTIONS = "group_size:1,zstd:1"
_DESCRIPTIONS = ("token_counts.npy", "dataset_info.json", "features.json")
Array = np.ndarray


class UnitWriter:
    """Writes the documents of one work unit; memory grows with the number of sentences only."""

    def __init__(self, folder: Path, vocab_size: int):
        """Starts unit `folder`, which appears only at `close`; ids are below `vocab_size`."""
        self._folder = folder
        self._making = contextlib.ExitStack()
        self._temporary = self._making.enter_context(folder_written_whole(folder))
        self._splits = {name: _SplitWriter(self._temporary / name) for name in SPLITS}
        self._token_counts = np.zeros(vocab_size, np.int64)

    def add(self, split: str, document: int, tokens: Array, lengths: Array, size: int) -> None:
        """Adds a document.

        Args:
          split: `train` or `held_out`.
          document: its number in the records, a hash of its text.
          tokens: int32 [tokens], all its sentences one after the other.
          lengths: int32 [sentences], tokens of each sentence, all above 0.
          size: bytes of its text.
        """
        self._splits[split].add(document, tokens, lengths, size)
        if split == "train":
            self._token_counts += np.bincount(tokens, minlength=len(self._token_counts))

    def close(self, notes: dict[str, Any], smallest: int = 0, largest: int = 0) -> None:
        """Finishes the unit; what is given is kept in its unit.json for `read_unit`.

        notes: what was met on the way. smallest, largest: hashes of its documents.
        """
        counts = {name: split.close() for name, split in self._splits.items()}
        np.save(self._temporary / "token_counts.npy", self._token_counts)
        unit = {
            "splits": counts,
            "notes": notes,
            "smallest": smallest,
            "largest": largest,
            "digests": digests(self._temporary, self._temporary.glob("*.npy")),
        }
        write_json(self._temporary / "unit.json", unit)
        self._making.close()


class _SplitWriter:
    def __init__(self, stem: Path):
        self._stem = stem
        with _writing(stem):
            self._writer = ArrayRecordWriter(f"{stem}.array_record", _OPTIONS)
        self._lengths: list[Array] = []
        self._documents: list[int] = []  # sentences of each document
        self._records: list[int] = []  # sentences of each record
        self._size = 0

    def add(self, document: int, tokens: Array, lengths: Array, size: int) -> None:
        ends = np.cumsum(lengths)
        first = offset = 0
        while first < len(lengths):
            last = int(np.searchsorted(ends, offset + RECORD_TOKENS, side="right"))
            last = max(last, first + 1)  # one long sentence is a record of its own
            end = int(ends[last - 1])
            with _writing(self._stem):
                self._writer.write(encode_record(document, tokens[offset:end], lengths[first:last]))
            self._records.append(last - first)
            first, offset = last, end
        self._lengths.append(lengths)
        self._documents.append(len(lengths))
        self._size += size

    def close(self) -> dict[str, int]:
        with _writing(self._stem):
            self._writer.close()
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        np.save(f"{self._stem}.sentence_lengths.npy", lengths.astype(np.int32))
        for index, sizes in (("document_ends", self._documents), ("record_ends", self._records)):
            np.save(f"{self._stem}.{index}.npy", np.cumsum(sizes, dtype=np.int64))
        return {
            "documents": len(self._documents),
            "sentences": len(lengths),
            "tokens": int(lengths.sum()),
            "records": len(self._records),
            "bytes": self._size,
        }


@contextlib.contextmanager
def _writing(stem: Path) -> Iterator[None]:
    """Makes an OSError of ArrayRecord's RuntimeError, which tells of a full disk at `close`."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0][:200] or "unknown reason"
        code = next(
            (c for c in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if os.strerror(c) in reason), None
        )
        text = os.strerror(code) if code else reason
        raise OSError(code or errno.EIO, text, f"{stem}.array_record") from error


def read_unit(folder: Path) -> dict[str, Any]:
    """Reads `{"splits": {split: counts}, "notes", "smallest", "largest"}` of a finished unit.

    Raises: UserError: it is damaged.
    """
    unit = read_checked(folder / "unit.json", schemas.Unit)
    if damaged := differing(folder, unit.get("digests", {})):
        raise UserError(
            f"{damaged} is damaged; remove {folder}, and the same command makes it again"
        )
    return unit


def total_counts(units: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Counts of each split over all units, and `shards`, the records of each of its shards."""
    result: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        parts = [unit["splits"][name] for unit in units]
        result[name] = {what: sum(part[what] for part in parts) for what in parts[0]}
        result[name]["shards"] = [part["records"] for part in parts if part["records"]]
    return result


def assemble(
    out: Path, folders: Sequence[Path], tokenizer: Tokenizer, info: dict[str, Any]
) -> None:
    """Makes the corpus of finished units, in their order; `info` goes into corpus.json, too."""
    (out / PARTIAL / ASSEMBLING).touch()
    tokenizer.save(out / "tokenizer")
    units = [read_unit(folder) for folder in folders]
    splits = total_counts(units)
    (out / "index").mkdir(exist_ok=True)
    for name in SPLITS:
        present = [
            folder for folder, unit in zip(folders, units, strict=True)
            if unit["splits"][name]["records"]
        ]  # fmt: skip
        for shard, folder in enumerate(present):
            source = folder / f"{name}.array_record"
            if source.exists():  # else a killed run has moved it already
                os.replace(source, shard_path(out, name, shard, len(present)))
        for index in INDICES:
            _join(index_path(out, name, index), [f / f"{name}.{index}.npy" for f in present], index)
    counts = sum(load_array(folder / "token_counts.npy", np.int64) for folder in folders)
    with written_whole(out / "token_counts.npy") as made, made.open("wb") as file:
        np.save(file, counts)
    _write_tfds(out, splits)
    about_tokenizer = {
        "vocab_size": tokenizer.vocab_size, "tokenizer_sha256": tokenizer_digest(out)
    }  # fmt: skip
    files = [*(out / "index").glob("*.npy"), *(out / name for name in _DESCRIPTIONS)]
    about = {**about_tokenizer, "digests": digests(out, files)}
    write_json(out / "corpus.json", {"format": FORMAT, "splits": splits, **about, **info})
    shutil.rmtree(out / PARTIAL, ignore_errors=True)


def _join(path: Path, parts: Sequence[Path], index: str) -> None:
    """Joins index arrays; ends are numbered on from the part before."""
    size = sum(len(load_array(part, INDICES[index])) for part in parts)
    kind = np.dtype(INDICES[index])
    base = 0
    # Not into a memory map: where the disk is full, the process would die of SIGBUS.
    with written_whole(path) as made, made.open("wb") as file:
        header = {"descr": kind.str, "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            array = load_array(part, INDICES[index])
            file.write((array + base).astype(kind).tobytes())
            if index != "sentence_lengths":
                base += int(array[-1])


def _write_tfds(out: Path, splits: dict[str, dict[str, Any]]) -> None:
    """Writes dataset_info.json and features.json.

    What tfds.folder_dataset.write_metadata writes; that function imports TensorFlow.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, file_adapters, naming

    ids = tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes")
    features = tfds.features.FeaturesDict(
        {"document": tfds.features.Scalar(np.int64), "tokens": ids, "sentence_lengths": ids}
    )
    template = naming.ShardedFileTemplate(
        data_dir=out, dataset_name="corpus", filetype_suffix="array_record"
    )
    split_infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=counts["shards"],
            num_bytes=sum(
                shard_path(out, name, shard, len(counts["shards"])).stat().st_size
                for shard in range(len(counts["shards"]))
            ),
            filename_template=template,
        )
        for name, counts in splits.items()
    ]
    identity = dataset_info.DatasetIdentity(
        name="corpus", version="1.0.0", data_dir=str(out), module_name="bert_jax.data.corpus"
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features, split_dict=tfds.core.splits.SplitDict(split_infos)
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    info.write_to_directory(out)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically: it is there complete, or not at all."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
