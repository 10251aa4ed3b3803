"""Writes TF1 releases of BERT, as google-research/bert would have left them, for tests to read."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.common.files import write_json, write_whole
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer, wordpiece_tokenizer
from bert_jax.weights import tf1
from bert_jax.weights.hugging_face import disassemble
from bert_jax.weights.store import Pretrained, new_folder, some


def write(folder: str | Path, pretrained: Pretrained) -> list[str]:
    """Writes a model as google-research/bert opens it (bert_model.ckpt); whole or not at all.

    Returns: what a release does not say, and its user must know; a line each.
    Raises: UserError: the folder is not empty, or that code knows no such model or tokenizer.
    """
    params, task = pretrained.params, pretrained.task or {}
    strange = params.keys() - {"encoder", *tf1._PARTS}
    if strange:
        raise UserError(f"{tf1._CODE} has no names for {', '.join(sorted(strange))}")
    if "classifier" in params and task.get("kind", "single") != "single":
        raise UserError(
            f"{tf1._CODE} classifies into one of several classes, not kind={task['kind']}"
        )
    classes = {part: len(params[part]["dense"]["bias"]) for part in params if part != "encoder"}
    config, theirs = disassemble(pretrained, classes, tf1._CODE)
    if (epsilon := config.pop("layer_norm_eps")) != 1e-12:
        raise UserError(
            f"norm_epsilon={epsilon:g} is not that of {tf1._CODE}, which is always 1e-12"
        )
    arrays = {}
    for name, array in theirs.items():
        name = tf1._renamed(name, [(end, start) for start, end in tf1._NAMES])
        name = re.sub(r"layer\.(\d+)", r"layer_\1", name).replace(".", "/")
        arrays[name] = array.T if name.endswith("/kernel") else array
    notes = [f"written for {tf1._CODE}"]
    if config["hidden_act"].startswith("gelu"):
        exact = config["hidden_act"] == "gelu"
        notes.append(
            f"activation: {'erf' if exact else 'tanh'}, written as gelu, which is "
            + ("tanh in its code since 2019-02-07" if exact else "erf in its code of 2018")
        )
        config["hidden_act"] = "gelu"
    if "pooler" not in params:
        notes.append("no pooler: its BertModel makes one of random values")
    if config["type_vocab_size"] == 1:
        notes.append("one segment type: both texts of a pair must be given as segment 0")
    if task.get("labels"):
        notes.append(f"names of the classes, not written: {', '.join(task['labels'])}")
    if task.get("unanswerable"):
        notes.append(f"for run_squad.py: --null_score_diff_threshold={task['threshold']}")
    with new_folder(folder) as made:
        notes += _write_vocabulary(made / "vocab.txt", pretrained.tokenizer)
        write_json(made / "bert_config.json", config)
        write_bundle(made / "bert_model.ckpt", arrays)
        write_whole(made / "checkpoint", 'model_checkpoint_path: "bert_model.ckpt"\n')
    return notes


def _write_vocabulary(path: Path, tokenizer: Tokenizer) -> list[str]:
    """Writes vocab.txt; returns what to tell of how google-research/bert reads it.

    Raises: UserError: it does not say how the tokenizer splits text.
    """
    if tokenizer.kind != "wordpiece":
        raise UserError(f"a {tokenizer.kind} tokenizer cannot be written as a vocab.txt")
    added = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    if words := [token for token in added if token not in tokenizer.special_tokens]:
        raise UserError(f"vocab.txt does not say that these match whole words: {some(words)}")
    write_whole(path, "".join(token + "\n" for token in tokenizer.tokens))
    again = load_tokenizer(path)
    pairs = zip(tokenizer.tokens, again.tokens, strict=False)
    if changed := [repr(token) for token, read in pairs if token != read]:
        raise UserError(f"vocab.txt cannot hold these tokens: {some(changed)}")
    # What case, accents, Hangul, voicing marks and CJK do to any token.
    texts = [f"{t} {t.upper()} {t}\u0301 {t}{t}" for t in tokenizer.tokens] + ["한 が"]
    ours = tokenizer.encode_batch(texts)
    for text, one, other in zip(texts, ours, again.encode_batch(texts), strict=True):
        if one != other:
            raise UserError(f"vocab.txt does not say how the tokenizer splits text, as {text!r}")
    if again.backend.normalizer.normalize_str("A") == "A":
        return ["cased: its programs need --do_lower_case=False"]
    if wordpiece_tokenizer(again.tokens, keep_whole=False).encode_batch(texts) != ours:
        return ["Hangul and voiced kana: its tokenizer takes them apart, this vocabulary does not"]
    return []


def write_bundle(prefix: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint, PREFIX.index and one data file beside it, as tf.train.Saver does.

    arrays: float32, by the names of the variables.
    """
    # BundleHeaderProto: one data file, little-endian, version (producer) 1.
    entries = {b"": _field(1, 1) + _field(3, _field(1, 1))}
    with prefix.with_name(f"{prefix.name}.data-00000-of-00001").open("wb") as file:
        for name in sorted(arrays, key=str.encode):
            data = np.asarray(arrays[name], tf1._DTYPES[tf1._FLOAT]).tobytes()
            entries[name.encode()] = _entry(arrays[name].shape, file.tell(), data)
            file.write(data)
    prefix.with_name(f"{prefix.name}.index").write_bytes(_write_table(entries))


def _entry(shape: tuple[int, ...], offset: int, data: bytes) -> bytes:
    """The BundleEntryProto of a float32 array, whose bytes lie at `offset` in the data file."""
    dims = b"".join(_field(2, _field(1, size)) for size in shape)
    place = _field(4, offset) if offset else b""  # protocol buffers leave zeros out
    crc = tf1._masked(tf1.crc32c(data)).to_bytes(4, "little")
    size = _field(5, len(data)) if data else b""
    return _field(1, tf1._FLOAT) + _field(2, dims) + place + size + _to_varint(6 << 3 | 5) + crc


def _write_table(entries: Mapping[bytes, bytes]) -> bytes:
    """The sorted string table of one block: that, an empty meta index, the index, the footer.

    entries: sorted by key, with the empty one.
    """
    table = b""

    def put(rows: Mapping[bytes, bytes]) -> bytes:
        """Appends a block and its trailer; returns its handle."""
        nonlocal table
        block = _write_block(rows)
        handle = _to_varint(len(table)) + _to_varint(len(block))
        block += b"\0"  # not compressed
        table += block + tf1._masked(tf1.crc32c(block)).to_bytes(4, "little")
        return handle

    rows = put(entries)
    after = bytes([max(entries)[0] + 1])  # LevelDB indexes a block by a short key that follows it
    footer = put({}) + put({after: rows})
    return table + footer.ljust(40, b"\0") + tf1._MAGIC.to_bytes(8, "little")


def _write_block(rows: Mapping[bytes, bytes]) -> bytes:
    """Keys without what they share with the one before, and values; then the restart points."""
    block, restarts, last = bytearray(), [0], b""
    for number, (key, value) in enumerate(rows.items()):
        if number and number % tf1._RESTART == 0:
            restarts.append(len(block))
            last = b""  # nothing is shared, so that readers can start here
        both = enumerate(zip(last, key, strict=False))
        shared = next((place for place, (a, b) in both if a != b), len(last))
        for length in (shared, len(key) - shared, len(value)):
            block += _to_varint(length)
        block += key[shared:] + value
        last = key
    return bytes(block) + np.array([*restarts, len(restarts)], "<u4").tobytes()


def _to_varint(number: int) -> bytes:
    """What `_varint` reads."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a number, or the bytes of a nested message."""
    if isinstance(value, int):
        return _to_varint(number << 3) + _to_varint(value)
    return _to_varint(number << 3 | 2) + _to_varint(len(value)) + value
