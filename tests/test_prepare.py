"""prepare: the same corpus however it is made, and a clear answer to every bad input."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data import units
from bert_jax.data.build import prepare
from bert_jax.data.corpus import open_corpus
from bert_jax.errors import UserError
from configs.prepare import get_config

ROOT = Path(__file__).parents[1]
WORDS = [
    *("the", "a", "cat", "dog", "house", "tree", "runs", "sleeps", "under", "over", "green", "old"),
    *("and", "then", "sea", "ship", "far", "quick", "brown", "fox", "jumps", "lazy", "very", "box"),
]


def _sentence(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 15))).capitalize() + "."


def _text(documents=300, seed=0):
    rng = random.Random(seed)
    return "\n".join(
        "".join(_sentence(rng) + rng.choice(" \n") for _ in range(rng.randint(3, 20))) + "\n"
        for _ in range(documents)
    )


@pytest.fixture
def input_file(tmp_path):
    path = tmp_path / "in" / "a.txt"
    path.parent.mkdir()
    path.write_text(_text())
    return path


def _config(path, **changes):
    config = get_config("source=text")
    config.input, config.vocab_size, config.workers, config.held_out = str(path), 150, 1, 0.1
    for name, value in changes.items():
        config[name] = value
    return config


def _digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _sentences(corpus, name):
    """Sentences of a split by document, as text."""
    split = corpus.splits[name]
    numbers = np.arange(len(split))
    texts = [corpus.tokenizer.decode(ids.tolist()) for ids in split.tokens(numbers, numbers + 1)]
    return [
        texts[begin:end]
        for begin, end in zip([0, *split.document_ends[:-1]], split.document_ends, strict=True)
    ]


def test_all_the_text_is_there_in_order(input_file, tmp_path):
    corpus = prepare(_config(input_file), tmp_path / "out", quiet=True)
    documents = [block.split() for block in input_file.read_text().split("\n\n") if block.split()]
    expected = [" ".join(words).lower() for words in documents]
    found = {name: [" ".join(d) for d in _sentences(corpus, name)] for name in corpus.splits}
    assert [d for d in expected if d in set(found["train"])] == found["train"]
    assert sorted(expected) == sorted(found["train"] + found["held_out"])
    assert 10 < len(found["held_out"]) < 60
    info = corpus.info
    assert info["sources"][0]["sha256"] == hashlib.sha256(input_file.read_bytes()).hexdigest()
    assert info["sources"][0]["bytes"] == input_file.stat().st_size
    assert info["tokenizer_sha256"] == _digests(tmp_path / "out")["tokenizer/tokenizer.json"]
    assert info["splits"]["train"]["tokens"] == corpus.token_counts.sum()
    assert "workers" not in info["settings"]


def test_duplicates_do_not_straddle_the_splits(tmp_path):
    document = "This very document. Is here twice.\n\n"
    (tmp_path / "a.txt").write_text(
        _text(60) + "\n\n" + document * 2 + _text(60, seed=1) + document
    )
    corpus = prepare(_config(tmp_path / "*.txt"), tmp_path / "out", quiet=True)
    copies = [
        name
        for name in corpus.splits
        for d in _sentences(corpus, name)
        if "this very document." in d
    ]
    assert len(copies) == 3 and len(set(copies)) == 1


def test_special_tokens_in_the_text_are_text(tmp_path):
    (tmp_path / "a.txt").write_text(_text(100) + "\n\nNow [SEP] and [MASK] and [CLS] come here.")
    corpus = prepare(_config(tmp_path / "a.txt"), tmp_path / "out", quiet=True)
    special = corpus.tokenizer.special_ids
    assert corpus.token_counts[[i for i in special if i != corpus.tokenizer.unk_id]].sum() == 0


def test_same_bytes_with_1_and_8_workers(input_file, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "SMALLEST_UNIT", 10_000)
    for workers in (1, 8):
        config = _config(input_file, workers=workers)
        prepare(config, tmp_path / f"out{workers}", quiet=True)
    one = _digests(tmp_path / "out1")
    assert one == _digests(tmp_path / "out8")
    assert sum("corpus-train.array_record" in name for name in one) > 5
    assert not any(".partial" in name for name in one)


DRIVER = (
    "from bert_jax.data import units; units.SMALLEST_UNIT = 10_000\n"
    "from bert_jax import errors, prepare\n"
    "errors.run(prepare.main)\n"
)


def _command(config, out, driver=DRIVER):
    overrides = [f"--config.{name}={config[name]}" for name in ("input", "vocab_size", "held_out")]
    return [
        sys.executable, "-c", driver, f"--config={ROOT}/configs/prepare.py:source=text",
        *overrides, "--config.workers=2", f"--out={out}",
    ]  # fmt: skip


def test_killed_at_any_moment(input_file, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    config = _config(input_file)
    begin = time.monotonic()
    subprocess.run(
        _command(config, tmp_path / "whole"), check=True, capture_output=True, env=environment
    )
    whole = time.monotonic() - begin
    out = tmp_path / "killed"
    rng = random.Random(os.getpid())
    kills = 0
    for i in range(5):
        moment = whole * (0.3 + 0.14 * i + 0.14 * rng.random())
        process = subprocess.Popen(
            _command(config, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        if out.exists() and not (out / "corpus.json").exists():
            with pytest.raises(UserError, match="unfinished"):
                open_corpus(out)
    done = subprocess.run(_command(config, out), capture_output=True, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    assert kills >= 1
    assert _digests(out) == _digests(tmp_path / "whole")
    again = subprocess.run(_command(config, out), capture_output=True, env=environment, text=True)
    assert again.returncode == 0 and "finished already" in again.stdout


def test_the_command_says_errors_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bert_jax.prepare", "--config=configs/prepare.py:source=text",
         f"--config.input={tmp_path}/nothing-*.txt", f"--out={tmp_path}/out"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: input pattern ") and "matches no file" in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_worker_that_dies(input_file, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "SMALLEST_UNIT", 10_000)

    def kill():
        while not any((tmp_path / "out" / ".partial").glob("sample-*")):
            time.sleep(0.01)
        while not told.wait(0.01):  # between two pools there may be none
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    told = threading.Event()
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(UserError, match=r"a worker process died.*run the same command again"):
        prepare(_config(input_file), tmp_path / "out", quiet=True)
    told.set()
    thread.join()
    prepare(_config(input_file), tmp_path / "out", quiet=True)
    prepare(_config(input_file), tmp_path / "other", quiet=True)
    assert _digests(tmp_path / "out") == _digests(tmp_path / "other")


def test_other_corpus_and_foreign_files(input_file, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(_config(input_file), out, quiet=True)
    before = _digests(out)
    prepare(_config(input_file, workers=2), out, quiet=True)
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds another corpus \(different held_out\)"):
        prepare(_config(input_file, held_out=0.2), out, quiet=True)
    input_file.write_text(_text(seed=5))
    with pytest.raises(UserError, match=r"holds another corpus \(different sources\)"):
        prepare(_config(input_file), out, quiet=True)
    with pytest.raises(UserError, match="holds other files"):
        prepare(_config(input_file), input_file.parent, quiet=True)
    with pytest.raises(UserError, match="is a file"):
        prepare(_config(input_file), input_file, quiet=True)
    assert _digests(out) == before
    assert input_file.parent.joinpath("a.txt").exists()


def test_two_at_once(input_file, tmp_path):
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    with open(tmp_path / "out" / ".partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another bert_jax\.prepare is at work on"):
            prepare(_config(input_file), tmp_path / "out", quiet=True)
    prepare(_config(input_file), tmp_path / "out", quiet=True)


def test_an_unfinished_run_with_other_settings_is_started_over(input_file, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bert_jax.data.build.assemble", stop)
        prepare(_config(input_file), tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match="unfinished"):
        open_corpus(tmp_path / "out")
    prepare(_config(input_file, vocab_size=120), tmp_path / "out", quiet=True)
    prepare(_config(input_file, vocab_size=120), tmp_path / "other", quiet=True)
    assert _digests(tmp_path / "out") == _digests(tmp_path / "other")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "pdf"}, "source is 'pdf'; it is one of pydocs"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"vocab_kind": "bpe"}, "vocab_kind is 'bpe'"),
        ({"held_out": 0.0}, "held_out=0.0 is not a share"),
        ({"vocab_size": 10}, "vocab_size=10 is too small"),
        ({"input": ""}, "needs an input"),
        ({"vocab": "nowhere/vocab.txt"}, "vocabulary nowhere/vocab.txt does not exist"),
        ({"source": "tfds", "input": "no_such_data_set/1"}, "no_such_data_set"),
    ],
)
def test_wrong_settings(input_file, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(_config(input_file, **changes), tmp_path / "out", quiet=True)


def test_empty_input_and_empty_splits(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("", "\n \n\r\n\0\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="no text"):
            prepare(_config(path), tmp_path / "out", quiet=True)
    path.write_text(_text(20))
    message = (
        r"the held-out split is empty: \d+ documents are too few for held_out=0.0001; raise it"
    )
    with pytest.raises(UserError, match=message):
        prepare(_config(path, held_out=0.0001), tmp_path / "out", quiet=True)
    prepare(_config(path, held_out=0.4), tmp_path / "out", quiet=True)  # nothing is in the way


def test_invalid_utf8(input_file, tmp_path):
    data = input_file.read_bytes()
    input_file.write_bytes(data + b"\n\nbad \xff byte.\nGood line of the same document.\n")
    message = f"{input_file}: invalid UTF-8 at byte {len(data) + 6};"
    with pytest.raises(UserError, match=message):
        prepare(_config(input_file), tmp_path / "out", quiet=True)
    corpus = prepare(_config(input_file, on_error="skip"), tmp_path / "out", quiet=True)
    assert corpus.info["notes"] == {"invalid_lines": 1}
    documents = [d for name in corpus.splits for d in _sentences(corpus, name)]
    assert ["good line of the same document."] in documents


def test_windows_line_ends_and_bom_make_the_same_documents(input_file, tmp_path):
    corpora = []
    for i, data in enumerate(
        [input_file.read_bytes(), b"\xef\xbb\xbf" + input_file.read_bytes().replace(b"\n", b"\r\n")]
    ):
        path = tmp_path / f"{i}.txt"
        path.write_bytes(data)
        corpora.append(prepare(_config(path), tmp_path / f"out{i}", quiet=True))
    for name in corpora[0].splits:
        assert _sentences(corpora[0], name) == _sentences(corpora[1], name)


def test_one_very_long_line(tmp_path):
    (tmp_path / "a.txt").write_text(_text(200))
    rng = random.Random(3)
    words = "".join(rng.choices([w + " " for w in WORDS], k=1_200_000))  # 6 MB without a stop
    (tmp_path / "b.txt").write_text(words)
    corpus = prepare(_config(tmp_path / "*.txt"), tmp_path / "out", quiet=True)
    notes = corpus.info["notes"]
    assert notes["long_lines"] >= 5 and notes["long_documents"] == 1
    assert notes["long_sentences"] >= 5
    assert max(len(s) for s in corpus.splits.values()) > 1000
    total = sum(counts["tokens"] for counts in corpus.info["splits"].values())
    assert total > 1_200_000


def test_sources_can_be_mixed(tmp_path):
    (tmp_path / "a.txt").write_text(_text(100))
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "00").write_text('<doc title="T">\nT\n\nA wiki sentence here.\n</doc>\n')
    (tmp_path / "b.md").write_text("# Heading\n\nA book\nsentence here.\n")
    patterns = f"{tmp_path}/a.txt,wikiextractor:{tmp_path}/wiki,book:{tmp_path}/*.md"
    corpus = prepare(_config(patterns), tmp_path / "out", quiet=True)
    documents = [d for name in corpus.splits for d in _sentences(corpus, name)]
    assert ["a wiki sentence here."] in documents and [
        "heading",
        "a book sentence here.",
    ] in documents
    assert [s["source"] for s in corpus.info["sources"]] == ["text", "wikiextractor", "book"]


def test_given_vocabulary_and_unigram(input_file, tmp_path):
    trained = prepare(_config(input_file, vocab_kind="unigram"), tmp_path / "one", quiet=True)
    assert trained.tokenizer.kind == "unigram"
    given = prepare(
        _config(input_file, vocab=str(tmp_path / "one" / "tokenizer")), tmp_path / "two", quiet=True
    )
    assert given.tokenizer.tokens == trained.tokenizer.tokens
    for name in given.splits:
        assert _sentences(given, name) == _sentences(trained, name)
    bad = tmp_path / "vocab.txt"
    bad.write_text("[PAD]\n[UNK]\n[CLS]\nthe\n")
    with pytest.raises(UserError, match=r"lacks the special token \[SEP\] or <sep>, \[MASK\]"):
        prepare(_config(input_file, vocab=str(bad)), tmp_path / "three", quiet=True)


def test_lines_as_sentences(tmp_path):
    (tmp_path / "a.txt").write_text(_text(100) + "\n\nOne. Two.\nThree. Four.\n")
    config = _config(tmp_path / "a.txt", split_sentences=False)
    corpus = prepare(config, tmp_path / "out", quiet=True)
    documents = [d for name in corpus.splits for d in _sentences(corpus, name)]
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
    (tmp_path / "a.txt").write_text("@@".join(f"{_text(1, i)} Number {i}." for i in range(120)))
    done = subprocess.run(
        [sys.executable, "-c", TFDS_SCRIPT, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "small").glob("*/")
    config = _config(folder, source="tfds")
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
    monkeypatch.setattr("bert_jax.data.pydocs.python_files", lambda: files)
    config = _config("", source="pydocs")
    corpus = prepare(config, tmp_path / "out", quiet=True)
    assert sum(counts["documents"] for counts in corpus.info["splits"].values()) == 40
    assert str(tmp_path) not in json.dumps(corpus.info)


def test_config_has_a_comment_for_every_field():
    lines = (ROOT / "configs" / "prepare.py").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("    config.") and "ConfigDict()" not in lines[number - 1]:
            assert lines[number - 1].lstrip().startswith("#")
    with pytest.raises(UserError, match="unknown"):
        get_config("sauce=text")
