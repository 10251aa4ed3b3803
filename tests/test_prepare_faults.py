"""prepare: killed at every step, on a full disk, with few documents; and the same bytes after."""

import contextlib
import io
import json
import os
import pathlib
import resource
import sys

import pytest
from random_text import digests, random_text, sentences, text_config

from bert_jax.common import entry
from bert_jax.common.errors import UserError
from bert_jax.common.flag_parsing import parse_flags
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.preparing import units
from bert_jax.preparing.build import prepare
from bert_jax.preparing.vocabulary import train_vocabulary
from bert_jax.weights import hugging_face


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """Units of 10 kB, made in this process, one after the other."""

    def run(tasks, workers, on_progress):
        for function, *arguments in tasks:
            function(*arguments)
        return 0

    monkeypatch.setattr(units, "run_pool", run)
    monkeypatch.setattr(units, "SMALLEST_UNIT", 10_000)


class Killed(BaseException):
    """In the place of a signal."""


@contextlib.contextmanager
def killed_after(moves, monkeypatch):
    """Ends what runs inside after so many files and folders were moved into place."""
    left = moves

    def killing(move):
        def moved(*arguments):
            nonlocal left
            result = move(*arguments)
            left -= 1
            if not left:
                raise Killed
            return result

        return moved

    with monkeypatch.context() as patch:
        for where, name in ((pathlib.Path, "replace"), (pathlib.Path, "rename"), (os, "replace")):
            patch.setattr(where, name, killing(getattr(where, name)))
        yield


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """A vocabulary of each kind of file: vocab.txt, tokenizer.json, a SentencePiece model."""
    folder = tmp_path_factory.mktemp("vocabularies")
    (folder / "sample").write_text(random_text(80))
    for kind in ("wordpiece", "unigram"):
        trained = train_vocabulary([folder / "sample"], kind, 150, True, folder)
        trained.save(folder / kind)
    return {
        "vocab.txt": folder / "wordpiece" / "vocab.txt",
        "tokenizer.json": folder / "unigram" / "tokenizer.json",
        "sentencepiece": folder / "unigram.model",
    }


@pytest.mark.parametrize(
    "kind", ["wordpiece", "unigram", "vocab.txt", "tokenizer.json", "sentencepiece"]
)
def test_killed_after_each_step(input_file, tmp_path, vocabularies, kind, monkeypatch):
    given = vocabularies.get(kind)
    changes = {"vocab": str(given)} if given else {"vocab_kind": kind}
    config = text_config(input_file, **changes)
    input_file.write_text(random_text(60))
    prepare(config, tmp_path / "whole", quiet=True)
    kills = 0
    while not (tmp_path / "killed" / "corpus.json").exists():
        kills += 1
        assert kills < 100
        with killed_after(kills, monkeypatch), contextlib.suppress(Killed):
            prepare(config, tmp_path / "killed", quiet=True)
    prepare(config, tmp_path / "killed", quiet=True)
    assert kills > 5
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_what_is_used_of_a_vocabulary_is_what_was_written(tmp_path, kind):
    (tmp_path / "sample").write_text(random_text(80))
    used = train_vocabulary([tmp_path / "sample"], kind, 150, True, tmp_path)
    for generation in ("one", "two"):
        used.save(tmp_path / generation)
        loaded = load_tokenizer(tmp_path / generation)
        assert loaded.backend.to_str() == used.backend.to_str()
        assert loaded.special_backend.to_str() == used.special_backend.to_str()
        used = loaded
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    hugging_face._write_tokenizer(tmp_path / "exported", used, 64, False)
    assert load_tokenizer(tmp_path / "exported").encode(random_text(9)) == used.encode(
        random_text(9)
    )
    models = [
        json.loads((tmp_path / name / "tokenizer.json").read_text())["model"]
        for name in ("one", "exported")
    ]
    assert models[0] == models[1]


@contextlib.contextmanager
def no_file_above(size):
    """A full disk: what is over these bytes of a file cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_after_it(input_file, tmp_path, kind):
    config = text_config(input_file, vocab_kind=kind)
    prepare(config, tmp_path / "whole", quiet=True)
    said = set()
    for size in (0, 100, 1_000, 4_000, 7_000, 12_000, 20_000, 40_000, 80_000):
        with no_file_above(size), contextlib.suppress(UserError):
            try:
                prepare(config, tmp_path / "full", quiet=True)
            except UserError as error:
                said.add(str(error))
    assert len(said) > 0 and all(
        line.startswith(f"cannot write to {tmp_path / 'full'}: ")
        and line.endswith("the same command goes on from here")
        and "\n" not in line
        for line in said
    )
    prepare(config, tmp_path / "full", quiet=True)
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")


def test_a_disk_that_is_full_when_shards_are_closed(input_file, tmp_path, monkeypatch):
    """What ArrayRecord says when it cannot write is a RuntimeError."""

    class Full:
        def write(self, record):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; writing x\nmore")

    monkeypatch.setattr("bert_jax.preparing.corpus_writer.ArrayRecordWriter", lambda *_: Full())
    with pytest.raises(UserError, match=r"^cannot write to .*/out: No space left on device; when"):
        prepare(text_config(input_file), tmp_path / "out", quiet=True)
    assert not list((tmp_path / "out" / ".partial").glob("unit-*"))


# Few documents.


@pytest.mark.parametrize("documents", [2, 40])
def test_one_document_is_held_out_at_least(tmp_path, documents):
    path = tmp_path / "a.txt"
    for seed in range(2):
        path.write_text(random_text(documents, seed))
        corpora = []
        for size in (10_000, 3_000 if documents > 2 else 500):  # whatever the units
            units.SMALLEST_UNIT = size
            config = text_config(path, held_out=1e-9)
            corpora.append(prepare(config, tmp_path / f"{seed}-{size}", quiet=True))
        one, other = ({n: sentences(c, n) for n in c.splits} for c in corpora)
        assert one == other
        assert len(one["held_out"]) == 1 and len(one["train"]) == documents - 1


def test_one_document_is_kept_at_least(tmp_path):
    (tmp_path / "a.txt").write_text(random_text(20))
    corpus = prepare(text_config(tmp_path / "a.txt", held_out=1 - 1e-9), tmp_path / "o", quiet=True)
    assert [corpus.info["splits"][name]["documents"] for name in corpus.splits] == [1, 19]


def test_copies_of_the_one_held_out_document_are_held_out_too(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "SMALLEST_UNIT", 300)
    (tmp_path / "a.txt").write_text(random_text(3) * 3)
    corpus = prepare(text_config(tmp_path / "a.txt", held_out=1e-9), tmp_path / "o", quiet=True)
    held, train = sentences(corpus, "held_out"), sentences(corpus, "train")
    assert len(held) == 3 and held[0] == held[1] == held[2]
    assert len(train) == 6 and held[0] not in train


def test_documents_that_are_all_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("The same. Text.\n\n" * 30)
    with pytest.raises(UserError, match="all documents of the input are the same"):
        prepare(text_config(tmp_path / "a.txt"), tmp_path / "out", quiet=True)


def test_a_single_document_is_refused_before_anything_is_tokenised(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "run_pool", lambda *_: pytest.fail("tokenised"))
    (tmp_path / "a.txt").write_text("One. Two.\nThree.\n")
    with pytest.raises(UserError, match="is a single document"):
        prepare(text_config(tmp_path / "a.txt"), tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    "text, source, hint",
    [
        (random_text(40), "text", False),
        ("One of it. Two of it. And more.\n\n" * 3 + random_text(1), "text", True),
        ("One\tTwo\nThree\tFour\n", "pairs", False),
    ],
)
def test_a_hint_where_documents_are_short(tmp_path, capsys, text, source, hint):
    (tmp_path / "a.txt").write_text(text if source == "pairs" else text.replace("of it", "the cat"))
    prepare(text_config(tmp_path / "a.txt", source=source, held_out=0.3), tmp_path / "out")
    assert ("sentences in the mean" in capsys.readouterr().out) == hint


# Terminals and names.


def test_what_a_terminal_cannot_show_ends_no_run(monkeypatch):
    told = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(told, "ascii"))
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(entry.app, "run", lambda main, **_: main(["x"]))
    entry.run(lambda: print("한 · \udcff"))
    sys.stdout.flush()
    assert told.getvalue() == rb"\ud55c \xb7 \udcff" + b"\n"


def test_a_name_that_is_not_utf_8(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(path, "w") as file:
        file.write(random_text(40))
    corpus = prepare(text_config(tmp_path / "*.txt"), tmp_path / "out", quiet=True)
    assert corpus.info["sources"][0]["path"] == f"{tmp_path}/\\xff.txt"
    with pytest.raises(UserError, match=r"'--out=\\udcff' is not UTF-8, .*rename it"):
        parse_flags(["x", "--out=\udcff"], arguments=False, about="")
