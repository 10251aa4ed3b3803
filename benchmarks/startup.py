"""Time from the start of a run's process to its first step, and again when it is started again.

    python -m benchmarks.startup --run='--config=configs/pretrain.py:size=mini,seq=128
        --config.corpus=CORPUS' [--repeats=3]

--run: the flags of bert_jax.main, without --workdir. The first start has an empty compilation
cache; the second has that of the first, and a work directory of its own, so that it too begins at
step 0. A start has reached the first step when its program is there, and done it when it is logged;
then it is killed. Seconds of wall time, and of CPU until it is killed, medians; a table and one
JSON line.
"""

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.provenance import provenance
from bert_jax.common import entry, errors

_RUN = flags.DEFINE_string("run", None, "Flags of bert_jax.main.", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Pairs of starts.", lower_bound=1)


# bert_jax.main, which makes a file once the program of the step is compiled or loaded.
_PROGRAM = """
import pathlib, sys
import jax
from bert_jax.common import entry; from bert_jax import main

reached = pathlib.Path(sys.argv.pop(1))

def listen(event, seconds, fun_name="", **_):
    if event.endswith("/backend_compile_duration") and "_step" in fun_name:
        reached.touch()

jax.monitoring.register_event_duration_secs_listener(listen)
entry.run(main.main)
"""


def start(words: Sequence[str], workdir: Path, cache: Path) -> dict[str, float]:
    """Seconds until the first step is `reached` and `done`, and `cpu`.

    Raises: UserError: the run ended before that.
    """
    reached = workdir.with_name(f"{workdir.name}.reached")
    command = [
        sys.executable, "-c", _PROGRAM, str(reached), *words, f"--workdir={workdir}",
        "--config.log_every=1",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    begin, cpu = time.perf_counter(), _cpu_seconds()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    log = workdir / "metrics.jsonl"
    found = {}
    while not (log.exists() and log.read_text()):
        if "reached" not in found and reached.exists():
            found["reached"] = time.perf_counter() - begin
        if process.poll() is not None:
            assert process.stderr is not None
            last = process.stderr.read().strip().split("\n")[-1]
            raise errors.UserError(f"bert_jax.main: {last}")
        time.sleep(0.02)
    found["done"] = time.perf_counter() - begin
    process.kill()  # it would save first, if asked
    process.communicate()
    return found | {"cpu": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures pairs of starts."""
    words = shlex.split(_RUN.value)
    found: dict[str, list[dict[str, float]]] = {"first": [], "second": []}
    for _ in range(_REPEATS.value):
        with tempfile.TemporaryDirectory() as folder:
            for name, times in found.items():
                times.append(start(words, Path(folder, name), Path(folder, "compiled")))
    columns = ("reached", "done", "cpu")
    medians = {
        name: {column: statistics.median(one[column] for one in times) for column in columns}
        for name, times in found.items()
    }
    ratio = {column: medians["second"][column] / medians["first"][column] for column in columns}
    print("| start | first step reached, s | done, s | CPU s |")
    print("|---|---:|---:|---:|")
    for name, one in medians.items():
        print(f"| {name} | " + " | ".join(f"{one[column]:.1f}" for column in columns) + " |")
    print("| ratio | " + " | ".join(f"{ratio[column]:.2f}" for column in columns) + " |")
    facts = {"seconds": found, "medians": medians, "ratio": ratio}
    print(json.dumps(provenance("startup") | facts))


if __name__ == "__main__":
    entry.run(main)
