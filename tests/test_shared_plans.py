"""What is computed of a whole split: once for all processes, ahead of need, in bounded memory."""

import dataclasses
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_corpus
from reference_instances import make, random_documents

from bert_jax import main
from bert_jax.data import instances as instances_module
from bert_jax.data import layouts
from bert_jax.data.draws import Purpose, below, random_bits, uniform
from bert_jax.data.loader import train_batches
from bert_jax.data.shared import SharedArrays
from bert_jax.families import build_objective

DOCUMENTS = random_documents(np.random.default_rng(0), 20, 60, 12)


def is_mapped(array: np.ndarray) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


# Shared arrays.


def test_an_array_is_made_once_for_all_who_ask(tmp_path):
    made = []

    def make_slowly():
        made.append(1)
        time.sleep(0.2)
        return np.arange(5)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(SharedArrays(tmp_path).get("x", make_slowly)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    for array in found:
        assert is_mapped(array) and not array.flags.writeable and array.tolist() == [0, 1, 2, 3, 4]


def test_what_a_killed_process_left_is_no_array(tmp_path):
    (tmp_path / "x.lock").touch()
    (tmp_path / "x.123").write_bytes(b"\x93NUMPY half of")
    assert SharedArrays(tmp_path).get("x", lambda: np.arange(3)).tolist() == [0, 1, 2]


def test_without_a_folder_each_makes_its_own(tmp_path):
    for folder in (None, tmp_path / "gone"):
        (tmp_path / "gone").touch()  # no folder can be made there
        array = SharedArrays(folder).get("x", lambda: np.arange(3))
        assert array.tolist() == [0, 1, 2] and not is_mapped(array)


@pytest.mark.parametrize("pairs", [True, False])
def test_shared_plans_are_those_of_one_process_and_lie_in_no_memory_of_its_own(tmp_path, pairs):
    alone = make(DOCUMENTS, pairs=pairs)
    shared = dataclasses.replace(alone, shared=tmp_path)
    slots = np.arange(2 * alone.per_pass)
    ours, theirs = alone.batch(slots), shared.batch(slots)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert is_mapped(shared.order(0)) and is_mapped(shared._text.offsets)
    assert pairs or is_mapped(shared._layout.block_ends)


# The loader.


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_share_one_plan_a_pass_which_ends_with_them(folder):
    source = make(DOCUMENTS)
    steps = 8 * source.per_pass // 12
    batches = train_batches(source, 12, 0, steps, workers=2)
    next(batches)
    (plans,) = folder.iterdir()
    wait_until((plans / "order-1.npy").exists)  # before anything of it was asked for
    assert (plans / "offsets.npy").exists()
    for batch in batches:
        pass_ = int(batch["instance"][0, 0])
    assert pass_ == 7
    # In the memory of this process pass 0 alone was planned: the test asked for its length.
    assert set(source._orders) == {0}
    assert not list(folder.iterdir())


def test_the_next_pass_is_planned_ahead(monkeypatch):
    planned = []
    real = layouts.SentencePairs.chunks
    monkeypatch.setattr(
        layouts.SentencePairs, "chunks",
        lambda layout, pass_: planned.append(pass_) or real(layout, pass_),
    )  # fmt: skip
    source = make(random_documents(np.random.default_rng(0), 200, 60, 12))
    assert source.per_pass > 40 * 12  # more than is made ahead
    planned.clear()
    batches = train_batches(source, 12, 0, 10**6)
    next(batches)
    wait_until(lambda: planned == [1])
    while next(batches)["instance"][0, 0] == 0:
        pass
    wait_until(lambda: planned == [1, 2])
    batches.close()


# A run.


def test_no_input_is_started_for_shapes(corpus_path, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(main, "train_batches", lambda *a, **k: started.append(a))
    monkeypatch.setattr(main.loop, "run", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    config = tiny_corpus.small_config(workers=2)
    config.corpus = str(corpus_path)
    with pytest.raises(KeyboardInterrupt):
        main.pretrain(config, tmp_path / "run")
    assert started == []


def test_the_held_out_set_is_planned_once_a_run(corpus, monkeypatch):
    config = tiny_corpus.small_config(eval_instances=8)
    objective = build_objective(config, corpus.tokenizer.vocabulary)
    planned = []
    real = instances_module.Instances._planned
    monkeypatch.setattr(
        instances_module.Instances, "_planned",
        lambda one, pass_: planned.append(one.split.name) or real(one, pass_),
    )  # fmt: skip
    main._made.cache_clear()
    (phase,) = main.build_phases(config, corpus, objective, tiny_corpus.one_device())
    for _ in range(3):
        list(phase.evaluation())
    main.held_out_batches(config, corpus, objective, phase.seq_length, phase.batch_size)
    assert planned == ["held_out"]


# The order of a large corpus. It is by sort keys, so the place of a chunk is the share of the keys
# below its own: uniform if keys are. Two keys of 64 bits in 10^9 are alike once in 37 passes, and
# then the earlier chunk comes first.

SLOTS = 10**9


def chi_square(places: np.ndarray, cells: int) -> float:
    """In standard deviations from what is expected; places in [0, 1)."""
    counts = np.bincount((places * cells).astype(np.int64), minlength=cells)
    expected = len(places) / cells
    return (
        float(((counts - expected) ** 2 / expected).sum() - (cells - 1)) / (2 * (cells - 1)) ** 0.5
    )


def places(seed: int, pass_: int, chunks: np.ndarray) -> np.ndarray:
    return random_bits(seed, Purpose.ORDER, pass_, chunks).astype(np.float64) * 2.0**-64


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_the_order_of_a_billion_slots_is_uniform(seed):
    some = np.unique(np.random.default_rng(0).integers(0, SLOTS - 1, 400_000))
    first, next_ = places(seed, 0, some), places(seed, 0, some + 1)
    later = places(seed, 1, some)
    assert abs(chi_square(first, 1000)) < 4
    for other in (next_, later):  # neighbours in the text; the same chunk in the next pass
        assert abs(chi_square((np.floor(first * 30) + other) / 30, 900)) < 4
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / len(some) ** 0.5
        assert abs(chi_square((first - other) % 1, 1000)) < 4
    run = places(seed, 0, np.arange(SLOTS - 400_000, SLOTS))  # consecutive chunks, at the end
    assert abs(chi_square(run, 1000)) < 4
    assert len(np.unique(random_bits(seed, Purpose.ORDER, 0, some))) == len(some)


def test_a_choice_among_a_billion_is_uniform():
    drawn = below(uniform(0, Purpose.RANDOM_DOCUMENT, 0, np.arange(400_000)), SLOTS)
    assert drawn.min() >= 0 and drawn.max() < SLOTS
    assert abs(chi_square(drawn / SLOTS, 1000)) < 4
    assert abs(chi_square(drawn % 1000 / 1000, 1000)) < 4  # the last digits, too
