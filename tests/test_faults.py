"""What goes wrong around a run: a full disk, a folder that vanishes, a clock that jumps.

Each is one clear error, the checkpoints committed before are intact, and the run goes on from them.
"""

import contextlib
import errno
import io
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_corpus import make_schedule, make_trainer, small_config

from bert_jax import main
from bert_jax.common.errors import RESTART_CODE, Restart, Stopped, UserError, outcome
from bert_jax.training import loop
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.metrics import MetricsLog
from bert_jax.training.workdir import alone_in

SETTINGS = {"steps": 24, "checkpoint_every": 4, "eval_every": 10, "log_every": 2}


def run(corpus, workdir: Path, at_step_ten=lambda: None, **changes):
    """Trains; something happens in the evaluation after step 10. Returns the final state."""
    config = small_config(**{**SETTINGS, "checkpoint_minutes": 0.0, **changes})
    trainer, phases = make_trainer(config, corpus)

    def evaluate(params, phase):
        at_step_ten()
        return loop.held_out_means(trainer, params, phase)

    workdir.mkdir(exist_ok=True)
    return loop.run(trainer, phases, make_schedule(config), workdir, evaluate=evaluate)[0]


def steps_of(workdir: Path) -> list[int]:
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    found = checkpoints.steps
    checkpoints.close()
    return found


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return run(corpus, tmp_path_factory.mktemp("undisturbed") / "run")


def assert_same(state, expected):
    for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes()


def test_a_full_disk(corpus, undisturbed, tmp_path):
    """Stands in for it: no file may grow beyond 50 kB, as for `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))

    message = r"could not be written to .*checkpoints \(.*too large.*\); those committed before"
    try:
        with contextlib.redirect_stderr(io.StringIO()), pytest.raises(UserError, match=message):
            run(corpus, tmp_path / "run", fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_of(tmp_path / "run") == [4]  # that of step 8 was under way
    # Threads of the failed save may still write there, as they cannot once a process has ended.
    (tmp_path / "run").rename(tmp_path / "later")
    assert_same(run(corpus, tmp_path / "later"), undisturbed)


def test_a_log_that_cannot_be_written_names_its_file(tmp_path):
    log = MetricsLog(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        with pytest.raises(OSError, match=r"too large: .*metrics\.jsonl"):
            log.write(1, "train", {"loss": 1.0}, {"seconds": 1.0})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_work_directory_that_vanishes(corpus, tmp_path):
    workdir = tmp_path / "run"

    def vanish():
        workdir.rename(tmp_path / "elsewhere")
        workdir.touch()

    with pytest.raises((UserError, OSError), match=r"Not a directory|could not be written"):
        run(corpus, workdir, vanish)
    assert workdir.read_bytes() == b""  # nothing was made in its place


def test_a_clock_that_is_set_back(corpus, undisturbed, tmp_path, monkeypatch):
    real = time.time
    state = run(
        corpus, tmp_path / "run", lambda: monkeypatch.setattr(time, "time", lambda: real() - 1e6)
    )
    assert_same(state, undisturbed)
    assert steps_of(tmp_path / "run") == [20, 24]  # the newest by step, not by time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_is_saved_and_goes_on(corpus, undisturbed, tmp_path, number, capfd):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as under nohup
    try:
        with pytest.raises(Stopped, match="stopped and saved at step 11; the same command goes on"):
            run(corpus, tmp_path / "run", lambda: signal.raise_signal(number))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    told = "Ctrl-C again stops at once" in capfd.readouterr().err
    assert told == (number == signal.SIGINT)
    assert steps_of(tmp_path / "run") == [8, 11]
    assert_same(run(corpus, tmp_path / "run"), undisturbed)


def test_a_terminal_that_is_closed_while_nohup_holds(corpus, undisturbed, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = lambda: signal.raise_signal(signal.SIGHUP)  # noqa: E731
        assert_same(run(corpus, tmp_path / "run", hang_up), undisturbed)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_said_to_a_closed_terminal_is_no_error():
    """The kernel sends SIGHUP; from then on, writing to the terminal is an I/O error."""
    program = (
        "import os, sys\n"
        "os.open(os.ttyname(0), os.O_RDWR)  # it is now that of the session\n"
        "from bert_jax.training import distributed\n"
        "request = distributed.StopRequest()\n"
        "print('ready', flush=True)\n"
        "while not request.reached(1): pass\n"
        "print('saved', flush=True); print('saved', file=sys.stderr, flush=True)\n"
        "open(sys.argv[1], 'w').write('saved')\n"
    )
    ours, theirs = os.openpty()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        process = subprocess.Popen(
            [sys.executable, "-c", program, path], stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        while b"ready" not in os.read(ours, 1000):
            pass
        os.close(ours)
        assert process.wait(timeout=100) == 0
        assert path.read_text() == "saved"


def test_saving_by_the_clock_changes_no_bit(corpus, undisturbed, tmp_path, monkeypatch):
    """A step takes minutes, so every few one is saved besides, and the run goes on from it."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(
        monotonic=lambda: 240 * next(ticks), perf_counter=time.perf_counter
    ))  # fmt: skip
    saved = []
    save = Checkpoints.save

    def noted(self, step, state, score=None):
        saved.append(step)
        save(self, step, state, score)

    monkeypatch.setattr(Checkpoints, "save", noted)

    def stop():
        raise KeyboardInterrupt

    changes = {"checkpoint_minutes": 10.0, "checkpoint_every": 100}
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "run", stop, **changes)
    assert saved and max(np.diff([0, *saved, 10])) <= 5
    assert_same(run(corpus, tmp_path / "run", **changes), undisturbed)


def test_all_processes_save_after_the_same_step(monkeypatch):
    """The clock of the main one decides, and it is asked rarely."""
    now, said = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop.distributed, "from_main", lambda v: said.append(v) or v)
    main_one = loop._SaveTimer(10, 0)
    due = []
    for step in range(1, 10_001):
        now[0] += 0.5
        if main_one.due(step, None):
            due.append(step)
            main_one.saved(step)
    assert all(1200 <= gap <= 1202 for gap in np.diff([0, *due]))
    assert len(said) < 30 * (len(due) + 1)
    now[0] = 0.0  # another process, whose clock stands still, follows
    answers = iter(said)
    monkeypatch.setattr(loop.distributed, "from_main", lambda _: next(answers))
    other, followed = loop._SaveTimer(10, 0), []
    for step in range(1, 10_001):
        if other.due(step, None):
            followed.append(step)
            other.saved(step)
    assert followed == due


def test_a_second_interrupt_does_not_wait(corpus, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "run", twice)
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_of(tmp_path / "run") == [4, 8]


def test_a_second_run_in_the_same_folder_is_refused(corpus_path, tmp_path):
    config, workdir = small_config(corpus=str(corpus_path), **SETTINGS), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main.pretrain(config, workdir)  # as one that has only begun
        with alone_in(workdir), pytest.raises(UserError, match="another run is at work in"):
            main.pretrain(config, workdir)
    assert not (workdir / "metrics.jsonl").exists()


def run_program(program, variables=None):
    """A Python program in a process of its own, with more in its environment."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env=os.environ | (variables or {}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "has JAX_NUM_PROCESSES=two, which must be a whole number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "each needs JAX_COORDINATOR_ADDRESS="),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:12399"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID in"),
        (
            {"JAX_COORDINATOR_ADDRESS": "localhost", "JAX_NUM_PROCESSES": "2",
             "JAX_PROCESS_ID": "0"},
            "each needs JAX_COORDINATOR_ADDRESS=HOST:PORT",
        ),
        ({"JOB_COMPLETION_INDEX": "1"}, r"pip install 'jax\[k8s\]'"),
    ],
)  # fmt: skip
def test_processes_that_are_described_in_part_are_one_line(variables, message):
    program = (
        "from bert_jax.training import distributed; from bert_jax.common import entry\n"
        "def main(): distributed.initialize()\n"
        "entry.run(main)"
    )
    found = run_program(program, variables)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    assert re.search(message, found.stderr)


def test_an_accelerator_that_jax_cannot_use_is_told():
    program = (
        "import logging; from bert_jax.common import entry\n"
        "def main(): [logging.getLogger(n).warning(n) for n in ('jax._src.xla_bridge', 'other')]\n"
        "entry.run(main)"
    )
    found = run_program(program)
    assert "jax._src.xla_bridge" in found.stderr and "other" not in found.stderr


def test_an_interrupt_is_one_line():
    program = (
        "import signal; from bert_jax.common import entry\n"
        "def main(): signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(2, signal.default_int_handler)\n"
        "entry.run(main)"
    )
    found = run_program(program)
    assert (found.returncode, found.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_error_of_the_system_is_one_line(code):
    program = (
        "import os; from bert_jax.common import entry\n"
        f"def main(): raise OSError({code}, os.strerror({code}), 'runs/a/metrics.jsonl')\n"
        "entry.run(main)"
    )
    found = run_program(program)
    assert found.returncode == 2
    assert found.stderr.startswith("error: runs/a/metrics.jsonl: ")
    assert found.stderr.count("\n") == 1


def chained(message: str, cause: Exception) -> UserError:
    """As `raise UserError(message) from cause`."""
    error = UserError(message)
    error.__cause__ = cause
    return error


def of_jax(message: str) -> Exception:
    return jax.errors.JaxRuntimeError(message)


PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EAGAIN]
LASTING = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOENT]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((OSError(n, os.strerror(n), "runs/a"), RESTART_CODE) for n in PASSING),
        *((OSError(n, os.strerror(n), "runs/a"), 2) for n in LASTING),
        *((chained("not read", OSError(n, "")), RESTART_CODE) for n in PASSING),
        *((chained("not read", OSError(n, "")), 2) for n in LASTING),
        (chained("not saved", ValueError(f"x [os_error_code='{errno.EIO}']")), RESTART_CODE),
        (chained("not saved", ValueError(f"x [os_error_code='{errno.ENOSPC}']")), 2),
        (chained("not saved", chained("x", TimeoutError("barrier"))), RESTART_CODE),
        (UserError("no connection: heartbeat unavailable, gloo, deadline_exceeded"), 2),
        (chained("no connection", ValueError("coordination")), 2),
        (Restart("gone"), RESTART_CODE),
        (of_jax("UNAVAILABLE: failed to connect"), RESTART_CODE),
        (of_jax("INTERNAL: of a task: DEADLINE_EXCEEDED: barrier"), RESTART_CODE),
        (of_jax("UNKNOWN: Gloo all-reduce failed: peer"), RESTART_CODE),
        (ValueError("UNKNOWN: Gloo all-reduce failed: peer"), RESTART_CODE),
        (ValueError("a Gloo connection of ours"), 1),
        (RuntimeError("a connection of ours"), 1),
        (of_jax("INVALID_ARGUMENT: connection"), 1),
        (of_jax("RESOURCE_EXHAUSTED: 1 byte"), 2),
        (of_jax("INTERNAL: Error dispatching: Out of memory allocating 1 byte"), 2),
        (MemoryError("Unable to allocate 1 TiB"), 2),
        (RuntimeError("std::bad_alloc"), 2),
        (KeyError("a fault of ours"), 1),
    ],
    ids=repr,
)
def test_what_an_error_means_for_those_who_start_the_run(error, code, monkeypatch):
    """Its number, type and status decide, not words; one line, unless it is ours."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    message, found = outcome(error)
    assert found == code, message
    assert ("\n" not in message and message.startswith("error: ")) == (code != 1)


def test_a_fault_of_ours_ends_the_process_at_once_with_its_traceback():
    program = (
        "import threading, time, jax; from bert_jax.common import entry\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=[300]).start()\n"
        "    {}['name']\n"
        "entry.run(main)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert found.returncode == 1 and found.stderr.endswith("KeyError: 'name'\n"), found.stderr


def test_too_little_memory_of_a_device_is_one_line():
    program = (
        "import jax.numpy as jnp; from bert_jax.common import entry\n"
        "def main(): jnp.zeros((2**46,)).block_until_ready()\n"
        "entry.run(main)"
    )
    found = run_program(program)
    assert found.returncode == 2, found.stderr
    message = found.stderr.splitlines()[-1]
    assert message.startswith("error: there is too little memory (RESOURCE_EXHAUSTED")
    assert "lower batch_size" in message and "Traceback" not in found.stderr


def test_an_error_ends_the_process_whatever_threads_are_left():
    """Orbax leaves some that wait for minutes when a checkpoint could not be written."""
    program = (
        "import threading, time, jax; from bert_jax.common import entry, errors\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=[300]).start()\n"
        "    raise errors.UserError('the disk is full')\n"
        "entry.run(main)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert (found.returncode, found.stderr) == (2, "error: the disk is full\n")


@pytest.mark.parametrize("platform", ["cuda", "tpu", "unheard_of"])
def test_a_platform_that_jax_cannot_use_here_is_told(platform):
    """JAX raises a RuntimeError, of a GPU without its plugin a bare AssertionError."""
    program = (
        "import jax; from bert_jax.common import entry\n"
        "def main(): print('found', jax.devices())\n"
        "entry.run(main)"
    )
    found = run_program(program, {"JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"})
    if found.returncode == 0:
        pytest.skip("there is one here")
    assert found.returncode == 2, found.stderr
    last = found.stderr.splitlines()[-1]
    assert last.startswith(f"error: JAX cannot use JAX_PLATFORMS={platform} here"), found.stderr
    assert "Traceback" not in found.stderr
