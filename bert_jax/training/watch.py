"""Watches the main thread from another one, for what it cannot see while it waits.

A run of several processes that makes no progress ends with a line and the code to start it again,
instead of waiting for ever; and a request to stop is granted while there is nothing to save.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from bert_jax.common import entry, errors

# A run stands still when each of its processes has finished nothing for so long: where it only
# waits for devices and other processes, and where it is at work alone (compiling a large model,
# reading or writing a checkpoint, featurising a data set).
_WAITING_SECONDS = 600.0
_WORKING_SECONDS = 3600.0
_LOOK_SECONDS = 1.0
# Names of modules: where the main thread only waits.
_WAITING = {f"bert_jax.training.{name}" for name in ("loop", "trainer", "sharding", "distributed")}
_WORKING = {"bert_jax.training.checkpoint", "jax._src.compiler"}
_STALLED = "bert_jax/stalled/"  # keys of JAX's key-value store: one for each process
_ASKED_TO_STOP = "RECEIVED_PREEMPTION_NOTICE"  # where JAX's preemption service tells all of them
_STOPPED = "\nstopped, with nothing to save; the same command goes on"

_finished = 0


def count() -> None:
    """Counts a computation that finished, or a meeting of all processes: the run goes on."""
    global _finished
    _finished += 1


def finished() -> int:
    """How much this process has counted."""
    return _finished


class Saving:
    """Whether a loop is under way that saves when it is asked to stop."""

    def __init__(self) -> None:
        self._since: int | None = None

    def begin(self) -> None:
        """From the next finished computation on, there is something to save."""
        self._since = _finished

    def end(self) -> None:
        """The loop is over."""
        self._since = None

    def __bool__(self) -> bool:
        return self._since is not None and _finished > self._since


saving = Saving()


def listen() -> Callable[[], None]:
    """Has SIGTERM and Ctrl-C end a command at once as long as there is nothing to save.

    Handlers of signals run in the main thread, and there only between two lines of Python: not
    while it compiles, or waits for a computation. Both must have a handler.

    Returns: what ends the listening.
    """
    if not entry.in_command():  # the process of a notebook, say, is not ours to end
        return lambda: None
    read, write = socket.socketpair()
    write.setblocking(False)
    before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)

    def hear() -> None:
        while number := read.recv(1):
            if not saving and number[0] == signal.SIGINT:
                errors.end("\ninterrupted", 130)
            if not saving and number[0] in (signal.SIGTERM, getattr(signal, "SIGHUP", 0)):
                errors.end(_STOPPED, errors.RESTART_CODE)
        read.close()

    def unlisten() -> None:
        signal.set_wakeup_fd(before)
        write.close()

    threading.Thread(target=hear, daemon=True, name="signals").start()
    return unlisten


def start(index: int, processes: int, store: Any) -> None:
    """Starts watching this process of a run of several.

    store: JAX's client of the key-value store that they share.
    """
    watch = _Watch(index, processes, store)
    thread = threading.Thread(target=watch.until_stopped, daemon=True, name="watch")
    thread.start()

    def stop() -> None:
        # A thread that is within JAX's C++ code when Python ends would abort the process.
        watch.stopped.set()
        thread.join(10)

    atexit.register(stop)


class _Watch:
    """What is known about the main thread's progress."""

    def __init__(self, index: int, processes: int, store: Any):
        self._index, self._processes, self._store = index, processes, store
        self._limit = float(os.environ.get("BERT_JAX_STALL_SECONDS", _WAITING_SECONDS))
        self.stopped = threading.Event()
        self._state: tuple[int, bool] | None = None
        self._since, self._said = time.monotonic(), False

    def until_stopped(self) -> None:
        while not self.stopped.wait(_LOOK_SECONDS):
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            try:
                self._look(frame)
            except RuntimeError:  # the store is gone, with its process: JAX ends this one
                return

    def _look(self, frame: FrameType | None) -> None:
        works, place = _what_is_done(frame)
        now, state = time.monotonic(), (_finished, works)
        if state != self._state:
            self._state, self._since = state, now
        stalled = now - self._since > (_WORKING_SECONDS if works else self._limit)
        if stalled != self._said:
            self._store.key_value_set(f"{_STALLED}{self._index}", f"{stalled}", True)
            self._said = stalled
        if stalled:
            said = [value for _, value in self._store.key_value_dir_get(_STALLED)]
            if said.count("True") == self._processes:
                errors.end(
                    f"\nerror: no process of this run has made progress for {now - self._since:.0f}"
                    f" s; this one is in {place}; start all of them again: they go on from the "
                    "last checkpoint",
                    errors.RESTART_CODE,
                )
        if not saving and self._asked_to_stop():
            errors.end(_STOPPED, errors.RESTART_CODE)

    def _asked_to_stop(self) -> bool:
        try:
            return bool(self._store.key_value_try_get(_ASKED_TO_STOP))
        except RuntimeError as error:
            if "NOT_FOUND" in str(error):
                return False
            raise


def _what_is_done(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread works on its own rather than waits, and the place of ours that it is in."""
    works, place = None, ""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if works is None and name in _WAITING | _WORKING:  # the innermost decides
            works = name in _WORKING
        if not place and (name.startswith("bert_jax") or name == "__main__"):
            place = f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
        frame = frame.f_back
    return works is not False, place
