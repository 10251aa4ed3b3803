"""Contenders measured side by side: each in a process of its own, in turns, in one run.

A contender is a function at the top of a module that gets ready and returns its turn, a function
that does the work so many times and waits until it is done. Only one works at a time, so a noisy
machine meets all of them alike, and a process of its own keeps the peak of memory, the threads and
the libraries of each apart. Whoever waited for its turn is slow at first, and not all are alike in
that: so each turn begins with work that does not count.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from absl import flags
from tqdm import tqdm

from benchmarks.provenance import provenance
from bert_jax.common.errors import UserError

_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns of each, after the first.", lower_bound=1)

Turn = Callable[[int], Any]  # how often
Contender = Callable[[], Turn]  # picklable: a function of a module, or a partial of one


@dataclasses.dataclass
class Result:
    """What was measured of a contender; seconds of the work once, in each turn after the first."""

    first: float  # wall seconds from the start of the process until the work is done once
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    peak: float = 0.0  # bytes, of the process (host memory) ...
    device_peak: float = 0.0  # ... and of its accelerator, where there is one
    device: str = ""  # the accelerator's name
    value: Any = None  # what the first turn returned

    @property
    def seconds(self) -> float:
        """Median wall time of the work."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median CPU time of the work, all threads."""
        return statistics.median(self.cpu)


def contest(
    contenders: Mapping[str, Contender], times: int = 1, uncounted: int = 1
) -> dict[str, Result]:
    """Measures all of them: first turns one after the other, then --repeats rounds.

    times: how often the work is done in a turn after the first, and counts; `uncounted`: how often
    it is done before that.
    Raises: UserError: one of them failed; its own message is above.
    """
    repeats = _REPEATS.value
    context = multiprocessing.get_context("spawn")
    results: dict[str, Result] = {}
    lines: dict[str, Connection] = {}
    workers = []

    def answer(name: str) -> dict[str, Any]:
        try:
            return lines[name].recv()
        except EOFError:
            raise UserError(f"{name} failed: its own message is above") from None

    try:
        with tqdm(total=len(contenders) * (repeats + 1), unit="turn", dynamic_ncols=True) as bar:
            for name, contender in contenders.items():
                bar.set_postfix_str(name)
                lines[name], theirs = context.Pipe()
                begin = time.perf_counter()
                arguments = contender, theirs, times, uncounted
                worker = context.Process(target=_work, args=arguments, daemon=True)
                worker.start()
                workers.append(worker)
                theirs.close()
                value = answer(name)["value"]
                results[name] = Result(time.perf_counter() - begin, value=value)
                bar.update()
            for _ in range(repeats):
                for name, result in results.items():
                    bar.set_postfix_str(name)
                    lines[name].send(True)
                    found = answer(name)
                    result.wall.append(found["wall"])
                    result.cpu.append(found["cpu"])
                    result.peak = found["peak"]
                    result.device, result.device_peak = found["device"], found["device_peak"]
                    bar.update()
    finally:
        for line in lines.values():
            with contextlib.suppress(OSError):  # one that failed
                line.send(False)
        for worker in workers:
            worker.join(timeout=10)
            worker.terminate()
    return results


def _work(contender: Contender, line: Connection, times: int, uncounted: int) -> None:
    """The life of a contender's process."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU is for all of them
    turn = contender()
    line.send({"value": turn(1)})
    while line.recv():
        if uncounted:
            turn(uncounted)
        begin, cpu = time.perf_counter(), time.process_time()
        turn(times)
        line.send(
            {
                "wall": (time.perf_counter() - begin) / times,
                "cpu": (time.process_time() - cpu) / times,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                **accelerator(),
            }
        )


def accelerator() -> dict[str, Any]:
    """The name of the accelerator this process works on, and the most bytes it had in use there."""
    if torch := sys.modules.get("torch"):
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
            return {"device": torch.cuda.get_device_name(), "device_peak": peak}
    elif (jax := sys.modules.get("jax")) and (device := jax.devices()[0]).platform != "cpu":
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
        return {"device": device.device_kind, "device_peak": peak}
    return {"device": "", "device_peak": 0}


def show(results: Mapping[str, Result], columns: Mapping[str, Callable[[Result], str]]) -> None:
    """A table: what each took, and its time as a multiple of the first row's."""
    one = next(iter(results.values()))
    columns = {
        **columns,
        "wall s": lambda r: f"{r.seconds:.3f}",
        "range": lambda r: f"{min(r.wall):.3f}..{max(r.wall):.3f}",
        "CPU s": lambda r: f"{r.cpu_seconds:.3f}",
        "first s": lambda r: f"{r.first:.1f}",
        "peak GB": lambda r: f"{(r.device_peak or r.peak) / 1e9:.2f}",
        "wall / first row": lambda r: f"{r.seconds / one.seconds:.2f}",
        "CPU / first row": lambda r: f"{r.cpu_seconds / one.cpu_seconds:.2f}",
    }
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, result in results.items():
        print(f"| {name} | {' | '.join(cell(result) for cell in columns.values())} |")


def as_json(benchmark: str, results: Mapping[str, Result], **facts: Any) -> str:
    """One line: where it comes from, what it is of, and every figure."""
    figures = {name: dataclasses.asdict(result) for name, result in results.items()}
    for figure in figures.values():
        del figure["value"]
    return json.dumps(provenance(benchmark) | facts | {"results": figures})
