"""Where the wall time of a run goes, over all its starts: `goodput.jsonl` of the work directory."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from bert_jax.common import schemas
from bert_jax.common.files import json_line, read_json_lines, write_json_lines
from bert_jax.training import distributed

_FILE = "goodput.jsonl"
T = TypeVar("T")
_compiled = 0.0  # seconds this process has spent tracing, lowering and compiling


def _count(event: str, duration_secs: float, **_: Any) -> None:
    global _compiled
    if event.startswith("/jax/core/compile/"):
        _compiled += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count)


class Ledger:
    """The seconds of one start of a run, by what they were spent on; the rest are steps.

    A line is {"start": number of the start, "began": Unix time, "from_step", "step", "seconds"},
    the last of a start being its sum. The main process writes.
    """

    def __init__(self) -> None:
        self._began, self._start = time.time(), time.perf_counter()
        self._spent = {"starting": 0.0, "compiling": 0.0, "input": 0.0}
        self._spent |= {"checkpoints": 0.0, "evaluating": 0.0}
        self._compiled = _compiled
        self._line: dict[str, Any] = {}

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Books the time inside under `kind`, but for what was compiled."""
        start, compiled = time.perf_counter(), _compiled
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._spent[kind] += max(0.0, seconds - (_compiled - compiled))

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time until each comes is booked as waiting for input."""
        iterator = iter(items)
        while True:
            with self.spending("input"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def open(self, workdir: Path, step: int) -> None:
        """Says where the lines go, and from which step this start goes on."""
        self._path = workdir / _FILE
        lines = read_json_lines(self._path, schemas.GoodputLine)
        number = 1 + max((line["start"] for line in lines), default=-1)
        self._line = {"start": number, "began": self._began, "from_step": step}
        if distributed.is_main():  # without a line that was cut off
            write_json_lines(self._path, lines)

    def write(self, step: int) -> None:
        """Appends the sum so far."""
        if not distributed.is_main():
            return
        total = time.perf_counter() - self._start
        spent = self._spent | {"compiling": _compiled - self._compiled}
        spent["steps"] = max(0.0, total - sum(spent.values()))
        with self._path.open("a") as file:
            file.write(json_line(self._line | {"step": step, "seconds": spent}))


def shares(workdir: Path) -> dict[str, float]:
    """`wall_seconds` of a run, and the share of them in each kind of work.

    `lost_to_restarts` are the steps that a later start did again, that start's own beginning, and
    the time when nothing ran, with what a killed start did after its last line.
    """
    lines = read_json_lines(workdir / _FILE, schemas.GoodputLine)
    starts = list({line["start"]: line for line in lines}.values())
    spent: dict[str, float] = {}
    lost, end = 0.0, None
    for line, following in itertools.zip_longest(starts, starts[1:]):
        seconds = dict(line["seconds"])
        if following is not None and line["step"] > line["from_step"]:
            again = max(0, line["step"] - max(following["from_step"], line["from_step"]))
            part = again / (line["step"] - line["from_step"])
            lost += part * seconds["steps"]
            seconds["steps"] *= 1 - part
        if end is not None:  # a clock that was set back gives no negative time
            lost += max(0.0, line["began"] - end) + seconds.pop("starting")
        end = line["began"] + sum(line["seconds"].values())
        for kind, value in seconds.items():
            spent[kind] = spent.get(kind, 0.0) + value
    spent["lost_to_restarts"] = lost
    wall = sum(spent.values())
    return {"wall_seconds": wall} | {kind: value / max(wall, 1e-9) for kind, value in spent.items()}


def as_text(shares: dict[str, float]) -> str:
    """One line for people."""
    parts = {kind: share for kind, share in shares.items() if kind != "wall_seconds"}
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{kind.replace('_', ' ')} {share:.1%}" for kind, share in ordered)
    return f"{shares['wall_seconds']:,.0f} s of wall time: {shown}."
