"""Dropout: its rate, masks that have nothing to do with each other, and where the model has it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_model import TINY, encode, random_params, some_batch

from bert_jax.models import layers, operations
from bert_jax.models.operations import dropout


def drops(key, rate=0.1, shape=(4096, 256)):
    """What `dropout` sets to zero, standardised to mean 0 and variance 1 under `rate`."""
    dropped = np.asarray(jax.jit(lambda k: dropout(jnp.ones(shape), rate, k))(key)) == 0
    return (dropped - rate) / math.sqrt(rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.01, 0.9])
def test_dropout_rate_and_scale(rate):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8, 128)), jnp.float32)
    draws = jax.vmap(lambda k: dropout(x, rate, k))(jax.random.split(jax.random.key(1), 100))
    draws, kept = np.asarray(draws), np.asarray(draws) != 0
    share = 1 - kept.mean()
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / kept.size)
    expected = np.broadcast_to(np.asarray(x) / (1 - rate), draws.shape)
    np.testing.assert_allclose(draws[kept], expected[kept], rtol=1e-6)


def test_dropout_counts_are_binomial():
    """A mask drawn once and shared over an axis, or stratified, would miss these variances."""
    standard = drops(jax.random.key(2), shape=(2048, 2048))
    for axis in (0, 1):
        variance = np.var(standard.sum(axis)) / 2048
        assert abs(variance - 1) < 5 * math.sqrt(2 / 2048)


def test_dropout_is_independent_between_rows_and_columns():
    for seed in range(3):
        standard = drops(jax.random.key(seed))
        rows, columns = standard.shape
        between = standard.T @ standard / rows - np.eye(columns)
        np.fill_diagonal(between, 0)
        assert np.abs(between).max() < 6 / math.sqrt(rows)  # 32,640 pairs of columns
        tall = drops(jax.random.key(seed), shape=(256, 4096))
        between = tall @ tall.T / 4096
        np.fill_diagonal(between, 0)
        assert np.abs(between).max() < 6 / math.sqrt(4096)  # 32,640 pairs of rows
        # Every distance in the flattened array at once, and rectangles (four corners).
        flat = standard.ravel()
        spectrum = np.fft.rfft(flat)
        every_lag = np.fft.irfft(spectrum * spectrum.conj())[1 : flat.size // 2] / flat.size
        assert np.abs(every_lag).max() < 6.5 / math.sqrt(flat.size)
        for step in (1, 2, 64):
            pairs = standard * np.roll(standard, step, 0)
            corners = (pairs * np.roll(pairs, step, 1)).mean()
            assert abs(corners) < 5 / math.sqrt(flat.size)


def test_dropout_is_independent_between_heads_layers_sites_and_steps():
    shape = (16, 12, 32, 32)  # attention weights [B, N, S, T]
    seed = jax.random.key(0)
    masks = []
    for step in range(3):
        for layer in range(3):
            for site in range(3):
                key = jax.random.fold_in(seed, step)
                key = operations.fold(operations.fold(key, layer), site)
                masks.append(drops(key, shape=shape).ravel())
    masks = np.stack(masks)
    count = masks.shape[1]
    between = masks @ masks.T / count
    np.fill_diagonal(between, 0)
    assert np.abs(between).max() < 5 / math.sqrt(count)
    heads = masks[0].reshape(shape).swapaxes(0, 1).reshape(12, -1)
    between = heads @ heads.T / heads.shape[1]
    np.fill_diagonal(between, 0)
    assert np.abs(between).max() < 5 / math.sqrt(heads.shape[1])


@pytest.mark.parametrize(
    "spec", [("data",), (("data", "tensor"),), ("data", "tensor"), (None, None, "tensor")], ids=str
)
def test_dropout_mask_does_not_depend_on_the_sharding(mesh, spec):
    x = jnp.ones((8, 4, 16, 16))
    key = jax.random.key(7)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    drop = jax.jit(lambda x, k: dropout(x, 0.1, k), out_shardings=sharding)
    sharded = drop(jax.device_put(x, sharding), key)
    assert len(sharded.sharding.device_set) == 8
    assert np.array_equal(sharded, dropout(x, 0.1, key))


# In the model.


def test_dropout_sites_of_the_model(monkeypatch):
    """Embeddings, then per layer attention weights, attention output, feed-forward output (C3)."""
    calls = []

    def recorded(x, rate, key):
        words = np.ravel(jax.random.key_data(key)).tolist()
        calls.append((x.shape, rate, tuple(words)))
        return dropout(x, rate, key)

    config = dataclasses.replace(TINY, hidden_dropout=0.1, attention_dropout=0.2)
    params, batch = random_params(config), some_batch(config)
    for module in (layers, operations):
        monkeypatch.setattr(module, "dropout", recorded)
    with jax.disable_jit():  # else layers are traced once, and their keys are tracers
        encode(config, params, batch, jax.random.key(5))
    hidden, weights = ((4, 16, 32), 0.1), ((4, 4, 16, 16), 0.2)
    assert [call[:2] for call in calls] == [hidden] + [weights, hidden, hidden] * config.layers
    assert len({call[2] for call in calls}) == len(calls)  # no two sites share a key


def test_dropout_differs_between_equal_rows_and_between_keys():
    params = random_params(TINY)
    batch = {name: jnp.repeat(value[:1], 4, axis=0) for name, value in some_batch(TINY).items()}
    one = np.asarray(encode(TINY, params, batch, jax.random.key(0)))
    two = np.asarray(encode(TINY, params, batch, jax.random.key(1)))
    assert min(np.abs(one[0] - one[row]).max() for row in (1, 2, 3)) > 0.01
    assert np.abs(one - two).max() > 0.01
    assert np.array_equal(one, encode(TINY, params, batch, jax.random.key(0)))


def test_evaluation_has_no_dropout():
    batch, params = some_batch(TINY), random_params(TINY)
    without = dataclasses.replace(TINY, hidden_dropout=0.0, attention_dropout=0.0)
    evaluated = encode(TINY, params, batch, None)
    assert np.array_equal(evaluated, encode(without, params, batch, jax.random.key(0)))
    assert not np.allclose(evaluated, encode(TINY, params, batch, jax.random.key(0)), atol=0.1)
