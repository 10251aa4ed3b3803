"""Draws of damaged inputs: which entry, which of its files, what is done to it, what comes of it.

  python tests/damage_draws.py COUNT [SEED] [PARTS]    # prints what was not refused in one line

PARTS: of the names of entries, between commas, as "score,use hf"; by default all entries.

A worker process makes the draws one after the other; the process that started it sees when a draw
hangs or ends the process, notes it, and starts another worker behind it.
"""

import collections
import contextlib
import io
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
LONGEST = float(os.environ.get("DAMAGE_SECONDS", "90"))  # of a draw; more is a hang


class Outcome(NamedTuple):
    """What came of a draw.

    outcome: refused (in one line), same (harmless), told (another result, with a warning), changed
    (another result without a word), long (refused in more than a line), traceback, abort, hang.
    """

    draw: int
    entry: str
    file: str
    what: str  # was done to the file
    outcome: str
    message: str = ""


def _outcome(call: Callable[[], Any], sound: str | None) -> tuple[str, str]:
    """(outcome, message) of an entry's function, which ends as `errors.run` would have it end.

    sound: what it gives of sound inputs; None: ("made", that).
    """
    from bert_jax.common import errors

    err = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            made = repr(call())
    except BaseException as error:  # a panic of a library in Rust is no Exception
        message, code = errors.outcome(error) if isinstance(error, Exception) else ("", 1)
        if code == 1:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "/bert_jax/" in frame.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
            return "traceback", f"{type(error).__name__} at {where}: {str(error)[:200]}"
        return ("refused" if "\n" not in message and len(message) < 1600 else "long"), message
    if sound is None:
        return "made", made
    if made == sound:
        return "same", ""
    told = [line for line in err.getvalue().splitlines() if line.startswith("warning: ")]
    return ("told", told[0]) if told else ("changed", err.getvalue()[-200:])


def worker(bench: Path, seed: int, first: int, last: int, only: str) -> None:
    """Makes the draws first .. last - 1: a line of JSON on stdout before each, and one after it."""
    _set_up(bench)
    from damage import damage
    from damage_bench import entries, files_of

    table = {n: entry for n, entry in entries().items() if any(o in n for o in only.split(","))}
    report = os.fdopen(os.dup(1), "w")
    sound: dict[str, str] = {}
    for number in range(first, last):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(list(table))
        with tempfile.TemporaryDirectory() as made:
            entry, folder = table[name], Path(made) / "x"
            if name not in sound:
                print(json.dumps([number, name, "nothing", ""]), file=report, flush=True)
                _copy(bench, entry.parts, folder)
                outcome, sound[name] = _outcome(lambda e=entry, f=folder: e.run(f), None)
                if outcome != "made":
                    raise RuntimeError(f"of sound inputs: {outcome}, {sound[name]}")
                shutil.rmtree(folder)
            _copy(bench, entry.parts, folder)
            kinds = files_of(entry, folder)
            path = rng.choice(kinds[rng.choice(list(kinds))])
            file, what = path.relative_to(folder).as_posix(), damage(path, rng)
            row = [number, name, file, what]
            print(json.dumps(row), file=report, flush=True)
            outcome, message = _outcome(lambda e=entry, f=folder: e.run(f), sound[name])
            row += [outcome, message.replace(str(folder), "")]
            print(json.dumps(row), file=report, flush=True)


def _copy(bench: Path, parts: str, folder: Path) -> None:
    for part in parts.split():
        shutil.copytree(bench / part, folder / part)


def _set_up(bench: Path) -> None:
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
    import conftest  # noqa: F401 (its flags of XLA)
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_compilation_cache_dir", str(bench.with_name(bench.name + ".compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def draws(bench: Path, count: int, seed: int = 0, only: str = "") -> Iterator[Outcome]:
    """The outcomes of `count` draws, each made in a worker process."""
    at = 0
    while at < count:
        command = [sys.executable, str(HERE), "worker", str(bench), *map(str, (seed, at, count))]
        process = subprocess.Popen(
            [*command, only], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        last: list[Any] = [at, "start", "", ""]
        outcome = "abort"
        for line in _lines_of(process):
            if line is None:
                if last[1] == "start" or last[2] == "nothing":
                    continue  # importing and compiling may take long
                outcome = "hang"
                break
            last = json.loads(line)
            if len(last) == 6:
                yield Outcome(*last)
                at = last[0] + 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        errors = process.stderr.read().decode(errors="replace") if process.stderr else ""
        process.wait()
        if at < count:
            if last[1] == "start" or last[2] == "nothing":
                raise RuntimeError(f"sound input: {last}: {errors[-3000:]}")
            yield Outcome(*last[:4], outcome, f"{process.returncode}: {errors[-300:]}")
            at = last[0] + 1


def _lines_of(process: subprocess.Popen) -> Iterator[str | None]:
    """The lines of a process's output; None where none has come for LONGEST seconds."""
    selector = selectors.DefaultSelector()
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    selector.register(process.stdout, selectors.EVENT_READ)
    pending, heard = b"", time.monotonic()
    while True:
        if selector.select(1):
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return
            heard = time.monotonic()
            *lines, pending = (pending + data).split(b"\n")
            yield from (line.decode() for line in lines)
        elif time.monotonic() - heard > LONGEST:
            heard = time.monotonic()
            yield None


def table_of(outcomes: list[Outcome]) -> str:
    """How many of each outcome, and what of them is a fault."""
    counts = collections.Counter(o.outcome for o in outcomes)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def is_fault(outcome: Outcome) -> bool:
    """Whether it is one that must not be: all but one line, or harmless."""
    if outcome.outcome in ("refused", "same", "told"):
        return False
    if outcome.outcome == "changed":  # of texts and settings of the user's, another result is right
        ours = outcome.file.startswith("corpus/") or "/checkpoints/" in outcome.file
        return ours
    return True


def main(count: int, seed: int, only: str) -> None:
    """Makes draws, and prints those that are faults, or had another result without a word."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Path(os.environ.get("DAMAGE_BENCH", folder)) / "bench"
        if not bench.exists():
            _set_up(bench)
            from damage_bench import make_bench

            make_bench(bench)
        found = []
        for outcome in draws(bench, count, seed, only):
            found.append(outcome)
            if is_fault(outcome) or outcome.outcome == "changed" or "-v" in sys.argv:
                print(*outcome, sep=" | ", flush=True)
        print(table_of(found))


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "-v"]
    if arguments[0] == "worker":
        worker(Path(arguments[1]), *map(int, arguments[2:5]), arguments[5])  # type: ignore[call-arg]
    else:
        given = dict(enumerate(arguments))
        main(int(arguments[0]), int(given.get(1, "0")), given.get(2, ""))
