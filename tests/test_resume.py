"""A run killed with SIGKILL at any moment, started again by the same command: bitwise the same.

Real processes, dropout on, two phases of different sequence lengths, several passes of the corpus,
logs and checkpoints that fall on different steps.
"""

import contextlib
import json
import os
import pty
import random
import re
import shutil
import signal
import termios
import threading
import time
from pathlib import Path

import jax
import numpy as np
import programs
import pytest
import tiny_corpus

from bert_jax.training.checkpoint import Checkpoints

STEPS, SWITCH, SAVE, LOG = 260, 130, 9, 7
SETTINGS = {
    "steps": STEPS,
    "short_phase__seq_length": 16,
    "short_phase__share": SWITCH / STEPS,
    "checkpoint_every": SAVE,
    "log_every": LOG,
    "eval_every": 50,
    "model__layers": 1,
}


def start(corpus: Path, workdir: Path) -> programs.Program:
    """Starts the run as on a terminal, whose bar tells the step; what it shows is in a log."""
    flags = tiny_corpus.flags(corpus, workdir, "size=tiny,phases=true", **SETTINGS)
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))  # of no columns, it would have no room for a bar
    words = ("-m", "bert_jax.main", *tiny_corpus.words(flags))
    process = programs.start(*words, stdout=os.devnull, stderr=os.ttyname(terminal))
    os.close(terminal)

    def keep() -> None:
        log = workdir.parent / f"{workdir.name}.log"
        with log.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # it is gone
            while shown := os.read(ours, 65536):
                file.write(shown)
        os.close(ours)

    threading.Thread(target=keep, daemon=True).start()
    return process


def finish(corpus: Path, workdir: Path) -> float:
    """Runs to the end; the seconds it took."""
    begin = time.monotonic()
    process = start(corpus, workdir)
    assert process.wait(timeout=300) == 0, log_of(workdir)[-3000:]
    return time.monotonic() - begin


def log_of(workdir: Path) -> str:
    path = workdir.parent / f"{workdir.name}.log"
    return path.read_text() if path.exists() else ""


def kill_when(process: programs.Program, moment) -> None:
    """SIGKILL as soon as `moment()`; fails when the process ends before."""
    deadline = time.monotonic() + 120
    while not moment():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def shown_step(text: str) -> int:
    """The step that the progress bar showed last."""
    return max((int(n) for n in re.findall(rf"(\d+)/{STEPS} \[", text)), default=0)


def committed(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def saving(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    return [e.name for e in folder.iterdir() if "tmp" in e.name] if folder.exists() else []


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without their times."""
    parsed = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "time"} for line in parsed]


def final_state(workdir: Path, trainer) -> dict[str, np.ndarray]:
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    step, state = checkpoints.restore(trainer.abstract_state)
    checkpoints.close()
    assert step == STEPS
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def trainer(corpus):
    """For the structure of the state only; nothing is compiled."""
    config = tiny_corpus.small_config("size=tiny,phases=true", **SETTINGS)
    made, phases = tiny_corpus.make_trainer(config, corpus)
    assert (phases[0].stop, phases[1].stop) == (SWITCH, STEPS)
    per_pass = max(next(p.batches(p.start, p.stop))["tokens"].shape[0] for p in phases)
    assert per_pass == config.batch_size
    passes = {int(b["instance"][0, 0]) for p in phases for b in p.batches(p.start, p.stop)}
    assert len(passes) > 4  # pass boundaries in both phases
    return made


@pytest.fixture(scope="module")
def uninterrupted(corpus_path, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    print(f"uninterrupted: {finish(corpus_path, workdir):.1f} s")
    return workdir


def assert_same(workdir: Path, expected: Path, trainer) -> None:
    ours, theirs = final_state(workdir, trainer), final_state(expected, trainer)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert metrics(workdir) == metrics(expected)


def test_sigkill_at_five_random_moments(corpus_path, uninterrupted, trainer, tmp_path):
    workdir = tmp_path / "run"
    rng = random.Random(1)
    # Before the first checkpoint; in each phase; in the middle of a save; near the end.
    targets = [
        ("step", rng.randrange(1, SAVE - 1)),
        ("step", rng.randrange(SAVE + 1, SWITCH)),
        ("save", rng.randrange(SWITCH - 2 * SAVE, SWITCH)),
        ("step", rng.randrange(SWITCH + 1, STEPS - 60)),
        ("save", rng.randrange(STEPS - 90, STEPS - 7 * SAVE)),  # a few saves may go unseen
    ]
    targets.sort(key=lambda target: target[1])
    kills = []
    for kind, target in targets:
        known = len(log_of(workdir))
        process = start(corpus_path, workdir)
        begin, delay = time.monotonic(), rng.random() * 0.05

        def moment(kind=kind, target=target, known=known, delay=delay) -> bool:
            new = log_of(workdir)[known:]
            if shown_step(new) < target:
                return False
            if kind == "save":
                return bool(saving(workdir))
            time.sleep(delay)
            return True

        kill_when(process, moment)
        step = shown_step(log_of(workdir)[known:])
        kills.append(
            f"after {time.monotonic() - begin:.2f} s at step {step} of {STEPS}; "
            f"committed {committed(workdir)}, being saved {saving(workdir)}"
        )
        if kind == "save":
            assert saving(workdir), "the save was over before the kill"
    # A kill in the middle of a write leaves half a line, whatever is after it on the disk.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 999, "spl')
    seconds = finish(corpus_path, workdir)
    print("\n".join(["SIGKILL", *kills, f"then to the end in {seconds:.1f} s"]))
    assert re.search(r"continuing .* from step \d+", log_of(workdir))
    assert_same(workdir, uninterrupted, trainer)
    assert not saving(workdir)


def test_a_finished_run_is_left_as_it_is(corpus_path, uninterrupted, trainer, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    before = {f: f.stat().st_mtime_ns for f in (workdir / "checkpoints").rglob("*") if f.is_file()}
    seconds = finish(corpus_path, workdir)
    print(f"second call on a finished run: {seconds:.1f} s")
    after = {f: f.stat().st_mtime_ns for f in (workdir / "checkpoints").rglob("*") if f.is_file()}
    assert after == before
    assert_same(workdir, uninterrupted, trainer)
    assert shown_step(log_of(workdir)) in (0, STEPS)


def test_sigkill_before_there_is_a_checkpoint(corpus_path, tmp_path):
    """While it starts, the work directory is there or not: the same command begins anew."""
    workdir = tmp_path / "run"
    process = start(corpus_path, workdir)
    kill_when(process, lambda: (workdir / "config.json").exists())
    assert not committed(workdir)
    process = start(corpus_path, workdir)
    kill_when(process, lambda: len(committed(workdir)) > 0)
    assert metrics(workdir)[0]["step"] == LOG
