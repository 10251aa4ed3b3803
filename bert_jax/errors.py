"""Errors meant for people, and the wrapper that every command-line entry runs in."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

# Exit code of a run that saved because it was asked to stop, or that lost a process (EX_TEMPFAIL of
# sysexits.h): the same command goes on. After any other code but 0 that would not help.
RESTART_CODE = 75


class UserError(Exception):
    """A mistake in what the user gave: one line saying what, where and what to do about it."""


class Stopped(Exception):
    """The run was asked to stop, and is saved: what it says, and where it is."""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry's `main(argv)`; a `UserError` becomes one line on stderr and exit code 2.

    So does an error of the operating system: a full disk, a file that is not there or not allowed.
    `Stopped`, and the loss of another process of the run, become one line and `RESTART_CODE`.
    """
    # Progress of the libraries is not for users, and their errors reach us as exceptions.
    logging.set_verbosity(logging.FATAL)
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        _exit(f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"error: {where}{error.strerror or error}", 2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(RESTART_CODE)
    except RuntimeError as error:
        from bert_jax import distributed  # imports JAX, which not every entry needs

        if not distributed.lost_a_process(error):
            raise
        first_line = str(error).strip().splitlines()[0][:200]
        _exit(
            f"error: another process of this run is gone ({first_line}); start all of them again: "
            "they go on from the last checkpoint",
            RESTART_CODE,
        )


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        # A decent exit waits for the others, which may wait for this one; so they see it is gone.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; a wrong name, type or value of one is a `UserError`."""
    if any(arg.startswith("--config.") for arg in argv) and not any(
        arg == "--config" or arg.startswith("--config=") for arg in argv
    ):
        raise UserError("--config=FILE is needed, before any --config.NAME=value")
    try:
        rest = flags.FLAGS(argv)
    except UserError:
        raise
    # ml_collections reports a wrong override as a plain Python error of several kinds.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        cause: BaseException = error
        while cause.args and isinstance(cause.args[0], BaseException):
            cause = cause.args[0]  # ml_collections wraps the one that speaks
        message = " ".join(str(cause.args[0] if cause.args else cause).split())
        raise UserError(f"{message} (--help lists the flags)") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return rest
