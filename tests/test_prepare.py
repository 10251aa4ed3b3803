"""prepare: the same corpus however it is made, and however often it was stopped."""

import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from random_text import digests, random_text, sentences, text_config

from bert_jax.common.errors import UserError
from bert_jax.data.corpus import open_corpus
from bert_jax.preparing import units
from bert_jax.preparing.build import prepare

ROOT = Path(__file__).parents[1]


def test_all_the_text_is_there_in_order(input_file, tmp_path):
    corpus = prepare(text_config(input_file), tmp_path / "out", quiet=True)
    documents = [block.split() for block in input_file.read_text().split("\n\n") if block.split()]
    expected = [" ".join(words).lower() for words in documents]
    found = {name: [" ".join(d) for d in sentences(corpus, name)] for name in corpus.splits}
    assert [d for d in expected if d in set(found["train"])] == found["train"]
    assert sorted(expected) == sorted(found["train"] + found["held_out"])
    assert 10 < len(found["held_out"]) < 60
    info = corpus.info
    assert info["sources"][0]["sha256"] == hashlib.sha256(input_file.read_bytes()).hexdigest()
    assert info["sources"][0]["bytes"] == input_file.stat().st_size
    assert info["tokenizer_sha256"] == digests(tmp_path / "out")["tokenizer/tokenizer.json"]
    assert info["splits"]["train"]["tokens"] == corpus.token_counts.sum()
    assert "workers" not in info["settings"]


def test_another_tokenizer_than_that_of_the_corpus_is_refused(input_file, tmp_path):
    corpus = prepare(text_config(input_file), tmp_path / "out", quiet=True)
    assert open_corpus(corpus.path).tokenizer.vocab_size == corpus.info["vocab_size"]
    file = corpus.path / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the one that made the corpus"):
        _ = open_corpus(corpus.path).tokenizer


def test_duplicates_do_not_straddle_the_splits(tmp_path):
    document = "This very document. Is here twice.\n\n"
    (tmp_path / "a.txt").write_text(
        random_text(60) + "\n\n" + document * 2 + random_text(60, seed=1) + document
    )
    corpus = prepare(text_config(tmp_path / "*.txt"), tmp_path / "out", quiet=True)
    copies = [
        name
        for name in corpus.splits
        for d in sentences(corpus, name)
        if "this very document." in d
    ]
    assert len(copies) == 3 and len(set(copies)) == 1


def test_special_tokens_in_the_text_are_text(tmp_path):
    (tmp_path / "a.txt").write_text(
        random_text(100) + "\n\nNow [SEP] and [MASK] and [CLS] come here."
    )
    corpus = prepare(text_config(tmp_path / "a.txt"), tmp_path / "out", quiet=True)
    special = corpus.tokenizer.special_ids
    assert corpus.token_counts[[i for i in special if i != corpus.tokenizer.unk_id]].sum() == 0


def test_on_systems_that_do_not_tell_which_cores_are_ours(input_file, tmp_path, monkeypatch):
    for name in ("told", "not_told"):
        prepare(text_config(input_file, workers=0), tmp_path / name, quiet=True)
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert digests(tmp_path / "told") == digests(tmp_path / "not_told")


def test_same_bytes_with_1_and_8_workers(input_file, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "SMALLEST_UNIT", 10_000)
    for workers in (1, 8):
        config = text_config(input_file, workers=workers)
        prepare(config, tmp_path / f"out{workers}", quiet=True)
    one = digests(tmp_path / "out1")
    assert one == digests(tmp_path / "out8")
    assert sum("corpus-train.array_record" in name for name in one) > 5
    assert not any(".partial" in name for name in one)


DRIVER = (
    "from bert_jax.preparing import units; units.SMALLEST_UNIT = 10_000\n"
    "from bert_jax.common import entry; from bert_jax import prepare\n"
    "entry.run(prepare.main)\n"
)


def _command(config, out, driver=DRIVER):
    overrides = [f"--config.{name}={config[name]}" for name in ("input", "vocab_size", "held_out")]
    return [
        sys.executable, "-c", driver, f"--config={ROOT}/configs/prepare.py:source=text",
        *overrides, "--config.workers=2", f"--out={out}",
    ]  # fmt: skip


def test_killed_at_any_moment(input_file, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    config = text_config(input_file)
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
    assert digests(out) == digests(tmp_path / "whole")
    again = subprocess.run(_command(config, out), capture_output=True, env=environment, text=True)
    assert again.returncode == 0 and "finished already" in again.stdout


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
        prepare(text_config(input_file), tmp_path / "out", quiet=True)
    told.set()
    thread.join()
    prepare(text_config(input_file), tmp_path / "out", quiet=True)
    prepare(text_config(input_file), tmp_path / "other", quiet=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "other")


def test_other_corpus_and_foreign_files(input_file, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(text_config(input_file), out, quiet=True)
    before = digests(out)
    prepare(text_config(input_file, workers=2), out, quiet=True)
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds another corpus \(different held_out\)"):
        prepare(text_config(input_file, held_out=0.2), out, quiet=True)
    input_file.write_text(random_text(seed=5))
    with pytest.raises(UserError, match=r"holds another corpus \(different sources\)"):
        prepare(text_config(input_file), out, quiet=True)
    with pytest.raises(UserError, match="holds other files"):
        prepare(text_config(input_file), input_file.parent, quiet=True)
    with pytest.raises(UserError, match="is a file"):
        prepare(text_config(input_file), input_file, quiet=True)
    assert digests(out) == before
    assert input_file.parent.joinpath("a.txt").exists()


def test_two_at_once(input_file, tmp_path):
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    with open(tmp_path / "out" / ".partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another bert_jax\.prepare is at work on"):
            prepare(text_config(input_file), tmp_path / "out", quiet=True)
    prepare(text_config(input_file), tmp_path / "out", quiet=True)


def test_an_unfinished_run_with_other_settings_is_started_over(input_file, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bert_jax.preparing.build.assemble", stop)
        prepare(text_config(input_file), tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match="unfinished"):
        open_corpus(tmp_path / "out")
    prepare(text_config(input_file, vocab_size=120), tmp_path / "out", quiet=True)
    prepare(text_config(input_file, vocab_size=120), tmp_path / "other", quiet=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "other")
