"""Errors meant for people, and the wrapper that every command-line entry runs in."""

import contextlib
import difflib
import errno
import functools
import io
import multiprocessing
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from logging import getLogger
from typing import NoReturn

from absl import app, flags, logging

# Exit code of a run that saved because it was asked to stop, or that lost a process (EX_TEMPFAIL of
# sysexits.h): the same command goes on. After any other code but 0 that would not help.
RESTART_CODE = 75
_LONGEST_LINE = 1500  # characters of an error
_in_command = False  # whether `run` runs an entry


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


def run(main: Callable[..., None], arguments: bool = False) -> None:
    """Runs an entry's `main()`; a `UserError` becomes one line on stderr and exit code 2.

    So does an error of the operating system: a full disk, a file that is not there or not allowed.
    `Stopped`, `Restart`, the loss of another process of the run and a disk or connection that may
    come back become one line and `RESTART_CODE`; Ctrl-C becomes one line and 130, as in a shell.

    arguments: there may be some beside the flags, and `main` is called with the list of them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show ends no run
            stream.reconfigure(errors="backslashreplace")
    from bert_jax.common.flag_parsing import parse_flags  # which needs UserError

    module = sys.modules[main.__module__]
    for flag in vars(module).values():
        if isinstance(flag, flags.FlagHolder):  # --help lists what the entry uses
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    # Progress of the libraries is not for users, and their errors reach us as exceptions.
    logging.set_verbosity(logging.FATAL)
    # But for one: that there is an accelerator which this JAX cannot use.
    getLogger("jax._src.xla_bridge").setLevel("WARNING")
    global _in_command
    _in_command = True
    # Workers of the input leave semaphores behind when a run ends early; nobody needs to know.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        app.run(
            functools.partial(_call, main, arguments),
            flags_parser=functools.partial(
                parse_flags, arguments=arguments, about=module.__doc__ or ""
            ),
        )
    except KeyboardInterrupt as interrupt:
        end(str(interrupt) or "interrupted", 130)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(RESTART_CODE)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and silence_closed():
            end("", 128 + signal.SIGPIPE)  # as any program ends behind `| head`
        end(*outcome(error))


def in_command() -> bool:
    """Whether this process is a command of ours, which may end: not a notebook, say."""
    return _in_command


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
    from bert_jax.training import distributed  # imports JAX, which not every entry needs

    if distributed.lost_a_process(error):
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


def _call(main: Callable[..., None], arguments: bool, argv: Sequence[str]) -> None:
    main(argv[1:]) if arguments else main()
    sys.stdout.flush()  # here, where an error is told


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
