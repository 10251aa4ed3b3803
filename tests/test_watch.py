"""Processes that wait for one another, or in a library, end when they should: with a line, soon.

Each is a small program of its own, with no model in it.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.common.errors import RESTART_CODE

ROOT = Path(__file__).resolve().parents[1]
TOGETHER = """
import sys, time
from pathlib import Path
import jax
from bert_jax.training import distributed; from bert_jax.common import entry

def main(arguments):
    distributed.initialize()
    index, what, folder = jax.process_index(), arguments[0], Path(arguments[1])
    distributed._SEEN_SECONDS = 1
    assert distributed.from_main({"list": [index], "text": "é" * 200}) == {
        "list": [0], "text": "é" * 200
    }
    distributed.check_shared(folder)
    if what == "own disks":
        (folder / str(index)).mkdir()
        distributed.check_shared(folder / str(index))
    if index == 1:
        time.sleep(6)  # at work: longer than it may wait
    distributed.wait_for_all("both are here")
    assert not list(folder.iterdir())
    print("both are here", flush=True)
    if index == 1:
        distributed._SEEN_SECONDS = 300
        distributed.sees(folder / "nothing")
    distributed.wait_for_all("never")

entry.run(main, arguments=True)
"""


def start(what: str, folder: Path) -> subprocess.Popen:
    """Two processes; both must end by themselves, and are not started again."""
    environment = os.environ | {"BERT_JAX_STALL_SECONDS": "4", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", TOGETHER, what, str(folder)]
    launcher = (ROOT / "launch" / "local_pod.sh").read_text()
    assert 'echo "local_pod: starting again" >&2' in launcher
    once = launcher.replace('echo "local_pod: starting again" >&2', 'exit "$code"')
    return subprocess.Popen(
        ["bash", "-c", once, "local_pod", "2", "1", "--", *program], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_processes_that_stand_still_end_with_the_restart_code(tmp_path):
    """All must have stood still: one that is at work alone keeps the others waiting."""
    launcher = start("stall", tmp_path)
    text, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == RESTART_CODE, text
    assert text.count("both are here") == 2, text
    told = [line for line in text.splitlines() if line.startswith("error: no process of this run")]
    assert told and all("has made progress for" in line for line in told), text
    assert "Traceback" not in text


def test_a_sigterm_ends_processes_that_have_nothing_to_save(tmp_path):
    launcher = start("stop", tmp_path)
    assert launcher.stdout is not None
    while "both are here" not in (line := launcher.stdout.readline()):
        assert line
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGTERM)
    text, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == RESTART_CODE and "nothing to save" in text, text


def test_a_work_directory_on_disks_of_their_own_is_refused_by_all(tmp_path):
    launcher = start("own disks", tmp_path)
    text, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 2, text
    assert text.count("--workdir must be on a disk that all hosts share") == 2, text


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGTERM, RESTART_CODE, "nothing to save"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_a_run_whose_first_step_does_not_return(number, code, says):
    """The handler of a signal is Python, which does not run while the main thread is in C++."""
    program = (
        "import signal, threading\n"
        "from bert_jax.common import entry; from bert_jax.training import distributed, watch\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def main():\n"
        "    request = distributed.StopRequest()\n"
        "    lock = threading.Lock(); lock.acquire()\n"
        "    print('ready', flush=True)\n"
        "    lock.acquire()\n"
        "entry.run(main)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    run.send_signal(number)
    _, text = run.communicate(timeout=100)
    assert run.returncode == code and says in text and "Traceback" not in text, text
