"""Reads TensorFlow 1 releases of BERT, without TensorFlow.

A folder with `bert_config.json`, `NAME.ckpt.index`, `NAME.ckpt.data-*` and `vocab.txt`. The index
is a sorted string table in LevelDB's format (doc/table_format.md), from the variables' names to
`BundleEntryProto` messages (tensorflow/core/protobuf/tensor_bundle.proto), which say where in the
data files the bytes are. Everything that is read is checked against its CRC-32C.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from bert_jax.common import schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import open_regular, read_bytes, read_checked
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.weights.hugging_face import assemble, check_case
from bert_jax.weights.store import Pretrained

_CODE = "google-research/bert"
_PARTS = ("pooler", "mlm_head", "nsp_head", "classifier", "span_head")  # that its programs have
_MAGIC = 0xDB4775248B80FB57
_RESTART = 16  # keys from one restart point to the next, as TensorFlow writes them
_FLOAT = 1
_DTYPES = {_FLOAT: "<f4", 2: "<f8", 14: ml_dtypes.bfloat16, 19: "<f2"}  # tensorflow DataType
_OPTIMISER = re.compile(r"/(adam|lamb)_[mv]$|/Adam(_1)?$|^(global_step|beta[12]_power)$")
_NAMES = [  # how they end in a release (. for /) and in transformers; the first that fits
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("_embeddings", "_embeddings.weight"),
    ("cls.predictions.output_bias", "cls.predictions.bias"),
    ("cls.seq_relationship.output_weights", "cls.seq_relationship.weight"),
    ("cls.seq_relationship.output_bias", "cls.seq_relationship.bias"),
    ("cls.squad.output_weights", "qa_outputs.weight"),  # run_squad.py
    ("cls.squad.output_bias", "qa_outputs.bias"),
    ("output_weights", "classifier.weight"),  # run_classifier.py
    ("output_bias", "classifier.bias"),
    (".kernel", ".weight"),  # [in, out] in a release, [out, in] in transformers
]


def read(folder: str | Path) -> Pretrained:
    """The model of a release; its Adam slots are ignored.

    Raises:
      UserError: files are missing or damaged, something in them does not fit, or the folder's name
        says cased (or uncased) and the vocabulary is not.
    """
    folder = Path(folder)
    indices = sorted(folder.glob("*.index"))
    if len(indices) != 1:
        found = ", ".join(path.name for path in indices) or "none"
        raise UserError(f"{folder} must hold one checkpoint (NAME.ckpt.index), it has: {found}")
    name = "bert_config.json" if (folder / "bert_config.json").exists() else "config.json"
    config = read_checked(folder / name, schemas.BertConfig)
    tokenizer = load_tokenizer(folder / "vocab.txt")
    named = re.search(r"(?:^|[_-])(un)?cased(?:[_-]|$)", folder.resolve().name)
    check_case(tokenizer, folder, {"the folder's name": named[1] == "un"} if named else {})
    theirs = {}
    for name, array in read_bundle(indices[0], lambda name: not _OPTIMISER.search(name)).items():
        renamed = _renamed(name.replace("/", "."), _NAMES)
        renamed = re.sub(r"layer_(\d+)", r"layer.\1", renamed)
        theirs[renamed] = array.T if name.endswith("/kernel") else array
    notes = []
    if config.get("hidden_act") == "gelu":
        notes.append(
            "activation: gelu in its exact form (erf), as in the releases of 2018; models trained "
            "with the released code of 2019-02-07 or later have --activation=gelu_tanh"
        )
    return assemble(config, theirs, tokenizer, folder, notes)


def _renamed(name: str, ends: Iterable[tuple[str, str]]) -> str:
    """The name with another end, by the first row that fits."""
    row = next((row for row in ends if name.endswith(row[0])), ("", ""))
    return name.removesuffix(row[0]) + row[1]


def read_bundle(index: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The variables of a checkpoint whose names are `wanted`.

    Args:
      index: the `.index` file; the data files are beside it.
    Raises: UserError: a file is missing, cut off, damaged, or of a kind that is not supported.
    """
    try:
        entries = dict(_table(read_bytes(index)))
        shards = _message(entries.pop(b"")).get(1, [1])[0]
        arrays = {}
        for key, value in entries.items():
            if wanted(name := key.decode()):
                arrays[name] = _variable(name, _message(value), index, shards)
        return arrays
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{index} is damaged, or no TF1 checkpoint: {error!r:.200}") from error


def _variable(name: str, entry: dict, index: Path, shards: int) -> np.ndarray:
    """The array that a BundleEntryProto describes."""
    dtype, shard, offset, size = (entry.get(field, [0])[0] for field in (1, 3, 4, 5))
    if dtype not in _DTYPES or 7 in entry:
        what = "is partitioned" if 7 in entry else f"is of type {dtype}, not floating-point"
        raise UserError(f"{index}: {name} {what}, which is not supported")
    dims = [_message(dim).get(1, [0])[0] for dim in _message(entry.get(2, [b""])[0]).get(2, [])]
    path = index.with_name(f"{index.stem}.data-{shard:05d}-of-{shards:05d}")
    if not path.exists():
        raise UserError(f"{path} is missing: {index} refers to it")
    with open_regular(path) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise UserError(f"{path} is cut off: {name} should end at byte {offset + size}")
    if _masked(crc32c(data)) != entry[6][0]:
        raise UserError(f"{path} is damaged: the checksum of {name} is wrong")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(dims)


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a sorted string table."""
    footer = data[-48:]
    if len(footer) < 48 or int.from_bytes(footer[40:], "little") != _MAGIC:
        raise ValueError("its end is not that of an index")
    place = 0
    for _ in range(2):  # the handle of the meta index, which is not used
        _, place = _varint(footer, place)
    for _, handle in _block(data, footer[place:]):
        yield from _block(data, handle)


def _block(data: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of the block at `handle` (two varints: offset and size)."""
    offset, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
    block, kind, crc = data[offset : offset + size], data[offset + size], data[offset + size + 1 :]
    if _masked(crc32c(data[offset : offset + size + 1])) != int.from_bytes(crc[:4], "little"):
        raise ValueError(f"wrong checksum of the block at byte {offset}")
    if kind:
        raise ValueError("it is compressed (snappy), which is not supported")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # restart points, their number
    key, place = b"", 0
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own + length
        yield key, block[place - length : place]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A whole number of 7 bits a byte, low ones first, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _message(data: bytes) -> dict[int, list]:
    """The fields of a protocol buffer: numbers, and bytes of nested messages."""
    fields: dict[int, list] = {}
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        value: int | bytes
        if tag & 7 == 0:
            value, place = _varint(data, place)
        elif tag & 7 == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
            value, place = int.from_bytes(data[place : place + size], "little"), place + size
        else:
            raise ValueError(f"a field of the unknown kind {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _masked(crc: int) -> int:
    """LevelDB stores checksums rotated and shifted by a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> np.ndarray:
    """uint32[65536]: the register after two bytes, by the Castagnoli polynomial."""
    table: np.ndarray = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        table = (table >> 1) ^ ((table & 1) * np.uint32(0x82F63B78))
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of `data`, at the speed of numpy.

    The data are cut into lanes, which are taken through the register side by side, two bytes at a
    time. The register is linear, so two neighbouring lanes are joined by moving the first one past
    the second's bytes.
    """
    data = b"Td\x1fd" + data  # takes the register from zeros to the ones that it should start with
    width = 1 << (len(data).bit_length() // 2)  # pairs of bytes in a lane
    lanes = 1 << (-(-len(data) // (2 * width)) - 1).bit_length()
    padded = np.zeros(2 * lanes * width, np.uint8)  # zeros in front leave zeros in the register
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    crc = np.zeros(lanes, np.uint32)
    moved = np.uint32(1) << np.arange(32, dtype=np.uint32)  # each bit, after the bytes of a lane
    for pairs in np.ascontiguousarray(padded.view("<u2").reshape(lanes, width).T):
        crc = _CRC[(crc ^ pairs) & 0xFFFF] ^ (crc >> 16)
        moved = _CRC[moved & 0xFFFF] ^ (moved >> 16)

    def move(registers: np.ndarray) -> np.ndarray:
        bits = (registers[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        return np.bitwise_xor.reduce(bits * moved, axis=1)

    while len(crc) > 1:
        crc, moved = move(crc[0::2]) ^ crc[1::2], move(moved)
    return int(crc[0]) ^ 0xFFFFFFFF
