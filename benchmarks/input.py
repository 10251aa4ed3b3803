"""Speed of the input alone: instances per second, planning, seeking. A table and one JSON line.

    python -m benchmarks.input --corpus=CORPUS [--seconds=10] [--workers=0]
    python -m benchmarks.input --sentences=4000000 --workers=2

Rates are per CPU second (all threads and ended worker processes), so that other work on the
machine matters little; per wall second beside it. `pass_spread` is the standard deviation of the
number of chunks of a pass over its mean (see `Instances`). Seeks start from a fresh `Instances`:
index, plans and first batch.

--sentences: in place of a corpus the index of so many (mean 24 tokens, 20 a document), all of whose
tokens are zero: measures the start with workers and without, and the memory of a worker that it
shares with nobody.
"""

import gc
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.cpu_time import cpu_seconds
from benchmarks.provenance import provenance
from bert_jax.common import entry, errors
from bert_jax.common.flag_parsing import path_flag
from bert_jax.data.corpus import Split, index_path, open_corpus
from bert_jax.data.instances import Instances
from bert_jax.data.loader import train_batches
from bert_jax.data.template import Template

_CORPUS = path_flag("corpus", "Folder that bert_jax.prepare wrote.")
_SENTENCES = flags.DEFINE_integer("sentences", 0, "Of an index made up, in place of a corpus.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Time for each measurement of the rate.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Worker processes; 0: threads.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Instances in a batch.")

FAR_STEP = 1_000_000
TEMPLATE = Template((101,), (102,), (102,), 0)


def make(split: Split, seq_length: int, pairs: bool) -> Instances:
    """Instances with any special ids: they do not matter for speed."""
    return Instances(split, seq_length, 0, TEMPLATE, "pairs" if pairs else "blocks")


def plans(split: Split, seq_length: int, pairs: bool) -> dict[str, float]:
    """Slots of a pass, wall time to plan and shuffle one (median), spread of their chunks."""
    instances = make(split, seq_length, pairs)
    chunks, times = [], []
    for pass_ in range(9):
        start = time.perf_counter()
        chunks.append(len(instances.order(pass_)))
        times.append(time.perf_counter() - start)
    return {
        "per_pass": instances.per_pass,
        "plan_seconds": float(np.median(times)),
        "pass_spread": float(np.std(chunks) / np.mean(chunks)),
    }


def seek_seconds(split: Split, seq_length: int, pairs: bool, step: int) -> float:
    """Wall time from nothing to the batch of a step."""
    start = time.perf_counter()
    batches = train_batches(make(split, seq_length, pairs), _BATCH_SIZE.value, step, step + 1)
    next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return seconds


def rates(split: Split, seq_length: int, pairs: bool) -> dict[str, float]:
    """Instances per CPU second and per wall second, the first batches (start-up) left out of the
    wall time, and the share of tokens that are not padding."""
    instances = make(split, seq_length, pairs)
    instances.per_pass  # noqa: B018 (plans pass 0: measured by itself)
    cpu = cpu_seconds()
    batches = train_batches(instances, _BATCH_SIZE.value, 0, 10**9, _WORKERS.value)
    for _ in range(10):
        next(batches)
    begin, count, filled = time.perf_counter(), 0, 0
    while time.perf_counter() - begin < _SECONDS.value:
        batch = next(batches)
        count += 1
        filled += int(batch["lengths"].sum())
    wall = time.perf_counter() - begin
    batches.close()
    gc.collect()
    made = (count + 10) * _BATCH_SIZE.value
    return {
        "instances_per_cpu_second": made / (cpu_seconds() - cpu),
        "instances_per_second": count * _BATCH_SIZE.value / wall,
        "filled": filled / (count * _BATCH_SIZE.value * seq_length),
    }


class MadeUp(Split):
    """A split with an index alone."""

    def __reduce__(self) -> tuple:
        return MadeUp, self._arguments

    def tokens(self, starts: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
        lengths = (int(self.sentence_lengths[a:b].sum()) for a, b in zip(starts, ends, strict=True))
        return [np.zeros(length, np.int32) for length in lengths]


def write_index(folder: Path, sentences: int) -> None:
    """Writes an index of documents of 20 sentences of 1 to 47 tokens."""
    index_path(folder, "train", "x").parent.mkdir()
    ends = np.unique(np.append(np.arange(20, sentences, 20), sentences))
    lengths = np.random.default_rng(0).integers(1, 48, sentences, np.int32)
    for name, array in (
        ("sentence_lengths", lengths), ("document_ends", ends), ("record_ends", ends)
    ):  # fmt: skip
        np.save(index_path(folder, "train", name), array)


def starts(folder: Path, pairs: bool, workers: int) -> dict[str, float]:
    """Seconds until the first batch is there; bytes of memory that a worker has for itself."""
    instances = make(MadeUp(folder, "train", [1]), 128, pairs)
    begin = time.perf_counter()
    batches = train_batches(instances, _BATCH_SIZE.value, 0, 10**9, workers)
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(20):
        next(batches)
    own = [
        int(line.split()[1]) * 1024
        for child in multiprocessing.active_children()
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        if line.startswith("RssAnon")
    ]
    batches.close()
    return {"first_batch_seconds": first, "worker_bytes": max(own, default=0)}


def measure_starts() -> None:
    """Measures the start on an index that is made up, with workers and without."""
    found = {}
    for sentences in (_SENTENCES.value // 8, _SENTENCES.value):
        with tempfile.TemporaryDirectory() as name:
            write_index(Path(name), sentences)
            for pairs in (True, False):
                for workers in (0, _WORKERS.value):
                    layout = "pairs" if pairs else "blocks"
                    result = starts(Path(name), pairs, workers)
                    found[f"{sentences} sentences, {layout}, {workers} workers"] = result
                    print(
                        f"{sentences:>12,} sentences  {layout:6}  {workers} workers  first batch "
                        f"{result['first_batch_seconds']:6.2f} s  own memory of a worker "
                        f"{result['worker_bytes'] / 1e6:6.1f} MB"
                    )
    print(json.dumps(provenance("input") | {"starts": found}))


def main() -> None:
    """Measures pairs and blocks at 128 and 512."""
    if _SENTENCES.value:
        return measure_starts()
    if not _CORPUS.value:
        raise errors.UserError("--corpus=FOLDER is needed, or --sentences=N")
    split = open_corpus(_CORPUS.value).splits["train"]
    results = []
    for seq_length in (128, 512):
        for pairs in (True, False):
            results.append(
                {
                    "layout": "pairs" if pairs else "blocks",
                    "seq_length": seq_length,
                    **plans(split, seq_length, pairs),
                    "seek_0_seconds": seek_seconds(split, seq_length, pairs, 0),
                    f"seek_{FAR_STEP}_seconds": seek_seconds(split, seq_length, pairs, FAR_STEP),
                    **rates(split, seq_length, pairs),
                }
            )
    names = list(results[0])
    print("  ".join(names))
    for result in results:
        cells = (f"{x:.3f}" if isinstance(x, float) and x < 10 else x for x in result.values())
        cells = (f"{x:,.0f}" if isinstance(x, float | int) else x for x in cells)
        print("  ".join(f"{x:>{len(n)}}" for n, x in zip(names, cells, strict=True)))
    facts = {
        "sentences": len(split.sentence_lengths),
        "documents": len(split.document_ends),
        "tokens": int(split.sentence_lengths.sum()),
        "batch_size": _BATCH_SIZE.value,
        "workers": _WORKERS.value,
        "results": results,
    }
    print(json.dumps(provenance("input") | facts))


if __name__ == "__main__":
    entry.run(main)
