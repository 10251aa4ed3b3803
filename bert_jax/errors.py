"""Errors meant for people, and the wrapper that every command-line entry runs in."""

import functools
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import NoReturn

from absl import app, flags, logging

# Exit code of a run that saved because it was asked to stop, or that lost a process (EX_TEMPFAIL of
# sysexits.h): the same command goes on. After any other code but 0 that would not help.
RESTART_CODE = 75


class UserError(Exception):
    """A mistake in what the user gave: one line saying what, where and what to do about it."""


class Stopped(Exception):
    """The run was asked to stop, and is saved: what it says, and where it is."""


class Restart(Exception):
    """This process cannot go on, but the same command can: what happened."""


def run(main: Callable[..., None], arguments: bool = False) -> None:
    """Runs an entry's `main()`; a `UserError` becomes one line on stderr and exit code 2.

    So does an error of the operating system: a full disk, a file that is not there or not allowed.
    `Stopped`, `Restart` and the loss of another process of the run become one line and
    `RESTART_CODE`; Ctrl-C becomes one line and 130, as in a shell.

    arguments: there may be some beside the flags, and `main` is called with the list of them.
    """
    for flag in vars(sys.modules[main.__module__]).values():
        if isinstance(flag, flags.FlagHolder):  # --help lists what the entry uses
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    # Progress of the libraries is not for users, and their errors reach us as exceptions.
    logging.set_verbosity(logging.FATAL)
    # But for one: that there is an accelerator which this JAX cannot use.
    getLogger("jax._src.xla_bridge").setLevel("WARNING")
    try:
        app.run(
            lambda argv: main(argv[1:]) if arguments else main(),
            flags_parser=functools.partial(_parse_flags, arguments=arguments),
        )
    except UserError as error:
        _exit(f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"error: {where}{error.strerror or error}", 2)
    except KeyboardInterrupt as interrupt:
        _exit(str(interrupt) or "interrupted", 130)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(RESTART_CODE)
    except Restart as restart:
        _exit(f"error: {restart}", RESTART_CODE)
    except (RuntimeError, AssertionError) as error:
        from bert_jax import distributed  # imports JAX, which not every entry needs

        first_line = (str(error).strip() or "unknown").splitlines()[0][:200]
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms and _raised_in(error, "jax._src.xla_bridge"):
            why = f" ({first_line})" if str(error) else ""
            _exit(
                f"error: JAX cannot use JAX_PLATFORMS={platforms} here{why}; install JAX for it "
                "(README), or unset it",
                2,
            )
        if "RESOURCE_EXHAUSTED" in first_line:
            _exit(
                f"error: the device has too little memory ({first_line}); lower batch_size or the "
                "length, raise accumulation, or set remat",
                2,
            )
        if not distributed.lost_a_process(error):
            raise
        _exit(
            f"error: another process of this run is gone ({first_line}); start all of them again: "
            "they go on from the last checkpoint",
            RESTART_CODE,
        )


def _raised_in(error: BaseException, module: str) -> bool:
    """Whether a module itself raised it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"] == module


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    if "jax" in sys.modules:
        # A decent exit waits: for other processes, which may wait for this one, and for threads of
        # Orbax, which wait minutes for what could not be written.
        for worker in multiprocessing.active_children():
            worker.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _parse_flags(argv: Sequence[str], arguments: bool) -> list[str]:
    """Parses the flags; a wrong name, type or value of one is a `UserError`."""
    if any(arg.startswith("--config.") for arg in argv) and not any(
        arg == "--config" or arg.startswith("--config=") for arg in argv
    ):
        raise UserError("--config=FILE is needed, before any --config.NAME=value")
    for arg in argv:
        if re.match(r"--[\w.]+=(gs|s3|hdfs)://", arg):
            raise UserError(f"{arg}: mount the bucket, and give its folder (launch/README.md)")
    try:
        rest = flags.FLAGS(argv)
    except UserError:
        raise
    # ml_collections reports a wrong override as a plain Python error of several kinds.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        cause: BaseException = error
        while cause.args and isinstance(cause.args[0], BaseException):
            cause = cause.args[0]  # ml_collections wraps the one that speaks
        message = str(cause.args[0] if cause.args else cause)
        if isinstance(cause, KeyError) and message.startswith("'"):  # a name, perhaps with a hint
            name, _, hint = message.partition("\n")
            hint = hint or "The file of --config lists them"
            raise UserError(f"there is no setting {name} in the config. {hint}") from error
        message = " ".join(message.split())
        raise UserError(f"{message} (--help lists the flags)") from error
    if len(rest) > 1 and not arguments:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return rest
