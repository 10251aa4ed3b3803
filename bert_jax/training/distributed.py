"""Several processes that act as one: they start together, stop together, and one of them writes.

On a TPU slice or pod, under Slurm, Open MPI or Kubernetes, JAX finds the others by itself;
`launch/local_pod.sh` names them in the environment.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from bert_jax.common.errors import UserError
from bert_jax.training import watch

# A process that is silent for so long is taken for dead, and the others stop. Below JAX's 100 s.
_HEARTBEAT_SECONDS = 60
_SEEN_SECONDS = 60  # within which a network disk shows on every host what one has written
_BLOCK = 256  # bytes of what is said at once
T = TypeVar("T")


def initialize() -> None:
    """Joins the other processes of the run, if there are any; before anything else of JAX.

    Raises: UserError: they did not all arrive, or the environment describes them in part.
    """
    count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (ValueError, IndexError) as error:
        if os.environ.get("JAX_COORDINATOR_ADDRESS") or index or (count or 1) > 1:
            raise UserError(
                "of several processes each needs JAX_COORDINATOR_ADDRESS=HOST:PORT, "
                f"JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment ({error})"
            ) from error
        if os.environ.get("JOB_COMPLETION_INDEX", "0") != "0":
            raise UserError("under Kubernetes JAX needs: pip install 'jax[k8s]'") from error
        if "coordinator_address" not in str(error):
            raise
        # Nothing says that there are others.
    except OSError as error:
        print(f"no other processes: the TPU's metadata server is away ({error})", file=sys.stderr)
    except RuntimeError as error:
        if not count and "must be called before" in str(error):
            return  # called from Python, by a program that has used JAX already
        raise UserError(
            f"the processes of this run did not find one another ({str(error).splitlines()[0]}); "
            "start the same command on every host of the slice"
        ) from error
    if jax.process_count() > 1:
        watch.start(jax.process_index(), jax.process_count(), global_state.client)


def _number(name: str) -> int | None:
    """The whole number in a variable of the environment; None where it is not set."""
    text = os.environ.get(name)
    if text and not text.isdecimal():
        raise UserError(f"the environment has {name}={text}, which must be a whole number")
    return int(text) if text else None


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """A line to stderr, from the main process; nothing for an empty text."""
    if text and is_main():
        print(text, file=sys.stderr)


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
        watch.count()


def from_main(value: T) -> T:
    """Returns on all processes what the main one gives: they must not decide by what each sees.

    A folder on a network disk may look different from each host for a while.

    value: what JSON can hold, lists for tuples.
    """
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # Sizes are few, as each is a program to compile.
    padded = np.full(-(-size // _BLOCK) * _BLOCK, ord(" "), np.uint8)
    padded[: len(text)] = text[: len(padded)]
    said = multihost_utils.broadcast_one_to_all(padded)
    watch.count()
    return json.loads(np.asarray(said, np.uint8).tobytes())


def sees(path: Path) -> bool:
    """Whether a path is there, or comes into this host's view of a network disk within a minute."""
    deadline = time.monotonic() + _SEEN_SECONDS
    while not (found := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # has it look again
    return found


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same `folder`: the main one writes there, all read.

    Raises: UserError: one does not, on every process.
    """
    if jax.process_count() == 1:
        return
    token = from_main(uuid.uuid4().hex)
    path = folder / f".seen-by-all-{token}"
    if is_main():
        path.touch()
    wait_for_all("there is something to see")
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.array(sees(path))))
    if is_main():
        path.unlink()
    if len(blind):
        raise UserError(
            f"process {blind[0]} of this run does not see what process 0 wrote to {folder}: "
            "--workdir must be on a disk that all hosts share"
        )


class StopRequest:
    """A SIGTERM, SIGHUP or Ctrl-C to any process, seen by all of them after the same step.

    SIGHUP says that the terminal was closed; of a process started by nohup it stays ignored. A
    second Ctrl-C interrupts at once. So does the first, and a SIGTERM, while no step is done.
    """

    def __init__(self) -> None:
        self._received = False
        self._before: dict[int, Any] = {}
        self._unlisten: Callable[[], None] = lambda: None
        watch.saving.begin()
        if threading.current_thread() is not threading.main_thread():
            return
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup and signal.getsignal(hangup) == signal.SIG_DFL:
            self._before[hangup] = signal.signal(hangup, self._hang_up)
        if jax.process_count() == 1:  # else JAX's own handler passes the signal on
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._receive)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        self._unlisten = watch.listen()

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; to be asked after every step."""
        if jax.process_count() > 1:
            self._received = multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def close(self) -> None:
        """The signals end the process again, as before."""
        if not self._received:  # else it is about to end, and to say where it is saved
            watch.saving.end()
        self._unlisten()
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, *_: Any) -> None:
        self._received = True

    def _hang_up(self, *_: Any) -> None:
        # What is said from now on would be an error: the terminal is gone.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)
        os.kill(os.getpid(), signal.SIGTERM)

    def _interrupt(self, *_: Any) -> None:
        # Not print: a handler must not write to a stream that may be in the middle of a line.
        os.write(2, b"\nstopping after this step, to save it; Ctrl-C again stops at once\n")
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        os.kill(os.getpid(), signal.SIGTERM)
