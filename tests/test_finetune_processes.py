"""Fine-tuning on many devices, as several processes, and killed: one run, whatever it runs on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs
import pytest
import tiny_corpus
import tiny_tasks
from tiny_tasks import bits

from bert_jax import finetune
from bert_jax.training.checkpoint import load_params
from configs import finetune as config_file

ROOT = Path(__file__).resolve().parents[1]
# Two passes with an evaluation after each; all texts are of one width, so one step is compiled.
SETTINGS = {"epochs": 2.0, "max_length": 16, "log_every": 1}


def metrics(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def command(trained: Path, data: Path, workdir: Path) -> list[str]:
    """The program's words after `python`; its flags are those of `tiny_tasks.run`."""
    values = {**tiny_tasks.SMALL, **SETTINGS, "init_from": trained, "data": data / "classification"}
    config = f"{Path(config_file.__file__).resolve()}:task=custom,family=classification"
    flags = [f"--config={config}", f"--workdir={workdir}"]
    flags += [f"--config.{name}={value}" for name, value in values.items()]
    return ["-m", "bert_jax.finetune", *flags]


@pytest.fixture(scope="module")
def undisturbed(trained, data, tmp_path_factory) -> Path:
    """Work directory of the run on one device of this process."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.sharding, "make_mesh", lambda _: tiny_corpus.one_device())
        tiny_tasks.run(trained, data, workdir, **SETTINGS)
    return workdir


def assert_same_run(workdir: Path, expected: Path) -> None:
    """The same batches and masks: losses are equal to rounding, which grows with the steps."""
    ours, theirs = metrics(workdir), metrics(expected)
    assert [(x["step"], x["split"]) for x in ours] == [(x["step"], x["split"]) for x in theirs]
    for line, other in zip(ours, theirs, strict=True):
        if line["split"] == "train":
            assert line["loss"] == pytest.approx(other["loss"], abs=2e-6 * line["step"])
        else:
            assert line["accuracy"] == pytest.approx(other["accuracy"], abs=0.02)


def test_eight_devices_fine_tune_as_one(trained, data, undisturbed, tmp_path):
    tiny_tasks.run(
        trained, data, tmp_path / "run", **SETTINGS,
        mesh__data=2, mesh__fsdp=2, mesh__tensor=2,
    )  # fmt: skip
    assert_same_run(tmp_path / "run", undisturbed)


def test_two_processes_fine_tune_as_one(trained, data, undisturbed, tmp_path):
    """One of them writes; each evaluates rows of its own, and the scores are of all."""
    workdir = tmp_path / "run"
    words = [sys.executable, *command(trained, data, workdir)]
    launcher = ["bash", "launch/local_pod.sh", "2", "2", "--", *words]
    with subprocess.Popen(
        launcher, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said = process.communicate(timeout=400)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):  # its processes, where they hang
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-3000:]
    assert_same_run(workdir, undisturbed)
    ours, theirs = (json.loads((d / "results.json").read_text()) for d in (workdir, undisturbed))
    assert ours["devices"] == "4 x cpu"
    assert ours["baselines"] == theirs["baselines"]
    assert len(list((workdir / "events").iterdir())) == 1


def test_a_fine_tuning_killed_by_sigkill_ends_with_the_same_bits(
    trained, data, undisturbed, tmp_path
):
    """Killed after its first checkpoint, and gone on with by another process: this one."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    log.touch()
    process = programs.start(*command(trained, data, workdir), stdout=os.devnull, stderr=log)
    deadline = time.monotonic() + 300
    while not any(line["step"] > 32 for line in metrics(workdir)):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (workdir / "results.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.sharding, "make_mesh", lambda _: tiny_corpus.one_device())
        tiny_tasks.run(trained, data, workdir, **SETTINGS)
    assert metrics(workdir) == metrics(undisturbed)
    assert bits(load_params(workdir)) == bits(load_params(undisturbed))
    results = [json.loads((d / "results.json").read_text()) for d in (workdir, undisturbed)]
    for result in results:
        del result["seconds"], result["goodput"]
    assert results[0] == results[1]
