"""The loader: the same batches whatever the workers, processes and the step it starts from."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from reference_instances import make, random_documents

from bert_jax.common.errors import Restart, UserError
from bert_jax.data.loader import eval_batches, train_batches

BATCH, STEPS = 12, 40


@pytest.fixture(scope="module")
def instances():
    documents = random_documents(np.random.default_rng(0), 10, 30, 12)
    result = make(documents)
    assert result.per_pass < BATCH * STEPS / 2  # so that the tests cross passes
    return result


@pytest.fixture(scope="module")
def expected(instances):
    return [instances.batch(np.arange(t * BATCH, (t + 1) * BATCH)) for t in range(STEPS)]


def shares(processes):
    """The rows of each process."""
    return np.split(np.arange(BATCH), processes)


def assert_same(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            assert np.array_equal(batch[name], other[name]), name


@pytest.mark.parametrize(("workers", "start"), [(0, 0), (2, 9), (3, 0)])
def test_batches_do_not_depend_on_the_workers(instances, expected, workers, start):
    assert_same(train_batches(instances, BATCH, start, STEPS, workers), expected[start:])


def test_every_start_step_gives_the_rest_of_the_run(instances, expected):
    for start in (0, 1, 7, STEPS - 1, STEPS):
        assert_same(train_batches(instances, BATCH, start, STEPS), expected[start:])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_rows_of_the_processes_make_the_global_batch(instances, expected, processes):
    parts = [train_batches(instances, BATCH, 5, STEPS, rows=rows) for rows in shares(processes)]
    joined = (
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    )
    assert_same(joined, expected[5:])


def test_a_far_step_is_reached_at_once(instances):
    start = time.perf_counter()
    batch = next(train_batches(instances, BATCH, 10**8, 10**8 + 1))
    assert time.perf_counter() - start < 1
    assert (batch["instance"] == instances.ids(10**8 * BATCH + np.arange(BATCH))).all()
    first_slot = 10**8 * BATCH
    assert batch["instance"][0].tolist() == list(divmod(first_slot, instances.per_pass))


def test_abandoned_iterators_leave_no_thread_and_no_process(instances):
    def others():
        return threading.active_count(), len(multiprocessing.active_children())

    before = others()
    batches = train_batches(instances, BATCH, 0, 10**6)
    next(batches)
    batches.close()
    with_workers = train_batches(instances, BATCH, 0, 10**6, workers=1)
    next(with_workers)
    assert len(multiprocessing.active_children()) == before[1] + 1
    del with_workers  # garbage collection closes, too
    deadline = time.monotonic() + 10
    while others() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []
    assert others()[0] <= before[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_leave_signals_to_the_run(instances, expected, number):
    """Ctrl-C and some schedulers send them to all processes, and the run saves before it ends."""
    batches = train_batches(instances, BATCH, 0, STEPS, workers=1)
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert_same([first, *batches], expected)


def test_a_worker_that_was_killed_is_a_restart(instances):
    """As by the kernel, where memory runs out."""
    batches = train_batches(instances, BATCH, 0, 10**6, workers=1)
    next(batches)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(Restart, match="the same command goes on"):
        list(batches)


def hand_over_a_worker(instances, pipe):
    batches = train_batches(instances, BATCH, 0, 10**6, workers=1)
    next(batches)
    pipe.send(multiprocessing.active_children()[0].pid)
    pipe.recv()  # for ever


def test_workers_do_not_outlive_a_run_that_was_killed(instances):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    run = context.Process(target=hand_over_a_worker, args=(instances, there))
    run.start()
    worker = here.recv()
    run.kill()
    run.join()
    deadline = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    """Not so of a zombie, which whoever adopted it has not yet waited for."""
    status = Path("/proc", str(pid), "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_error_while_reading_reaches_the_caller(instances):
    class Broken:
        sentence_lengths, document_ends = np.array([5, 5], np.int32), np.array([1, 2])

        def tokens(self, starts, ends):
            raise UserError("shard 3 of the corpus is truncated")

    broken = make([[[5]]])
    broken.split = Broken()
    with pytest.raises(UserError, match="shard 3"):
        next(train_batches(broken, BATCH, 0, 5))
    with pytest.raises(UserError, match="shard 3"):
        next(train_batches(broken, BATCH, 0, 5, workers=1))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_takes_the_first_instances_once_and_fills_up(instances, processes):
    count = 29  # 2 full batches of 12, then 5 of 12
    parts = [eval_batches(instances, BATCH, count, rows) for rows in shares(processes)]
    batches = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert [len(b["tokens"]) for b in batches] == [BATCH] * 3
    weight = np.concatenate([b["weight"] for b in batches])
    assert weight.tolist() == [1.0] * count + [0.0] * 7
    expected = instances.batch(np.arange(count))
    for name in expected.keys() - {"weight"}:
        joined = np.concatenate([b[name] for b in batches])
        assert np.array_equal(joined[:count], expected[name])
        assert all(np.array_equal(row, expected[name][0]) for row in joined[count:])
    assert batches[-1]["lengths"].min() >= 3


def test_evaluation_takes_no_more_than_a_pass(instances):
    for count in (None, 10**9):
        batches = eval_batches(instances, BATCH, count)
        assert sum(b["weight"].sum() for b in batches) == instances.per_pass
        ids = np.concatenate([b["instance"][b["weight"] > 0] for b in batches])
        assert ids.tolist() == [[0, i] for i in range(instances.per_pass)]


def test_ids_of_a_step_are_those_of_its_batch(instances, expected):
    for step in itertools.islice(range(STEPS), 0, STEPS, 7):
        ids = instances.ids(step * BATCH + np.arange(BATCH))
        assert np.array_equal(ids, expected[step]["instance"])
