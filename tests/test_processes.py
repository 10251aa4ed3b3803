"""Real processes that act as one: the data of one, stopped by a signal, killed, and moved.

Dropout is on. Each run is `launch/local_pod.sh`, with gloo between the processes.
"""

import contextlib
import dataclasses
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

from bert_jax import main
from bert_jax.common.errors import RESTART_CODE
from bert_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
STEPS = 36
GRACE_SECONDS = 30  # from the SIGTERM to the end by force, under Kubernetes and on a TPU VM
SETTINGS = {
    "steps": STEPS, "log_every": 1, "eval_every": 18, "checkpoint_every": 6,
    "keep_checkpoints": 9, "log_instances": True, "model__layers": 1,
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


@pytest.fixture(autouse=True, scope="module")
def no_survivors() -> Iterator[None]:
    """What fails halfway leaves no processes behind to slow down the rest."""
    yield
    end_all()


def end_all() -> None:
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


def wait_for_checkpoint(workdir: Path, after: int, launcher: subprocess.Popen) -> None:
    """A step's checkpoint is committed some time after the step."""
    wait_until(lambda: committed(workdir)[-1] > after, launcher)


def wait_until(condition: Callable[[], bool], launcher: subprocess.Popen) -> float:
    """Returns the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert launcher.poll() is None and time.monotonic() < begin + 300
        time.sleep(0.05)
    return time.monotonic() - begin


def committed(workdir: Path) -> list[int]:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


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


@pytest.fixture(scope="module")
def alone(corpus_path) -> Callable[[Path], None]:
    """Runs in a work directory in this process, on one device; all such runs are compiled once."""

    def run(workdir: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main.sharding, "make_mesh", lambda _: tiny_corpus.one_device())
            patch.setattr(main, "build_trainer", build)
            main.pretrain(tiny_corpus.small_config(corpus=str(corpus_path), **SETTINGS), workdir)

    known, build_trainer = [], main.build_trainer

    def build(*args, **settings):
        known[:] = known or [build_trainer(*args, **settings)]
        return known[0]

    return run


def test_two_processes_are_one(undisturbed, alone, tmp_path):
    """The order of the data bitwise, the losses to rounding; one process writes."""
    alone(tmp_path / "run")
    assert_same_losses(undisturbed, tmp_path / "run")
    ours = instances(undisturbed, 2)
    assert sorted(ours) == list(range(STEPS))
    assert ours == instances(tmp_path / "run", 1)
    assert json.loads((undisturbed / "report.json").read_text())["devices"] == "8 x cpu"
    assert len(list((undisturbed / "events").iterdir())) == 1


@dataclasses.dataclass
class Life:
    """What happened to a run of 2 processes with 4 devices each, in this order."""

    workdir: Path
    stopped_after: float  # seconds, from a SIGTERM to process 1 to the end of both
    gone_after: dict[int, float]  # seconds, from the SIGKILL of this process to the other's end
    damaged: int  # the newest checkpoint, cut off when process 1 was killed and both were gone
    starts: list[str]  # what was said in each start: SIGTERM, SIGKILL of 1, damage, SIGKILL of 0

    def continued(self) -> list[int]:
        """Steps that the starts after the first went on from."""
        return [int(n) for n in re.findall(r"continuing .* from step (\d+)", "".join(self.starts))]


@pytest.fixture(scope="module")
def life(environment, corpus_path, tmp_path_factory) -> Life:
    """One run that all of it happens to, as a start takes longer than its steps."""
    folder = tmp_path_factory.mktemp("life")
    workdir, log = folder / "run", folder / "log"
    launcher = start(environment, 2, 4, command(corpus_path, workdir), log)
    try:
        return live(launcher, workdir, log)
    finally:
        end_all()


def live(launcher: subprocess.Popen, workdir: Path, log: Path) -> Life:
    again = "local_pod: starting again\n"

    def wait_for_start(number: int) -> float:
        return wait_until(lambda: log.read_text().count(again) >= number, launcher)

    def newest_step() -> int:
        return metrics(workdir)[-1]["step"]

    wait_for_step(workdir, 7, launcher)
    os.kill(children(launcher)[1], signal.SIGTERM)
    stopped_after = wait_for_start(1)
    stop = newest_step()

    gone_after = {}
    wait_for_step(workdir, stop + 2, launcher)
    wait_for_checkpoint(workdir, stop, launcher)
    both = children(launcher)
    os.kill(launcher.pid, signal.SIGSTOP)  # so it does not start them again before the damage
    os.kill(both[1], signal.SIGKILL)
    gone_after[1] = wait_until(lambda: all(map(is_gone, both)), launcher)
    damaged = committed(workdir)[-1]
    state = workdir / "checkpoints" / str(damaged) / "state"
    largest = max(filter(Path.is_file, state.rglob("*")), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    os.kill(launcher.pid, signal.SIGCONT)

    wait_for_start(3)
    assert newest_step() < STEPS
    wait_until(lambda: re.search("continuing ", log.read_text().split(again)[-1]), launcher)
    wait_for_step(workdir, damaged + 2, launcher)
    os.kill(children(launcher)[0], signal.SIGKILL)
    gone_after[0] = wait_for_start(4)
    finish(launcher, log)
    print(f"\nSIGTERM: all gone after {stopped_after:.1f} s; SIGKILL of each: {gone_after}")
    return Life(workdir, stopped_after, gone_after, damaged, log.read_text().split(again))


def test_a_sigterm_to_one_stops_all_at_the_same_step(life):
    """All save and exit with the restart code, within the grace; and go on from there."""
    text = life.starts[0]
    stops = re.findall(r"stopped and saved at step (\d+)", text)
    assert len(stops) == 2 and len(set(stops)) == 1, text[-3000:]
    assert 7 <= int(stops[0]) < STEPS
    assert text.count(f"ended with code {RESTART_CODE}") == 2, text[-3000:]
    assert life.continued()[0] == int(stops[0])
    assert life.stopped_after < GRACE_SECONDS


@pytest.mark.parametrize(("killed", "index"), [(1, 1), (0, 3)])
def test_a_sigkill_of_one_stops_the_other(life, killed, index):
    """With a line that says why, instead of hanging; and the run goes on from its checkpoint.

    Without process 0, at which they meet, JAX ends the other itself; the launcher says so.
    """
    text = life.starts[index]
    signs = ("another process of this run is gone", "which it does when process 0 is gone")
    assert sum(map(text.count, signs)) == 1, text[-3000:]
    assert life.gone_after[killed] < 120
    if killed == 0:
        assert life.continued()[2] in committed(life.workdir)


def test_a_damaged_checkpoint_is_left_by_all(life):
    """Moved away once, kept, and all go on from the one before."""
    text = life.starts[2]
    assert f"checkpoint {life.damaged} is damaged" in text, text[-3000:]
    assert "continuing" not in text
    before = [step for step in committed(life.workdir) if step < life.damaged]
    assert life.continued()[1] == before[-1]
    folder = life.workdir / "damaged_checkpoints"
    assert [path.name for path in folder.iterdir()] == [str(life.damaged)]


def test_after_all_of_it_the_run_has_the_same_bits(undisturbed, corpus, life):
    assert len(life.starts) == 5
    assert metrics(life.workdir) == metrics(undisturbed)
    assert final_bits(life.workdir, corpus) == final_bits(undisturbed, corpus)
    assert json.loads((life.workdir / "report.json").read_text())["steps"] == STEPS
    lines = [json.loads(x) for x in (life.workdir / "goodput.jsonl").read_text().splitlines()]
    starts = {(line["start"], line["from_step"]) for line in lines}
    assert starts == set(enumerate([0, *life.continued()]))


@pytest.mark.parametrize("processes", [4, 1])
def test_a_run_goes_on_with_other_processes_and_devices(
    undisturbed, environment, corpus_path, alone, tmp_path, processes
):
    """Saved on 2 x 4: the same instances, and the losses of the run that stayed."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(undisturbed, workdir)
    for step in committed(workdir)[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    for path in [*workdir.glob("instances-*"), workdir / "report.json"]:
        path.unlink()
    if processes == 1:
        alone(workdir)
    else:
        finish(start(environment, processes, 1, command(corpus_path, workdir), log), log)
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
import dataclasses, os, sys, time
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
    means = loop.held_out_means(trainer, params, many)
    print(f"means {means}\\n", end="", flush=True)  # one piece, as two processes write
    while not os.path.exists(sys.argv[2]):  # compiled; the machine is made busy
        time.sleep(0.05)
"""


def test_evaluations_of_many_batches_end_on_a_busy_machine(environment, corpus_path, tmp_path):
    """With hundreds of computations in flight, processes wait for one another for ever."""
    log, is_busy = tmp_path / "log", tmp_path / "busy"
    words = [sys.executable, "-c", EVALUATING, str(corpus_path), str(is_busy)]
    launcher = start(environment, 2, 2, words, log)
    wait_until(lambda: log.read_text().count("means {") == 2, launcher)
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        is_busy.touch()
        finish(launcher, log)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    said = re.findall(r"means \{'mlm_accuracy.*?\}", log.read_text())
    assert len(said) == 8 and len(set(said)) <= 2, said  # few or many, the mean is to rounding
