"""prepare: every kind of input and setting, and a clear answer to every bad one."""

import json
import random
import subprocess
import sys
from pathlib import Path

import programs
import pytest
from random_text import WORDS, random_text, sentences, text_config

from bert_jax.common.errors import UserError
from bert_jax.preparing.build import prepare
from bert_jax.preparing.sources import find_files
from configs.prepare import get_config

ROOT = Path(__file__).parents[1]


def test_the_command_says_errors_in_one_line(tmp_path):
    done = programs.run(
        "-m", "bert_jax.prepare", "--config=configs/prepare.py:source=text",
        f"--config.input={tmp_path}/nothing-*.txt", f"--out={tmp_path}/out",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: input pattern ") and "matches no file" in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_brackets_in_the_name_of_what_is_there_are_no_pattern(tmp_path):
    path = tmp_path / "v[2]" / "a[b].txt"
    path.parent.mkdir()
    path.touch()
    for given in (path, path.parent, f"{tmp_path}/v*/*"):
        assert find_files(str(given), "text") == [("text", str(path))]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "pdf"}, "source is 'pdf'; known: pydocs"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"vocab_kind": "bpe"}, "vocab_kind is 'bpe'"),
        ({"held_out": 0.0}, "held_out=0 must be above 0"),
        ({"vocab_size": 10}, "vocab_size=10 is too small"),
        ({"input": ""}, "needs an input"),
        ({"source": "pydocs"}, "source=pydocs reads the installed packages, not"),
        ({"vocab": "nowhere/vocab.txt"}, "vocabulary nowhere/vocab.txt does not exist"),
        ({"source": "tfds", "input": "no_such_data_set/1"}, "no_such_data_set"),
    ],
)
def test_wrong_settings(input_file, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(text_config(input_file, **changes), tmp_path / "out", quiet=True)


def test_config_has_a_comment_for_every_field():
    lines = (ROOT / "configs" / "prepare.py").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    config.") and "ConfigDict()" not in lines[number - 1]:
            assert lines[number - 1].lstrip().startswith("#")
    with pytest.raises(UserError, match="unknown"):
        get_config("sauce=text")


def test_empty_input_and_empty_splits(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("", "\n \n\r\n\0\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="no text"):
            prepare(text_config(path), tmp_path / "out", quiet=True)
    path.write_text("One sentence.\nAnother one.\n")
    with pytest.raises(UserError, match=r"a single document, .* a blank line ends a document"):
        prepare(text_config(path), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_invalid_utf8(input_file, tmp_path):
    data = input_file.read_bytes()
    input_file.write_bytes(data + b"\n\nbad \xff byte.\nGood line of the same document.\n")
    line = data.count(b"\n") + 3
    message = rf"{input_file}:{line}: invalid UTF-8 \(byte {len(data) + 6}\);"
    with pytest.raises(UserError, match=message):
        prepare(text_config(input_file), tmp_path / "out", quiet=True)
    corpus = prepare(text_config(input_file, on_error="skip"), tmp_path / "out", quiet=True)
    assert corpus.info["notes"] == {"invalid_lines": 1}
    documents = [d for name in corpus.splits for d in sentences(corpus, name)]
    assert ["good line of the same document."] in documents


def test_windows_line_ends_and_bom_make_the_same_documents(input_file, tmp_path):
    corpora = []
    for i, data in enumerate(
        [input_file.read_bytes(), b"\xef\xbb\xbf" + input_file.read_bytes().replace(b"\n", b"\r\n")]
    ):
        path = tmp_path / f"{i}.txt"
        path.write_bytes(data)
        corpora.append(prepare(text_config(path), tmp_path / f"out{i}", quiet=True))
    for name in corpora[0].splits:
        assert sentences(corpora[0], name) == sentences(corpora[1], name)


def test_one_very_long_line(tmp_path):
    (tmp_path / "a.txt").write_text(random_text(200))
    rng = random.Random(3)
    words = "".join(rng.choices([w + " " for w in WORDS], k=1_200_000))  # 6 MB without a stop
    (tmp_path / "b.txt").write_text(words)
    corpus = prepare(text_config(tmp_path / "*.txt"), tmp_path / "out", quiet=True)
    notes = corpus.info["notes"]
    assert notes["long_lines"] >= 5 and notes["long_documents"] == 1
    assert notes["long_sentences"] >= 5
    assert max(len(s) for s in corpus.splits.values()) > 1000
    total = sum(counts["tokens"] for counts in corpus.info["splits"].values())
    assert total > 1_200_000


def test_sources_can_be_mixed(tmp_path):
    (tmp_path / "a.txt").write_text(random_text(100))
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "00").write_text('<doc title="T">\nT\n\nA wiki sentence here.\n</doc>\n')
    (tmp_path / "b.md").write_text("# Heading\n\nA book\nsentence here.\n")
    patterns = f"{tmp_path}/a.txt,wikiextractor:{tmp_path}/wiki,book:{tmp_path}/*.md"
    corpus = prepare(text_config(patterns), tmp_path / "out", quiet=True)
    documents = [d for name in corpus.splits for d in sentences(corpus, name)]
    assert ["a wiki sentence here."] in documents and [
        "heading",
        "a book sentence here.",
    ] in documents
    assert [s["source"] for s in corpus.info["sources"]] == ["text", "wikiextractor", "book"]


def test_given_vocabulary_and_unigram(input_file, tmp_path):
    trained = prepare(text_config(input_file, vocab_kind="unigram"), tmp_path / "one", quiet=True)
    assert trained.tokenizer.kind == "unigram"
    given = prepare(
        text_config(input_file, vocab=str(tmp_path / "one" / "tokenizer")),
        tmp_path / "two",
        quiet=True,
    )
    assert given.tokenizer.tokens == trained.tokenizer.tokens
    for name in given.splits:
        assert sentences(given, name) == sentences(trained, name)
    bad = tmp_path / "vocab.txt"
    bad.write_text("[PAD]\n[UNK]\n[CLS]\nthe\n")
    with pytest.raises(UserError, match=r"lacks the special token \[SEP\] or <sep>, \[MASK\]"):
        prepare(text_config(input_file, vocab=str(bad)), tmp_path / "three", quiet=True)


def test_lines_as_sentences(tmp_path):
    (tmp_path / "a.txt").write_text(random_text(100) + "\n\nOne. Two.\nThree. Four.\n")
    config = text_config(tmp_path / "a.txt", split_sentences=False)
    corpus = prepare(config, tmp_path / "out", quiet=True)
    documents = [d for name in corpus.splits for d in sentences(corpus, name)]
    assert ["one. two.", "three. four."] in documents


TFDS_SCRIPT = """
import pathlib, sys
import tensorflow_datasets as tfds
folder = pathlib.Path(sys.argv[1])
class Small(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = folder
    def _info(self):
        features = tfds.features.FeaturesDict({"body": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i, text in enumerate((folder / "a.txt").read_text().split("@@")):
            yield i, {"body": text}
builder = Small(data_dir=str(folder), file_format="array_record")
builder.download_and_prepare()
assert "tensorflow" not in sys.modules
"""


def test_tfds_data_set_without_tensorflow(tmp_path):
    (tmp_path / "a.txt").write_text(
        "@@".join(f"{random_text(1, i)} Number {i}." for i in range(120))
    )
    done = subprocess.run(
        [sys.executable, "-c", TFDS_SCRIPT, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "small").glob("*/")
    config = text_config(folder, source="tfds")
    with pytest.raises(UserError, match="has no feature 'text', but body: set"):
        prepare(config, tmp_path / "out", quiet=True)
    config.text_feature = "body"
    corpus = prepare(config, tmp_path / "out", quiet=True)
    assert sum(counts["documents"] for counts in corpus.info["splits"].values()) == 120
    assert "tensorflow" not in sys.modules


def test_docstrings_of_installed_packages(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    rng = random.Random(0)
    for i in range(40):
        text = " ".join(
            f"The number {rng.random():.6f} is what this part explains." for _ in range(12)
        )
        (tmp_path / "m" / f"m{i:02d}.py").write_text(f'"""{text}"""\n')
    files = [(f"stdlib/{p.name}", p) for p in sorted((tmp_path / "m").iterdir())]
    monkeypatch.setattr("bert_jax.preparing.pydocs.python_files", lambda: files)
    config = text_config("", source="pydocs")
    corpus = prepare(config, tmp_path / "out", quiet=True)
    assert sum(counts["documents"] for counts in corpus.info["splits"].values()) == 40
    assert str(tmp_path) not in json.dumps(corpus.info)
