"""The wrapper that every command runs in: its flags, and how it ends."""

import functools
import io
import signal
import sys
from collections.abc import Callable, Sequence
from logging import getLogger

from absl import app, flags, logging

from bert_jax.common.errors import RESTART_CODE, Stopped, end, outcome, silence_closed
from bert_jax.common.flag_parsing import parse_flags

_in_command = False  # whether `run` runs an entry


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


def _call(main: Callable[..., None], arguments: bool, argv: Sequence[str]) -> None:
    main(argv[1:]) if arguments else main()
    sys.stdout.flush()  # here, where an error is told
