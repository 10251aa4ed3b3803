"""Real processes that act as one: the data of one, stopped by a signal, killed, and moved.

Dropout is on. Each run is `launch/local_pod.sh`, with gloo between the processes.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_corpus

from bert_jax.common.errors import RESTART_CODE
from bert_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
GRACE_SECONDS = 30  # from the SIGTERM to the end by force, under Kubernetes and on a TPU VM
SETTINGS = {
    "steps": STEPS, "log_every": 1, "eval_every": 12, "checkpoint_every": 6,
    "keep_checkpoints": 9, "log_instances": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Where the launcher finds this Python, and the programs find the package."""
    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def command(corpus: Path, workdir: Path, **changes) -> list[str]:
    flags = tiny_corpus.flags(corpus, workdir, "size=tiny", **SETTINGS, **changes)
    return [sys.executable, "-m", "bert_jax.main", *tiny_corpus.words(flags)]


LAUNCHERS: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_survivors() -> Iterator[None]:
    """A test that fails halfway leaves no processes behind to slow down the rest."""
    yield
    for launcher in LAUNCHERS:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    LAUNCHERS.clear()


def start(environment, processes: int, devices: int, words: list[str], log: Path):
    """The launcher, with everything that is said going to `log`."""
    launcher = ["bash", "launch/local_pod.sh", str(processes), str(devices), "--", *words]
    LAUNCHERS.append(
        subprocess.Popen(
            launcher, cwd=ROOT, env=environment, stdout=log.open("a"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    )  # fmt: skip
    return LAUNCHERS[-1]


def finish(launcher: subprocess.Popen, log: Path) -> None:
    assert launcher.wait(timeout=400) == 0, log.read_text()[-3000:]


def children(launcher: subprocess.Popen) -> list[int]:
    """Process ids in the order of their start, that is of their index."""
    path = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return sorted(int(pid) for pid in path.read_text().split())


def wait_for_step(workdir: Path, step: int, launcher: subprocess.Popen) -> None:
    wait_until(lambda: any(line["step"] >= step for line in metrics(workdir)), launcher)


def wait_for_checkpoint(workdir: Path, step: int, launcher: subprocess.Popen) -> None:
    """A step's checkpoint is committed some time after the step."""
    wait_until((workdir / "checkpoints" / str(step)).exists, launcher)


def wait_until(condition: Callable[[], bool], launcher: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def metrics(workdir: Path) -> list[dict]:
    """The complete lines of metrics.jsonl, without their times."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def instances(workdir: Path, processes: int) -> dict[int, list]:
    """(pass, index) of the instances of each step, the processes' rows one after another."""
    parts = []
    for index in range(processes):
        lines = (workdir / f"instances-{index}.jsonl").read_text().splitlines()
        parts.append({line["step"]: line["instances"] for line in map(json.loads, lines)})
    assert all(part.keys() == parts[0].keys() for part in parts)
    return {step: [i for part in parts for i in part[step]] for step in parts[0]}


def final_bits(workdir: Path, corpus) -> dict[str, bytes]:
    config = tiny_corpus.small_config(**SETTINGS)
    trainer, _ = tiny_corpus.make_trainer(config, corpus)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    step, state = checkpoints.restore(trainer.abstract_state)
    checkpoints.close()
    assert step == STEPS
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.fixture(scope="module")
def undisturbed(environment, corpus_path, tmp_path_factory) -> Path:
    """Work directory of a run of 2 processes with 4 devices each."""
    folder = tmp_path_factory.mktemp("undisturbed")
    workdir, log = folder / "run", folder / "log"
    finish(start(environment, 2, 4, command(corpus_path, workdir), log), log)
    return workdir


def assert_same_losses(workdir: Path, expected: Path) -> None:
    ours, theirs = metrics(workdir), metrics(expected)
    assert [(x["step"], x["split"]) for x in ours] == [(x["step"], x["split"]) for x in theirs]
    for line, other in zip(ours, theirs, strict=True):
        for name in line.keys() - {"step", "split"}:
            scale = 1e-5 * max(1.0, abs(other[name]))
            assert line[name] == pytest.approx(other[name], abs=scale), (line["step"], name)


def test_two_processes_are_one(undisturbed, environment, corpus_path, tmp_path):
    """The order of the data bitwise, the losses to rounding; one process writes."""
    alone = {**environment, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    words = command(corpus_path, tmp_path / "run")
    subprocess.run(words, cwd=ROOT, env=alone, check=True, capture_output=True)
    assert_same_losses(undisturbed, tmp_path / "run")
    ours = instances(undisturbed, 2)
    assert sorted(ours) == list(range(STEPS))
    assert ours == instances(tmp_path / "run", 1)
    assert json.loads((undisturbed / "report.json").read_text())["devices"] == "8 x cpu"
    assert len(list((undisturbed / "events").iterdir())) == 1


def test_a_sigterm_to_one_stops_all_at_the_same_step(
    undisturbed, environment, corpus, corpus_path, tmp_path
):
    """All save and exit with the restart code; started again, the run ends with the same bits."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    launcher = start(environment, 2, 4, command(corpus_path, workdir), log)
    wait_for_step(workdir, 7, launcher)
    begin = time.monotonic()
    os.kill(children(launcher)[1], signal.SIGTERM)
    while "starting again" not in log.read_text():
        assert launcher.poll() is None
        time.sleep(0.05)
    seconds = time.monotonic() - begin
    finish(launcher, log)
    text = log.read_text()
    stops = re.findall(r"stopped and saved at step (\d+)", text)
    assert len(stops) == 2 and len(set(stops)) == 1, text[-3000:]
    assert 7 <= int(stops[0]) < STEPS
    assert text.count(f"ended with code {RESTART_CODE}") == 2, text[-3000:]
    assert f"from step {stops[0]}" in text
    assert seconds < GRACE_SECONDS
    print(f"\nSIGTERM: saved at step {stops[0]}, all gone after {seconds:.1f} s")
    assert metrics(workdir) == metrics(undisturbed)
    assert final_bits(workdir, corpus) == final_bits(undisturbed, corpus)
    starts = [json.loads(line) for line in (workdir / "goodput.jsonl").read_text().splitlines()]
    assert {(line["start"], line["from_step"]) for line in starts} == {(0, 0), (1, int(stops[0]))}


@pytest.mark.parametrize("killed", [1, 0])
def test_a_sigkill_of_one_stops_the_other(environment, corpus_path, tmp_path, killed):
    """With a line that says why, instead of hanging; and the run goes on from its checkpoint.

    Without process 0, at which they meet, JAX ends the other itself; the launcher says so.
    """
    workdir, log = tmp_path / "run", tmp_path / "log"
    launcher = start(environment, 2, 4, command(corpus_path, workdir), log)
    wait_for_step(workdir, 8, launcher)
    wait_for_checkpoint(workdir, 6, launcher)
    begin = time.monotonic()
    os.kill(children(launcher)[killed], signal.SIGKILL)
    while "starting again" not in log.read_text():
        assert launcher.poll() is None
        assert time.monotonic() - begin < 120, log.read_text()[-3000:]
        time.sleep(0.05)
    seconds = time.monotonic() - begin
    print(f"\nSIGKILL of process {killed} of two: the other gone after {seconds:.1f} s")
    text = log.read_text()
    signs = ("another process of this run is gone", "which it does when process 0 is gone")
    assert sum(map(text.count, signs)) == 1, text[-3000:]
    finish(launcher, log)
    [step] = set(re.findall(r"continuing .* from step (\d+)", log.read_text()))
    assert int(step) in (6, 12, 18)  # where a checkpoint was committed by then
    assert json.loads((workdir / "report.json").read_text())["steps"] == STEPS


def test_a_damaged_checkpoint_is_left_by_all(
    undisturbed, environment, corpus, corpus_path, tmp_path
):
    """Moved away once, kept, and all go on from the one before, to the same bits."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(undisturbed, workdir)
    (workdir / "report.json").unlink()
    state = workdir / "checkpoints" / "24" / "state"
    largest = max(filter(Path.is_file, state.rglob("*")), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    finish(start(environment, 2, 4, command(corpus_path, workdir), log), log)
    text = log.read_text()
    assert "checkpoint 24 is damaged" in text and "starting again" in text, text[-3000:]
    assert "from step 18" in text
    assert [path.name for path in (workdir / "damaged_checkpoints").iterdir()] == ["24"]
    assert final_bits(workdir, corpus) == final_bits(undisturbed, corpus)


@pytest.mark.parametrize(("processes", "devices"), [(4, 1), (1, 1)])
def test_a_run_goes_on_with_other_processes_and_devices(
    undisturbed, environment, corpus_path, tmp_path, processes, devices
):
    """Saved on 2 x 4: the same instances, and the losses of the run that stayed."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(undisturbed, workdir)
    for step in (12, 18, 24):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    for path in [*workdir.glob("instances-*"), workdir / "report.json"]:
        path.unlink()
    finish(start(environment, processes, devices, command(corpus_path, workdir), log), log)
    assert "from step 6" in log.read_text()
    assert_same_losses(workdir, undisturbed)
    expected = instances(undisturbed, 2)
    assert instances(workdir, processes) == {step: expected[step] for step in range(6, STEPS)}


def test_a_process_that_cannot_begin_takes_the_others_with_it(environment, corpus_path, tmp_path):
    """A mistake of everybody's: one line each, exit code 2, no restart, nothing written."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    words = command(corpus_path, workdir, batch_size=13)
    launcher = start(environment, 2, 1, words, log)
    assert launcher.wait(timeout=120) == 2
    assert log.read_text().count("error: batch_size=13 must divide") >= 1
    assert "starting again" not in log.read_text() and not workdir.exists()


EVALUATING = """
import dataclasses, sys
sys.path.insert(0, "tests")
import tiny_corpus
from bert_jax.training import distributed, loop, sharding
from bert_jax.data.corpus import open_corpus

distributed.initialize()
config = tiny_corpus.small_config(batch_size=8, eval_instances=64)
mesh = sharding.make_mesh(config.mesh)
trainer, [phase] = tiny_corpus.make_trainer(config, open_corpus(sys.argv[1]), mesh)
params, few = trainer.init()["params"], phase.evaluation()
for copies in (1, 16, 16, 16):
    many = dataclasses.replace(phase, evaluation=lambda: copies * few)
    print("means", train.held_out_means(trainer, params, many), flush=True)
"""


def test_evaluations_of_many_batches_end_on_a_busy_machine(environment, corpus_path, tmp_path):
    """With hundreds of computations in flight, processes wait for one another for ever."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        words = [sys.executable, "-c", EVALUATING, str(corpus_path)]
        finish(start(environment, 2, 2, words, tmp_path / "log"), tmp_path / "log")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    said = re.findall(r"means \{'mlm_accuracy.*\}", (tmp_path / "log").read_text())
    assert len(said) == 8 and len(set(said)) <= 2, said  # few or many, the mean is to rounding
