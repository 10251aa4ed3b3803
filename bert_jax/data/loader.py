"""Batches of instances for one process, loaded ahead by Grain threads or worker processes.

Step t of a run takes slots t * batch_size .. of `Instances`, whatever the number of processes,
workers or devices; so the state of the input is one integer, the step.
"""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import grain
import numpy as np
from absl import flags

from bert_jax.common.errors import Restart
from bert_jax.data.instances import Batch, Instances

# Reading and NumPy release the interpreter's lock only in part: more threads gain nothing.
_THREADS = 2
_PREFETCH = 8  # batches made ahead in this process, or in each worker


def train_batches(
    instances: Instances,
    batch_size: int,
    start_step: int,
    stop_step: int,
    workers: int = 0,
    rows: np.ndarray | None = None,
) -> Generator[Batch, None, None]:
    """The batches of steps start_step .. stop_step - 1; finding the first costs the same for all.

    Args:
      instances: where they come from.
      batch_size: global, over all processes.
      start_step, stop_step: steps of the whole run.
      workers: processes that make batches ahead; 0: threads of this process.
      rows: which rows of each batch this process makes, int[B]; None: all.

    Returns:
      Generator of batches as of `Instances.batch`. Its close() ends threads and workers; so do its
      end, an error and garbage collection. Raises Restart: a worker was killed.
    """
    rows = np.arange(batch_size) if rows is None else rows
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_temporary_folder()) if workers else None
        if folder:
            instances = dataclasses.replace(instances, shared=folder)
        source = _Steps(instances, batch_size, rows, stop_step)
        # A whole batch is one element of the source: batching after the split over workers would
        # make the contents of batches depend on their number.
        steps = grain.MapDataset.source(source).slice(slice(start_step, stop_step))
        batches = steps.to_iter_dataset(
            grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH)
        )
        if workers:
            if not flags.FLAGS.is_parsed():  # in a notebook: Grain's own flags keep their defaults
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
                worker_init_fn=functools.partial(_live_as_long_as_the_run, folder),
            )
        planned = None
        _plan_ahead(instances, start_step * batch_size)
        for step, batch in enumerate(stack.enter_context(_closing(batches)), start_step):
            pass_ = int(batch["instance"][0, 0])
            if planned is not None and pass_ != planned:
                _plan_ahead(instances, step * batch_size)
            planned = pass_
            yield batch


def _plan_ahead(instances: Instances, slot: int) -> None:
    """Begins to plan the passes from that of a slot on, beside everything else.

    Where that fails, the batches fail, too, and say why.
    """

    def work() -> None:
        with contextlib.suppress(Exception):
            instances.plan_ahead(slot)

    # Waited for where Python ends: a thread that is within NumPy then would abort the process.
    threading.Thread(target=work).start()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path | None]:
    """Gives a folder for the time of the block; None where none can be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="bert_jax-", ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with folder as name:
        yield Path(name)


def eval_batches(
    instances: Instances,
    batch_size: int,
    count: int | None = None,
    rows: np.ndarray | None = None,
) -> list[Batch]:
    """The first `count` instances of pass 0, or all of it: for a fixed seed, a fixed random sample.

    Args:
      instances: of the held-out split, under a seed that is the same for all runs to be compared.
      batch_size: global, over all processes.
      count: instances over all processes; more than a pass has means all of it.
      rows: which rows of each batch this process makes, int[B]; None: all.

    Returns:
      Batches of one shape as of `Instances.batch`. The last is filled up with copies of slot 0 of
      weight 0: real text, so that nothing computed from it is infinite.
    """
    rows = np.arange(batch_size) if rows is None else rows
    count = instances.per_pass if count is None else min(count, instances.per_pass)
    batches = []
    for first_slot in range(0, count, batch_size):
        slots = first_slot + rows
        is_real = slots < count
        batch = instances.batch(np.where(is_real, slots, 0))
        batch["weight"] = is_real.astype(np.float32)
        batches.append(batch)
    return batches


def logged(
    batches: Generator[Batch, None, None], start_step: int, path: Path
) -> Generator[Batch, None, None]:
    """The batches, each with a line in the file: {"step", "instances": [[pass, index], ...]}.

    A step that was done again after a restart has a line each time.
    """
    with path.open("a") as file, contextlib.closing(batches):
        for step, batch in enumerate(batches, start_step):
            file.write(json.dumps({"step": step, "instances": batch["instance"].tolist()}) + "\n")
            file.flush()
            yield batch


class _Steps:
    """Random-access source for Grain: element t is this process's rows of the batch of step t."""

    def __init__(self, instances: Instances, batch_size: int, rows: np.ndarray, stop_step: int):
        self._instances, self._batch_size = instances, batch_size
        self._rows, self._stop_step = rows, stop_step

    def __len__(self) -> int:
        return self._stop_step

    def __getitem__(self, step: int) -> Batch:
        return self._instances.batch(step * self._batch_size + self._rows)


def _live_as_long_as_the_run(folder: Path | None, worker: int, workers: int) -> None:
    """In a worker: signals to all processes are for the run, which may save before it ends.

    folder: to be removed if the run was killed and cannot do it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = multiprocessing.parent_process()
    assert run is not None

    def end_with_it() -> None:  # when it was killed, too, and could not say so
        run.join()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


@contextlib.contextmanager
def _closing(batches: grain.IterDataset) -> Iterator[Iterator[Batch]]:
    """Gives an iterator; ends the threads and workers behind it whichever way the block ends."""
    iterator = iter(batches)
    try:
        yield iterator
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise Restart(
            "a worker of the input was killed, or there was too little memory for it; the same "
            "command goes on, perhaps with fewer --config.workers"
        ) from error
    finally:
        iterator.close()
