"""The corpus on disk: what is written comes back by any range, from any process or thread."""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from bert_jax.common.errors import UserError
from bert_jax.data import corpus as corpus_module
from bert_jax.data.corpus import open_corpus, shard_path
from bert_jax.data.tokenizer import wordpiece_tokenizer
from bert_jax.preparing.corpus_writer import RECORD_TOKENS, UnitWriter, assemble

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]


def _write(out):
    """A corpus of 3 units; returns its train sentences by document."""
    rng = np.random.default_rng(0)
    (out / ".partial").mkdir(parents=True)
    documents, folders = [], []
    for unit in range(3):
        folders.append(out / ".partial" / f"unit-{unit:05d}")
        writer = UnitWriter(folders[-1], len(VOCAB))
        for number in range(30):
            lengths = rng.integers(1, 90, rng.integers(1, 120)).astype(np.int32)
            if number == 5:
                lengths[0] = 5000  # a record of its own
            tokens = rng.integers(5, 100, lengths.sum()).astype(np.int32)
            split = "held_out" if number % 10 == 7 and unit != 1 else "train"  # unit 1: no shard
            writer.add(split, 100 * unit + number, tokens, lengths, size=10)
            if split == "train":
                documents.append(np.split(tokens, np.cumsum(lengths)[:-1]))
        writer.close({})
    assemble(out, folders, wordpiece_tokenizer(VOCAB), {"settings": {}})
    return documents


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    return out, _write(out)


def _ranges(split, documents, count=400):
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(split), count)
    last = split.document_ends[np.searchsorted(split.document_ends, starts, side="right")]
    return starts, np.minimum(starts + rng.integers(1, 200, count), last)


def test_index_and_counts(written):
    out, documents = written
    corpus = open_corpus(out)
    split = corpus.splits["train"]
    lengths = [len(sentence) for document in documents for sentence in document]
    np.testing.assert_array_equal(split.sentence_lengths, lengths)
    np.testing.assert_array_equal(split.document_ends, np.cumsum([len(d) for d in documents]))
    assert set(split.document_ends) <= set(split.record_ends)
    begins = np.concatenate([[0], split.record_ends[:-1]])
    sizes = np.add.reduceat(split.sentence_lengths, begins)
    single = split.record_ends - begins == 1
    assert (sizes[~single] <= RECORD_TOKENS).all() and sizes.max() == 5000
    counts = np.bincount(np.concatenate([t for d in documents for t in d]), minlength=100)
    np.testing.assert_array_equal(corpus.token_counts, counts)
    assert corpus.info["splits"]["train"]["tokens"] == sum(lengths)
    assert corpus.info["splits"]["held_out"]["documents"] == 6
    assert len(corpus.info["splits"]["held_out"]["shards"]) == 2
    assert corpus.tokenizer.vocab_size == 100
    assert not (out / ".partial").exists()


def test_any_range_in_one_read(written):
    out, documents = written
    split = open_corpus(out).splits["train"]
    sentences = [sentence for document in documents for sentence in document]
    starts, ends = _ranges(split, documents)
    found = split.tokens(starts, ends)
    for start, end, tokens in zip(starts, ends, found, strict=True):
        assert tokens.dtype == np.int32
        np.testing.assert_array_equal(tokens, np.concatenate(sentences[start:end]))
    assert split.tokens(np.array([], int), np.array([], int)) == []
    for start, end in ((3, 3), (-1, 2), (0, len(split) + 1)):
        with pytest.raises(IndexError):
            split.tokens(np.array([start]), np.array([end]))


def test_processes_and_threads(written):
    out, documents = written
    split = open_corpus(out).splits["train"]
    starts, ends = _ranges(split, documents, 50)
    expected = [tokens.tolist() for tokens in split.tokens(starts, ends)]
    copy = pickle.loads(pickle.dumps(split))
    assert [tokens.tolist() for tokens in copy.tokens(starts, ends)] == expected
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: split.tokens(starts, ends), range(8)):
            assert [tokens.tolist() for tokens in result] == expected
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as processes:
        result = processes.submit(split.tokens, starts, ends).result()
    assert [tokens.tolist() for tokens in result] == expected


def test_is_a_tfds_data_set(written):
    out, _ = written
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(out)
    for name, split in open_corpus(out).splits.items():
        source = builder.as_data_source(name)
        assert len(source) == len(split.record_ends)
        begins = [0, *split.record_ends[:-1].tolist()]
        for i in (0, len(source) // 2, len(source) - 1):
            record = source[i]
            begin, end = begins[i], int(split.record_ends[i])
            (tokens,) = split.tokens(np.array([begin]), np.array([end]))
            np.testing.assert_array_equal(record["tokens"], tokens)
            np.testing.assert_array_equal(
                record["sentence_lengths"], split.sentence_lengths[begin:end]
            )
    source = builder.as_data_source("train")
    assert source[len(source) - 1]["document"] == 229


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_shard_is_named(written, tmp_path, damage):
    shutil.copytree(written[0], tmp_path / "copy")
    shard = next((tmp_path / "copy").glob("corpus-train.array_record-*"))
    data = shard.read_bytes()
    half = len(data) // 2
    shard.write_bytes(data[:half] if damage == "cut" else bytes(half) + data[half:])
    split = open_corpus(tmp_path / "copy").splits["train"]
    with pytest.raises(UserError, match=rf"{shard.name} is damaged .*prepare the corpus again"):
        split.tokens(np.array([0]), np.array([1]))


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def test_one_changed_bit_of_any_file_beside_the_shards_is_told(written, tmp_path):
    copy = shutil.copytree(written[0], tmp_path / "copy")
    files = [*(copy / "index").glob("*.npy"), copy / "token_counts.npy"]
    files += [copy / "dataset_info.json", copy / "features.json"]
    rng = np.random.default_rng(0)
    for path in files:
        size = 8 * path.stat().st_size
        for bit in [0, size - 1, *rng.integers(size, size=20).tolist()]:
            flipped(path, bit)
            with pytest.raises(UserError, match=rf"{path.name} is not as it was when the corpus"):
                open_corpus(copy)
            flipped(path, bit)
    open_corpus(copy)


def test_a_corpus_without_digests_opens_and_is_checked_for_sense(written, tmp_path):
    """Those that were made before there were digests."""
    copy = shutil.copytree(written[0], tmp_path / "copy")
    info = json.loads((copy / "corpus.json").read_text())
    del info["digests"]
    (copy / "corpus.json").write_text(json.dumps(info))
    assert len(open_corpus(copy).splits["train"]) == len(open_corpus(written[0]).splits["train"])
    for name, reason in (
        ("sentence_lengths", "does not add up to"),
        ("document_ends", "does not rise up to"),
        ("record_ends", "does not rise up to"),
    ):
        path = copy / "index" / f"train.{name}.npy"
        data = path.read_bytes()
        array = np.load(path)
        for place in (0, len(array) // 2, len(array) - 1):
            changed = array.copy()
            changed[place] += 1 << 20
            np.save(path, changed)
            with pytest.raises(UserError, match=rf"corpus .* is damaged \(.*{name}.npy {reason}"):
                open_corpus(copy)
        np.save(path, array.astype(np.float32))
        with pytest.raises(UserError, match=rf"{name}.npy holds float32"):
            open_corpus(copy)
        path.write_bytes(data[:100])
        with pytest.raises(UserError, match=rf"{name}.npy cannot be read"):
            open_corpus(copy)
        path.write_bytes(data)
    np.save(copy / "token_counts.npy", np.ones(3, np.int64))
    with pytest.raises(UserError, match=r"token_counts\.npy is not of the vocabulary"):
        _ = open_corpus(copy).token_counts


def test_a_shard_in_the_place_of_another_is_told(written, tmp_path):
    copy = shutil.copytree(written[0], tmp_path / "copy")
    first, second = sorted(copy.glob("corpus-train.array_record-*"))[:2]
    first.replace(tmp_path / "first")
    shutil.copy(second, first)
    split = open_corpus(copy).splits["train"]
    with pytest.raises(
        UserError, match=rf"{first.name} is damaged .*(of the index|records, where)"
    ):
        split.tokens(np.array([0]), np.array([1]))
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(UserError, match=rf"{first.name} is not a file"):
        open_corpus(copy)


def test_a_digest_of_several_pieces_depends_on_each_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_PIECE", 1000)
    path = tmp_path / "a.npy"
    path.write_bytes(bytes(4500))
    whole = corpus_module.digest(path)
    for bit in (0, 8 * 2500, 8 * 4500 - 1):
        flipped(path, bit)
        assert corpus_module.digest(path) != whole
        flipped(path, bit)
    assert corpus_module.digest(path) == whole
    path.write_bytes(b"abc")
    assert corpus_module.digest(path) == hashlib.sha256(b"abc").hexdigest()


def test_what_is_not_a_corpus(written, tmp_path):
    out, _ = written
    with pytest.raises(UserError, match=r"does not exist; make it with"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a corpus"):
        open_corpus(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    info = json.loads((copy / "corpus.json").read_text())
    (copy / "corpus.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(UserError, match=r"format 99.*prepare it again"):
        open_corpus(copy)
    (copy / "corpus.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged"):
        open_corpus(copy)
    (copy / "corpus.json").write_text(json.dumps(info))
    shard_path(copy, "train", 0, 3).unlink()
    with pytest.raises(UserError, match=r"damaged"):
        open_corpus(copy)
    (copy / "corpus.json").unlink()
    (copy / ".partial").mkdir()
    with pytest.raises(UserError, match=r"unfinished; run the same"):
        open_corpus(copy)
