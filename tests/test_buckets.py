"""Batches by length: every example in its turn, little padding, and the same from any start."""

import collections

import numpy as np
import pytest

from bert_jax.data.buckets import (
    POOL,
    collate,
    eval_plan,
    ladder,
    padding,
    train_batches,
    train_plan,
    training_widths,
    width_for,
)

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(3, 100, 1000)


def rows(lengths, **more):
    return [
        {
            "tokens": np.arange(1, n + 1, dtype=np.int32),
            "segments": np.ones(n, np.int32),
            "label": np.array(i, np.int32),
            **{name: np.full(n, i, np.int32) for name in more},
        }
        for i, n in enumerate(lengths)
    ]


# The ladder.


def test_widths_are_powers_of_two_and_their_middles():
    assert ladder(512) == (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    for length, width in ((length, width_for(length, ladder(512))) for length in range(1, 513)):
        assert width >= length
        assert width == 16 or width <= 1.5 * length


def test_no_width_is_over_the_longest_allowed():
    assert width_for(300, ladder(320)) == 320  # not 384
    assert width_for(3, ladder(10)) == 10
    assert width_for(320, ladder(320)) == 320


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, (96, 128)),  # evaluation may have longer ones
        (37, (96, 128)),
        (150, (48, 96, 128)),
        (300, (32, 64, 96, 128)),
        (10**6, (16, 24, 32, 48, 64, 96, 128)),
    ],
)
def test_a_training_takes_as_many_widths_as_its_steps_pay_for(steps, expected):
    """Each saves the computing of 25 steps of the greatest, at least."""
    assert training_widths(LENGTHS[LENGTHS < 90], 8, steps, 128) == expected


def test_features_of_one_length_need_one_width():
    assert training_widths(np.full(100, 20), 8, 10**6, 32) == (24, 32)
    assert training_widths(np.array([50]), 8, 10, 40) == (40,)


# Collating.


def test_rows_are_padded_at_the_end_to_one_width():
    batch = collate(rows([3, 20], token_labels=True), 2, pad_id=9, widths=ladder(64))
    assert (
        batch["tokens"].shape == batch["segments"].shape == batch["token_labels"].shape == (2, 24)
    )
    for row, n in enumerate((3, 20)):
        assert batch["tokens"][row].tolist() == [*range(1, n + 1), *[9] * (24 - n)]
        assert batch["segments"][row].tolist() == [1] * n + [0] * (24 - n)
        assert batch["token_labels"][row].tolist() == [row] * n + [-1] * (24 - n)
    assert batch["lengths"].tolist() == [3, 20]
    assert batch["label"].tolist() == [0, 1]
    assert batch["weight"].tolist() == [1.0, 1.0]
    assert {name: str(x.dtype) for name, x in batch.items()} == {
        "tokens": "int32", "segments": "int32", "token_labels": "int32", "label": "int32",
        "lengths": "int32", "weight": "float32",
    }  # fmt: skip


def test_missing_rows_are_copies_of_weight_zero():
    batch = collate(rows([5, 7]), 4, 0, ladder(64))
    assert batch["weight"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert batch["lengths"].tolist() == [5, 7, 5, 5]
    np.testing.assert_array_equal(batch["tokens"][2], batch["tokens"][0])


def test_choices_are_padded_together():
    choice = {
        "tokens": np.full((4, 18), 5, np.int32),
        "segments": np.zeros((4, 18), np.int32),
        "lengths": np.array([18, 3, 4, 5], np.int32),
        "label": np.array(2, np.int32),
    }
    batch = collate([choice], 2, pad_id=0, widths=ladder(64))
    assert batch["tokens"].shape == (2, 4, 24)
    assert batch["tokens"][0, 1].tolist() == [5] * 18 + [0] * 6  # a choice's own padding is its own
    assert batch["lengths"].tolist() == [[18, 3, 4, 5]] * 2
    assert batch["weight"].tolist() == [1.0, 0.0]


# Training.


def plan(lengths=LENGTHS, batch_size=8, seed=3, steps=500, start=0):
    return np.array(list(train_plan(lengths, batch_size, seed, steps, start)))


@pytest.mark.parametrize("count", [1000, 7, 513])
@pytest.mark.parametrize("steps", [POOL // 2, POOL, 500])
def test_a_run_takes_the_first_of_the_stream_each_epoch_every_example_once(count, steps):
    """Epochs end inside pools and batches; only the last one may be cut off."""
    batch_size = 8
    counts = collections.Counter(plan(LENGTHS[:count], batch_size, steps=steps).ravel().tolist())
    epochs, rest = divmod(steps * batch_size, count)
    assert sum(counts.values()) == steps * batch_size
    assert set(counts.values()) <= {epochs, epochs + 1}
    assert sum(n == epochs + 1 for n in counts.values()) == rest


def test_a_pool_holds_the_stream_of_its_steps():
    """An example comes at most a pool away from its place: epoch by epoch, not over the run."""
    batch_size, count = 8, len(LENGTHS)
    steps = plan()
    per_epoch = count // batch_size  # 125 steps; an epoch lies in the pools that its steps touch
    touched = steps[: -(-per_epoch // POOL) * POOL].ravel()
    assert set(touched.tolist()) == set(range(count))


def test_batches_are_the_same_from_any_start():
    whole = plan()
    for start in (0, 1, POOL - 1, POOL, POOL + 5, 499, 500):
        part = plan(start=start)
        assert len(part) == 500 - start
        if start < 500:
            np.testing.assert_array_equal(part, whole[start:])


def test_order_is_that_of_the_seed_and_of_the_epoch():
    assert not np.array_equal(plan(seed=3), plan(seed=4))
    np.testing.assert_array_equal(plan(seed=-1), plan(seed=-1))
    one_epoch = np.array(list(train_plan(LENGTHS[:512], 8, 3, 128)))
    first, second = (
        {tuple(sorted(batch)) for batch in part.tolist()}
        for part in (one_epoch[:64], one_epoch[64:])
    )
    assert len(first & second) < 32  # not the same batches in another order


def test_batches_of_a_pool_are_in_random_order():
    """A run must not go from short to long texts."""
    means = LENGTHS[plan()].mean(axis=1)
    for first in range(0, 448, POOL):
        in_pool = means[first : first + POOL]
        assert abs(np.corrcoef(np.arange(POOL), in_pool)[0, 1]) < 0.4
    positions = [np.argmin(means[first : first + POOL]) for first in range(0, 448, POOL)]
    assert len(set(positions)) > 3


def test_few_examples_do_not_stand_beside_their_copies():
    """A pool of several epochs would sort the copies of an example into one batch."""
    steps = plan(LENGTHS[:40], batch_size=8, steps=50)
    assert all(len(set(batch)) == 8 for batch in steps.tolist())


def test_similar_lengths_come_together():
    batches = list(train_batches(rows(LENGTHS), 8, 0, 200, 0, ladder(128), 0, 200))
    real = sum(int(batch["lengths"].sum()) for batch in batches)
    padded = sum(batch["tokens"].size for batch in batches)
    everything = 200 * 8 * 128
    shapes = {batch["tokens"].shape for batch in batches}
    assert padding(rows(LENGTHS), 8, 0, 200, ladder(128)) == {
        "text_tokens": real,
        "computed_tokens": padded,
        "computed_without_buckets": everything,
        "widths": len(shapes),
    }
    print(
        f"real {real / padded:.2f} of the computed; padded to the longest {real / everything:.2f}"
    )
    assert real / padded > 0.8
    assert real / everything < 0.5
    assert len(shapes) <= 7  # programs to compile


def test_every_ending_of_a_choice_is_computed():
    features = [
        {
            "tokens": np.ones((4, n), np.int32),
            "segments": np.ones((4, n), np.int32),
            "lengths": np.array([n, 3, 4, 5], np.int32),
        }
        for n in (10, 20, 40, 40)
    ]
    batches = list(train_batches(features, 2, 0, 6, 0, ladder(64), 0, 6))
    assert padding(features, 2, 0, 6, ladder(64)) == {
        "text_tokens": sum(int(batch["lengths"].sum()) for batch in batches),
        "computed_tokens": sum(batch["tokens"].size for batch in batches),
        "computed_without_buckets": 6 * 2 * 4 * 64,
        "widths": len({batch["tokens"].shape for batch in batches}),
    }


def test_train_batches_are_those_of_the_plan():
    features = rows(LENGTHS)
    batches = list(train_batches(features, 8, 3, 500, 0, ladder(128), start=70, stop=75))
    np.testing.assert_array_equal([batch["label"] for batch in batches], plan()[70:75])
    assert all(batch["weight"].all() for batch in batches)


# Evaluation.


@pytest.mark.parametrize("most_tokens", [None, 300])
@pytest.mark.parametrize("count", [0, 1, 8, 21])
def test_evaluation_sees_every_feature_once(count, most_tokens):
    features = rows(LENGTHS[:count])
    seen = []
    for indices, size in eval_plan(LENGTHS[:count], ladder(128), 8, most_tokens):
        batch = collate([features[index] for index in indices], size, 0, ladder(128))
        assert batch["tokens"].shape[0] == size
        real = batch["weight"] > 0
        assert real.sum() == len(indices)
        assert batch["label"][real].tolist() == indices.tolist()
        seen += indices.tolist()
    assert sorted(seen) == list(range(count))


def test_evaluation_begins_with_the_longest():
    longest = [LENGTHS[indices[0]] for indices, _ in eval_plan(LENGTHS, ladder(128), 8)]
    assert longest == sorted(LENGTHS, reverse=True)[::8]


def test_long_sequences_are_fewer_at_a_time():
    """One of 300 tokens among 31 of 10: else all 32 would be computed on as if they had 384."""
    plan = eval_plan([10] * 20 + [300] + [10] * 11, ladder(512), 32, 32 * 64)
    assert [(len(indices), size) for indices, size in plan] == [(4, 4), (28, 32)]
    assert eval_plan([400], ladder(512), 8, 64)[0][1] == 1
