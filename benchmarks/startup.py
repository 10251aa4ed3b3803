"""Time from the start of a run's process to its first step, and again when it is started again.

    python -m benchmarks.startup --run='--config=configs/pretrain.py:size=mini,seq=128
        --config.corpus=CORPUS' [--repeats=3]

--run: the flags of bert_jax.main, without --workdir. The first start has an empty compilation
cache; the second has that of the first, and a work directory of its own, so that it too begins at
step 0. Each is killed once its first step is logged. Seconds of wall time and of CPU, medians; a
table and one JSON line.
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
from bert_jax import errors

_RUN = flags.DEFINE_string("run", None, "Flags of bert_jax.main.", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Pairs of starts.", lower_bound=1)


def start(words: Sequence[str], workdir: Path, cache: Path) -> tuple[float, float]:
    """(wall, CPU) seconds until the first step is in the log.

    Raises: UserError: the run ended before that.
    """
    command = [
        sys.executable, "-m", "bert_jax.main", *words, f"--workdir={workdir}",
        "--config.log_every=1",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    begin, cpu = time.perf_counter(), _cpu_seconds()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    log = workdir / "metrics.jsonl"
    while not (log.exists() and log.read_text()):
        if process.poll() is not None:
            assert process.stderr is not None
            last = process.stderr.read().strip().split("\n")[-1]
            raise errors.UserError(f"bert_jax.main: {last}")
        time.sleep(0.02)
    wall = time.perf_counter() - begin
    process.kill()  # it would save first, if asked
    process.communicate()
    return wall, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures pairs of starts."""
    words = shlex.split(_RUN.value)
    found: dict[str, list[tuple[float, float]]] = {"first": [], "second": []}
    for _ in range(_REPEATS.value):
        with tempfile.TemporaryDirectory() as folder:
            for name, times in found.items():
                times.append(start(words, Path(folder, name), Path(folder, "compiled")))
    medians = {
        name: dict(
            zip(("wall", "cpu"), map(statistics.median, zip(*times, strict=True)), strict=True)
        )
        for name, times in found.items()
    }
    for name, one in medians.items():
        print(f"{name:6} start: {one['wall']:6.1f} s to the first step, {one['cpu']:6.1f} s of CPU")
    ratio = medians["second"]["wall"] / medians["first"]["wall"]
    print(f"second / first: {ratio:.2f}")
    facts = {"seconds": found, "medians": medians, "ratio": ratio}
    print(json.dumps(provenance("startup") | facts))


if __name__ == "__main__":
    errors.run(main)
