"""How far long work is: a bar on a terminal, and elsewhere (a file, a pipe) lines now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from bert_jax.common.errors import silence_closed

T = TypeVar("T")
_SECONDS = 30.0  # between two lines


class Progress:
    """Counts work that is done, and shows it on stderr with its speed and the time that is left.

    Args:
      total: units of all the work. done: of these, how many were done before.
      unit: what is counted, in the singular.
      what: the name of the work; empty: the unit tells.
      quiet: show nothing.
      brief: the work may be done in a moment: show nothing in the first seconds, nor at its end.
    """

    def __init__(
        self, total: int, unit: str, what: str = "", done: int = 0, quiet: bool = False,
        brief: bool = False,
    ):  # fmt: skip
        self.total, self.unit, self.what, self.done = total, unit, what, done
        self._before, self._begin = done, time.monotonic()
        self._lines = not quiet and not sys.stderr.isatty()
        self._next = self._begin + _SECONDS
        self._spoke = not brief  # whether there is a last line
        self.values: dict[str, str] = {}
        self._bar = tqdm(
            total=total, initial=done, unit=unit, desc=what or None, dynamic_ncols=True,
            disable=quiet or self._lines, unit_scale=unit == "B", leave=not brief,
            delay=3 if brief else 0,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Counts units as done."""
        self.done += count
        self._bar.update(count)
        if self._lines and time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS
            self._spoke = True
            self.say(self._line())

    def show(self, **values: Any) -> None:
        """Shows named values, as they are now, beside the count."""
        self.values = {name: str(value) for name, value in values.items()}
        self._bar.set_postfix(self.values)

    def say(self, line: str) -> None:
        """Writes a line of its own."""
        try:
            if self._lines:
                print(line, file=sys.stderr, flush=True)
            else:
                self._bar.write(line, file=sys.stderr)
        except BrokenPipeError:  # nobody reads any more: no reason to stop working
            silence_closed()

    def close(self) -> None:
        """Ends the bar, or writes the last line."""
        self._bar.close()
        if self._lines and self._spoke:
            self.say(self._line())
        self._lines = False

    def _line(self) -> str:
        """`step 1,200/10,000 (12%)  loss 4.123  2.31 step/s  ETA 1:03:29`."""
        seconds = time.monotonic() - self._begin
        speed = (self.done - self._before) / max(seconds, 1e-9)
        form = _in_bytes if self.unit == "B" else "{:,}".format
        count = f"{form(self.done)}/{form(self.total)} ({self.done / max(self.total, 1):.0%})"
        parts = [f"{self.what or self.unit} {count}"]
        parts += [f"{name} {value}" for name, value in self.values.items()]
        if speed:
            parts.append(f"{tqdm.format_sizeof(speed)} {self.unit}/s")
            left = (self.total - self.done) / speed
            parts.append(f"ETA {tqdm.format_interval(left)}" if left else _took(seconds))
        return "  ".join(parts)


def _in_bytes(count: float) -> str:
    return tqdm.format_sizeof(count) + "B"


def _took(seconds: float) -> str:
    return f"took {tqdm.format_interval(seconds)}"


def follow(work: Iterable[T], what: str, total: int, unit: str, quiet: bool = False) -> Iterator[T]:
    """Passes work on and counts it; of work that is done in a moment nothing is shown."""
    with Progress(total, unit, what, quiet=quiet, brief=True) as progress:
        for item in work:
            yield item
            progress.update()
