"""What runs on a worker of a TPU slice: the command's log, its exit code, and its end."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from stub_cloud import ROOT


@pytest.fixture
def worker(tmp_path):
    """Runs worker.sh in a folder of its own, on no machine but this."""
    home = tmp_path / "bert_jax"
    (home / "launch").mkdir(parents=True)
    (home / ".venv/bin").mkdir(parents=True)
    (home / ".venv/bin/activate").write_text("export ACTIVE=yes\n")
    shutil.copy(ROOT / "launch/worker.sh", home / "launch")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("sudo", "gcsfuse"):
        (bin_folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n')
        (bin_folder / name).chmod(0o755)
    (bin_folder / "mountpoint").write_text("#!/bin/sh\nexit 1\n")
    (bin_folder / "mountpoint").chmod(0o755)
    (tmp_path / "calls").touch()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "bert_jax/launch/worker.sh", *arguments], cwd=tmp_path,
            env=os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
            text=True, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    def becomes(state: str) -> None:
        for _ in range(200):
            seen = run("status").stdout.split()[-1]
            if seen != "running":
                break
            time.sleep(0.05)
        assert seen == state

    def speaks() -> None:
        for _ in range(200):
            if (home / "run.log").exists() and (home / "run.log").read_text():
                return
            time.sleep(0.05)
        raise AssertionError("the command wrote nothing")

    run.becomes, run.speaks, run.home = becomes, speaks, home
    yield run
    if run("status").stdout.split()[-1] == "running":
        run("stop")


def test_a_worker_keeps_log_and_exit_code(worker):
    assert worker("status").stdout.split()[-1] == "lost"  # nothing was started
    command = ["bash", "-c", 'echo "$ACTIVE $1"; exit 75', "x", "two words"]
    assert worker("start", "", *command).returncode == 0
    worker.becomes("75")
    assert worker("start", "", "true").returncode == 0
    worker.becomes("0")
    assert (worker.home / "run.log").read_text() == "yes two words\n"


@pytest.mark.parametrize("by", ["stop", "shutdown"])
def test_a_run_that_gets_sigterm_saves_and_leaves_its_exit_code(worker, by):
    """A machine that shuts down sends it to every process, the shell around the run too."""
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True)"
    program += "; signal.pause()"
    worker("start", "", sys.executable, "-c", program)
    worker.speaks()
    again = worker("start", "", "true")
    assert again.returncode == 2 and "stop it first" in again.stderr
    if by == "stop":
        assert worker("stop").returncode == 0
    else:
        os.killpg(int((worker.home / "run.pid").read_text()), 15)
    worker.becomes("75")


def test_a_run_that_is_gone_without_a_word_is_lost(worker):
    worker("start", "", "bash", "-c", "echo up; sleep 60")
    worker.speaks()
    pid = int((worker.home / "run.pid").read_text())
    os.killpg(pid, 9)
    worker.becomes("lost")


def test_the_bucket_is_mounted_before_the_start(worker, tmp_path):
    assert worker("start", "my-bucket", "true").returncode == 0
    worker.becomes("0")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "sudo mkdir -p /gcs/my-bucket"
    assert calls[-1] == (
        "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "
        "my-bucket /gcs/my-bucket"
    )
