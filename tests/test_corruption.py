"""Which tokens are predicted and what stands in their place: the facts of C1 and Table 8."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.objectives import corruption
from bert_jax.objectives.corruption import Masking, corrupt, instance_keys

CLS, SEP, MASK = 2, 3, 4
PLAIN = Masking(vocab_size=200, mask_id=MASK, never=(CLS, SEP))


def instances(rows: int, size: int, seed: int = 0, full: bool = False, vocab_size: int = 200):
    """[CLS] A [SEP] B [SEP] padding, of random lengths; ids as `(pass, index)`."""
    rng = np.random.default_rng(seed)
    lengths = np.full(rows, size) if full else rng.integers(5, size + 1, rows)
    tokens = rng.integers(5, vocab_size, (rows, size))
    middle = rng.integers(2, lengths - 2)
    place = np.arange(size)
    tokens[:, 0] = CLS
    tokens[place == middle[:, None]] = SEP
    tokens[place == lengths[:, None] - 1] = SEP
    tokens[place >= lengths[:, None]] = 0
    ids = np.stack([np.full(rows, seed), np.arange(rows)], axis=1)
    return tuple(np.asarray(x, np.int32) for x in (tokens, lengths, ids))


@functools.cache
def compiled(masking):
    def run(tokens, lengths, ids, seed):
        return corrupt(masking, tokens, lengths, instance_keys(jax.random.key(seed), ids))

    return jax.jit(run)


def run(masking, tokens, lengths, ids, seed=0):
    return jax.tree.map(np.asarray, compiled(masking)(tokens, lengths, ids, seed))


def whole_word_masking(continuation, **changes):
    """`continuation` as a tuple, so that the setting can be looked up in `compiled`."""
    return dataclasses.replace(PLAIN, continuation=tuple(continuation), **changes)


def candidates(tokens, lengths):
    """bool[B, S]: real tokens that are neither [CLS] nor [SEP]."""
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    return real & (tokens != CLS) & (tokens != SEP)


def released_number(length: int, rate: float, most: int) -> int:
    """`num_to_predict` of create_pretraining_data.py."""
    return min(most, max(1, round(length * rate)))


def within_binomial(count: int, number: int, share: float, sigmas: float = 5) -> bool:
    spread = math.sqrt(number * share * (1 - share))
    return abs(count - number * share) <= max(sigmas * spread, 1e-9)


# How many.


@pytest.mark.parametrize(("size", "number"), [(128, 19), (16, 2), (7, 1)])
def test_slots_and_predictions_of_a_full_sequence(size, number):
    assert PLAIN.slots(size) == number
    tokens, lengths, ids = instances(16, size, full=True)
    out = run(PLAIN, tokens, lengths, ids)
    assert out["positions"].shape == (16, number)
    assert np.array_equal(out["weights"], np.ones((16, number)))


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.25])
def test_number_is_the_share_of_all_tokens_rounded_half_to_even(rate):
    """Every length to 512; [CLS] and [SEP] count, ties go to the even number, at least one."""
    masking = dataclasses.replace(PLAIN, rate=rate)
    lengths = np.arange(3, 513, dtype=np.int32)
    tokens = np.where(np.arange(512) < lengths[:, None], 50, 0).astype(np.int32)
    ids = np.stack([lengths * 0, lengths], axis=1)
    weights = run(masking, tokens, lengths, ids)["weights"]
    expected = [released_number(int(n), rate, 512) for n in lengths]
    assert weights.sum(1).astype(int).tolist() == expected
    assert (weights.sum(1) >= 1).all()
    if rate == 0.15:  # 1.5 -> 2, 4.5 -> 4, 7.5 -> 8, 10.5 -> 10
        assert [expected[n - 3] for n in (10, 30, 50, 70)] == [2, 4, 8, 10]
        assert masking.slots(512) == expected[512 - 3] == 77


@pytest.mark.parametrize(("most", "number"), [(20, 19), (10, 10), (1, 1)])
def test_max_predictions_bounds_slots_and_predictions(most, number):
    masking = dataclasses.replace(PLAIN, max_predictions=most)
    out = run(masking, *instances(8, 128, full=True))
    assert masking.slots(128) == out["positions"].shape[1] == number
    assert (out["weights"].sum(1) == number).all()


def test_max_predictions_of_the_released_512_setting():
    assert dataclasses.replace(PLAIN, max_predictions=20).slots(512) == 20


def test_fewer_candidates_than_predictions():
    """[CLS] x [SEP] [SEP] with half to predict: the only candidate, once; and none of none."""
    masking = dataclasses.replace(PLAIN, rate=0.5)
    tokens = np.array([[CLS, 9, SEP, SEP], [CLS, SEP, SEP, 0], [0, 0, 0, 0]], np.int32)
    ids = np.zeros((3, 2), np.int32)
    out = run(masking, tokens, np.array([4, 3, 0], np.int32), ids)
    assert out["weights"].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert out["positions"].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert out["labels"].tolist() == [[9, 0], [0, 0], [0, 0]]
    assert np.array_equal(out["tokens"][1:], tokens[1:])


# Where, and what is left alone.


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("size", [16, 128])
def test_structure_of_many_batches(size, whole_words):
    masking = whole_word_masking(np.arange(200) % 3 == 0) if whole_words else PLAIN
    for seed in range(4):
        tokens, lengths, ids = instances(256, size, seed)
        out = run(masking, tokens, lengths, ids)
        allowed = candidates(tokens, lengths)
        for row in range(len(tokens)):
            used = out["weights"][row] == 1
            number = int(used.sum())
            assert set(out["weights"][row]) <= {0.0, 1.0}
            assert used[:number].all()  # used slots first
            wanted = released_number(int(lengths[row]), 0.15, masking.slots(size))
            # Every other token would be a candidate, so there are always enough of them.
            assert number <= wanted if whole_words else number == min(wanted, allowed[row].sum())
            at = out["positions"][row][used]
            assert (np.diff(at) > 0).all()  # ascending and distinct
            assert allowed[row][at].all()  # never [CLS], [SEP], padding
            assert np.array_equal(out["labels"][row][used], tokens[row][at])
            assert not out["positions"][row][~used].any()
            assert not out["labels"][row][~used].any()
            untouched = np.ones(size, bool)
            untouched[at] = False
            assert np.array_equal(out["tokens"][row][untouched], tokens[row][untouched])


def test_every_candidate_is_equally_likely():
    tokens, lengths, _ = instances(1, 64, seed=3)
    rows = 20_000
    ids = np.stack([np.zeros(rows), np.arange(rows)], 1).astype(np.int32)
    out = run(PLAIN, np.repeat(tokens, rows, 0), np.repeat(lengths, rows), ids)
    used = out["weights"] == 1
    allowed = candidates(tokens, lengths)[0]
    number, free = int(used[0].sum()), int(allowed.sum())
    hits = np.bincount(out["positions"][used], minlength=64)
    assert not hits[~allowed].any()
    assert all(within_binomial(n, rows, number / free) for n in hits[allowed])
    # Pairs as well: choosing k of n without replacement, each pair has k(k-1)/(n(n-1)).
    chosen = np.zeros((rows, 64))
    chosen[np.arange(rows)[:, None].repeat(used.shape[1], 1)[used], out["positions"][used]] = 1
    both = (chosen.T @ chosen)[np.ix_(allowed, allowed)][np.triu_indices(free, 1)]
    share = number * (number - 1) / (free * (free - 1))
    assert all(within_binomial(n, rows, share, 5.5) for n in both)


# What stands there.

TABLE_8 = [(0.8, 0.1), (1.0, 0.0), (0.8, 0.2), (0.8, 0.0), (0.0, 0.8), (0.0, 1.0)]  # MASK, RND


def test_shares_of_mask_random_and_same():
    tokens, lengths, ids = instances(2000, 128, full=True)
    keys = instance_keys(jax.random.key(0), jnp.asarray(ids))

    @jax.jit
    def hide(mask, random):
        masking = dataclasses.replace(PLAIN, mask_share=mask, random_share=random)
        return corrupt(masking, tokens, lengths, keys)

    for mask, random in TABLE_8:
        out = jax.tree.map(np.asarray, hide(mask, random))
        seen = np.take_along_axis(out["tokens"], out["positions"], 1)[out["weights"] == 1]
        labels = out["labels"][out["weights"] == 1]  # never 4 = [MASK], nor any id below 5
        number, size = len(seen), PLAIN.vocab_size
        assert number == 2000 * 19
        # A random id is [MASK] or the original token itself once in V draws each.
        assert within_binomial((seen == MASK).sum(), number, mask + random / size)
        same = 1 - mask - random
        assert within_binomial((seen == labels).sum(), number, same + random / size)
        other = (seen != MASK) & (seen != labels)
        assert within_binomial(other.sum(), number, random * (1 - 2 / size))
        if random == 0:
            assert not other.any()


def test_kinds_do_not_depend_on_the_slot_or_on_each_other():
    tokens, lengths, ids = instances(4000, 128, full=True)
    out = run(PLAIN, tokens, lengths, ids)
    masked = np.take_along_axis(out["tokens"], out["positions"], 1) == MASK
    share = 0.8 + 0.1 / 200
    assert all(within_binomial(n, 4000, share) for n in masked.sum(0))
    correlation = np.corrcoef(masked.T) - np.eye(19)
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)
    variance = masked.sum(1).var() / (19 * share * (1 - share))
    assert abs(variance - 1) < 5 * math.sqrt(2 / 4000)


def test_each_draw_has_a_key_of_its_own(monkeypatch):
    """Which tokens, how each is hidden, and by which word."""
    used = []
    for name in ("uniform", "randint"):
        real = getattr(jax.random, name)

        def drawn(key, *arguments, real=real):
            used.append(jax.random.key_data(key).tolist())
            return real(key, *arguments)

        monkeypatch.setattr(jax.random, name, drawn)
    tokens, lengths, _ = instances(1, 32, full=True)
    corruption._corrupt_one(PLAIN, jnp.asarray(tokens[0]), lengths[0], jax.random.key(0))
    assert len(used) == len(set(map(tuple, used))) == 3


def test_random_words_are_uniform_over_the_whole_vocabulary():
    """[PAD], [CLS], [SEP], [MASK] and the original token included (as released)."""
    masking = dataclasses.replace(PLAIN, mask_share=0.0, random_share=1.0)
    out = run(masking, *instances(4000, 128, full=True))
    words = np.take_along_axis(out["tokens"], out["positions"], 1).ravel()
    observed = np.bincount(words, minlength=200)
    assert len(observed) == 200
    mean = len(words) / 200
    chi_square = ((observed - mean) ** 2 / mean).sum()
    assert abs(chi_square - 199) < 5 * math.sqrt(2 * 199)
    assert all(within_binomial(observed[i], len(words), 1 / 200) for i in (0, CLS, SEP, MASK, 199))
    labels = out["labels"].ravel()
    assert within_binomial((words == labels).sum(), len(words), 1 / 200)


# Whole words.


def released_whole_words(tokens, length, continuation, order, number):
    """`create_masked_lm_predictions` up to the choice of positions.

    order: the words in the order that `rng.shuffle` would have put them in.
    """
    cand_indexes = []
    for i, token in enumerate(tokens[:length]):
        if token in (CLS, SEP):
            continue
        if len(cand_indexes) >= 1 and continuation[token]:
            cand_indexes[-1].append(i)
        else:
            cand_indexes.append([i])
    masked: list[int] = []
    for word in order(len(cand_indexes)):
        index_set = cand_indexes[word]
        if len(masked) >= number:
            break
        if len(masked) + len(index_set) > number:
            continue
        masked.extend(index_set)
    return sorted(masked), cand_indexes


def first_words(priority, words: int):
    return np.argsort(priority[:words])


@pytest.mark.parametrize(
    ("size", "pieces", "most"), [(16, 0.3, None), (64, 0.6, 20), (128, 0.2, 5)]
)
def test_whole_words_equal_the_released_algorithm(size, pieces, most):
    continuation = np.random.default_rng(1).random(200) < pieces
    continuation[:5] = False
    masking = whole_word_masking(continuation, max_predictions=most)
    short = 0
    for seed in range(2):
        tokens, lengths, ids = instances(200, size, seed)
        out = run(masking, tokens, lengths, ids)
        keys = instance_keys(jax.random.key(0), jnp.asarray(ids))
        # Words are taken in the order of the first of the three draws of an instance's key.
        draw = jax.vmap(lambda key: jax.random.uniform(jax.random.split(key, 3)[0], (size,)))
        priority = np.asarray(draw(keys))
        for row in range(len(tokens)):
            order = functools.partial(first_words, priority[row])
            used = out["weights"][row] == 1
            number = released_number(int(lengths[row]), 0.15, masking.slots(size))
            expected, words = released_whole_words(
                tokens[row],
                lengths[row],
                continuation,
                order,
                number,
            )
            chosen = out["positions"][row][used].tolist()
            assert chosen == expected
            assert len(chosen) <= number
            whole = [set(word) <= set(chosen) or not set(word) & set(chosen) for word in words]
            assert all(whole)
            short += len(chosen) < number
    if pieces > 0.5:
        assert short > 0  # only words that would overshoot were left


def test_pieces_of_a_word_are_hidden_independently():
    """80/10/10 is drawn for each piece (as released), though the word is chosen as one."""
    continuation = np.arange(200) >= 100
    masking = whole_word_masking(continuation, rate=0.25)
    rows = 8000
    tokens = np.tile([CLS, *[50, 150] * 3, SEP], (rows, 1)).astype(np.int32)  # three words of two
    ids = np.stack([np.zeros(rows), np.arange(rows)], 1).astype(np.int32)
    out = run(masking, tokens, np.full(rows, 8, np.int32), ids)
    assert (out["positions"][:, 1] == out["positions"][:, 0] + 1).all()
    masked = np.take_along_axis(out["tokens"], out["positions"], 1) == MASK
    share = 0.8 + 0.1 / 200
    assert within_binomial(masked.sum(), 2 * rows, share)
    assert within_binomial(masked.all(1).sum(), rows, share**2)
    first = out["positions"][:, 0]
    assert set(first.tolist()) == {1, 3, 5}
    assert all(within_binomial((first == at).sum(), rows, 1 / 3) for at in (1, 3, 5))


# A pure function of (instance id, seed).


@pytest.mark.parametrize("whole_words", [False, True])
def test_an_instance_is_corrupted_alike_wherever_it_stands(mesh, whole_words):
    masking = whole_word_masking(np.arange(200) % 3 == 0) if whole_words else PLAIN
    arrays = instances(64, 32, seed=1)
    out = run(masking, *arrays)

    order = np.random.default_rng(0).permutation(64)
    moved = run(masking, *(x[order] for x in arrays))
    one_by_one = [run(masking, *(x[i : i + 1] for x in arrays)) for i in (0, 17, 63)]
    some = run(masking, *(x[10:17] for x in arrays))

    sharding = NamedSharding(mesh, PartitionSpec(("data", "tensor")))
    sharded = compiled(masking)(*(jax.device_put(x, sharding) for x in arrays), 0)
    assert len(sharded["tokens"].sharding.device_set) == 8
    for name, value in out.items():
        assert np.array_equal(moved[name], value[order])
        assert np.array_equal(some[name], value[10:17])
        assert np.array_equal(sharded[name], value)
        for place, alone in zip((0, 17, 63), one_by_one, strict=True):
            assert np.array_equal(alone[name][0], value[place])


def test_ids_passes_and_seeds_give_different_masks():
    """The same text under another index, another pass (dynamic masking), another seed."""
    rows = 200
    tokens, lengths, _ = instances(1, 128, full=True)
    tokens, lengths = np.repeat(tokens, rows, 0), np.repeat(lengths, rows)
    index = np.arange(rows)

    def positions(pass_, seed=0, index=index):
        ids = np.stack([np.full(rows, pass_), index], 1).astype(np.int32)
        return run(PLAIN, tokens, lengths, ids, seed)["positions"]

    def overlap(one, other):
        return np.mean([len(np.intersect1d(a, b)) for a, b in zip(one, other, strict=True)])

    first = positions(0)
    assert np.array_equal(first, positions(0))  # static masking: the same (pass, index) again
    # Two independent choices of 19 of 125 share 19²/125 = 2.9 on average.
    chance = 19**2 / 125
    others = [positions(1), positions(2), positions(0, seed=1), np.roll(first, 1, 0)]
    # (pass, index) is an ordered pair: (1, i) is neither (i, 1) nor (0, i + 1).
    others.append(np.roll(positions(1), 1, 0))
    swapped = run(PLAIN, tokens, lengths, np.stack([index, np.ones(rows)], 1).astype(np.int32))[
        "positions"
    ]
    others.append(np.where(index[:, None] == 1, positions(2), swapped))
    for other in others:
        assert abs(overlap(first, other) - chance) < 5 * 1.5 / math.sqrt(rows)
    assert len(np.unique(first, axis=0)) == rows
