"""Errors meant for people: what each means, in one line and an exit code."""

import contextlib
import difflib
import errno
import multiprocessing
import os
import re
import select
import sys
import traceback
from collections.abc import Collection, Iterator
from typing import NoReturn

# Exit code of a run that saved because it was asked to stop, or that lost a process (EX_TEMPFAIL of
# sysexits.h): the same command goes on. After any other code but 0 that would not help.
RESTART_CODE = 75
_LONGEST_LINE = 1500  # characters of an error


class UserError(Exception):
    """A mistake in what the user gave: one line saying what, where and what to do about it."""

    def __str__(self) -> str:
        """The line, in which line ends and other control characters of names are escaped."""
        return re.sub(
            r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: ascii(c[0])[1:-1], super().__str__()
        )


class Stopped(Exception):
    """The run was asked to stop, and is saved: what it says, and where it is."""


class Restart(Exception):
    """This process cannot go on, but the same command can: what happened."""


def outcome(error: Exception) -> tuple[str, int]:
    """Says what an error means: a line for people (of a fault of ours the traceback), and a code.

    The code is `RESTART_CODE` where the same command can go on, 2 where it would fail again, and
    1 for a fault of ours.
    """
    if isinstance(error, Restart):
        return f"error: {error}", RESTART_CODE
    message = str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
    if may_pass(error):
        return f"error: {message}; that may pass: the same command goes on", RESTART_CODE
    if isinstance(error, (UserError, OSError)):
        return f"error: {_one_line(message)}", 2
    first_line = (message.strip() or type(error).__name__).splitlines()[0][:200]
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and _raised_in(error, "jax._src.xla_bridge"):
        why = f" ({first_line})" if message else ""
        return (
            f"error: JAX cannot use JAX_PLATFORMS={platforms} here{why}; install JAX for it "
            "(README), or unset it"
        ), 2
    if out_of_memory(error):
        return (
            f"error: there is too little memory ({first_line}); lower batch_size or the length, "
            "raise accumulation, or set remat"
        ), 2
    if lost_a_process(error):
        return (
            f"error: another process of this run is gone ({first_line}); start all of them again: "
            "they go on from the last checkpoint"
        ), RESTART_CODE
    return "".join(traceback.format_exception(error)).rstrip(), 1


def _one_line(message: str) -> str:
    """A message that may quote a damaged file: on one line of bounded length, without controls."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    return (
        text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE - 310]} ... {text[-300:]}"
    )


# What a network disk or a connection says for a while: the same command may work later. A full
# disk, a missing file or a missing permission is not among them.
_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED",
        "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ESHUTDOWN", "EAGAIN",
        "EINTR", "ENOLINK", "EREMOTEIO", "ECOMM", "EPROTO",
    )
    if hasattr(errno, name)
}  # fmt: skip


def may_pass(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is of a disk or a connection that may come back."""
    return any(
        isinstance(cause, TimeoutError) or _errno(cause) in _PASSING for cause in causes(error)
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, on the host or on a device."""

    def says_so(cause: BaseException) -> bool:
        text = str(cause).lower() if isinstance(cause, RuntimeError) else ""
        signs = ("resource_exhausted", "out of memory", "bad_alloc")
        return isinstance(cause, MemoryError) or any(sign in text for sign in signs)

    return any(map(says_so, causes(error)))


def lost_a_process(error: BaseException) -> bool:
    """Whether an error means that another process of the run is gone.

    The type and the status of JAX's error decide, or that it is of gloo, which carries the
    messages between CPUs; words in other errors do not.
    """

    if not (jax := sys.modules.get("jax")):  # not every entry needs it
        return False

    def says_so(cause: BaseException) -> bool:
        # JAX turns some statuses into errors of Python, whose message still begins with them.
        of_jax = isinstance(cause, (jax.errors.JaxRuntimeError, ValueError))
        signs = r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): |\bGloo .*failed"
        has_status = re.match(r"[A-Z_]+: ", str(cause)) is not None
        return of_jax and has_status and re.search(signs, str(cause)) is not None

    return jax.process_count() > 1 and any(map(says_so, causes(error)))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _errno(error: BaseException) -> int | None:
    """The number that the system gave an error, also one of TensorStore; None: it gave none."""
    if isinstance(error, OSError):
        return error.errno
    found = isinstance(error, ValueError) and re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def _raised_in(error: BaseException, module: str) -> bool:
    """Whether a module itself raised it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"] == module


def end(message: str, code: int) -> NoReturn:
    """Ends the process, from whichever thread, whatever its other threads are at."""
    if message:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(message, file=sys.stderr, flush=True)
    if "jax" in sys.modules:
        # A decent exit waits: for other processes, which may wait for this one, and for threads of
        # Orbax, which wait minutes for what could not be written.
        for worker in multiprocessing.active_children():
            worker.terminate()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def did_you_mean(name: str, known: Collection[str], prefix: str = "") -> str:
    """`. Did you mean "X"?` with known names that end as this one does, or are like it; or ""."""
    end = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == end]
    close = same or difflib.get_close_matches(name, known, 2, 0.7)
    guesses = " or ".join(f'"{prefix}{other}"' for other in close[:3])
    return f". Did you mean {guesses}?" if guesses else ""


def silence_closed() -> bool:
    """Sends to nowhere what is still written to a stream that nobody reads, as behind `| head`.

    Returns: whether there is such a stream.
    """
    found = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            found = True
    return found
