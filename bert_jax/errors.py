"""Errors meant for people, and the wrapper that every command-line entry runs in."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging


class UserError(Exception):
    """A mistake in what the user gave: one line saying what, where and what to do about it."""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry's `main(argv)`; a `UserError` becomes one line on stderr and exit code 2."""
    logging.set_verbosity(logging.WARNING)  # the libraries' own progress is not for users
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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
