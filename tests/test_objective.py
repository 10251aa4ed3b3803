"""MLM + NSP: what is summed, what is divided by what, and which parameters learn from it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.models.backbone import Inputs
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.objectives.base import Mean, cross_entropy, weighted_mean
from bert_jax.objectives.corruption import Masking
from bert_jax.objectives.mlm import MaskedLM

CONFIG = EncoderBackbone(
    vocab_size=61, layers=1, width=16, heads=2, head_width=8, feed_forward=32, max_positions=16
)
OBJECTIVE = MaskedLM(CONFIG, Masking(CONFIG.vocab_size, mask_id=4, never=(2, 3)))
KEY = jax.random.key(11)


def some_batch(rows: int = 8, size: int = 16, seed: int = 0):
    """[CLS] A [SEP] B [SEP] padding, lengths 6..16, so the rows predict 1 or 2 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, size + 1, rows)
    lengths[0] = size
    place, last = np.arange(size), lengths[:, None] - 1
    tokens = rng.integers(5, CONFIG.vocab_size, (rows, size))
    tokens[:, 0], tokens[:, 3] = 2, 3
    tokens = np.where(place == last, 3, np.where(place < last, tokens, 0))
    batch = {
        "tokens": tokens,
        "segments": (place > 3) & (place <= last),
        "lengths": lengths,
        "instance": np.stack([np.full(rows, 5), np.arange(rows)], 1),
        "pair_label": np.arange(rows) % 3 == 0,
    }
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}
    return batch | {"weight": jnp.ones(rows)}


@pytest.fixture(scope="module")
def params():
    """Fresh parameters, made larger, so that predictions and losses differ between rows."""
    fresh = nn.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(1), some_batch()))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), fresh)


def differentiated(objective, train):
    """Jitted (params, batch, key) -> gradients of the loss's value, (loss, metrics)."""

    def value(params, batch, key):
        loss, metrics = objective.loss(params, batch, key, train)
        return loss.value(), (loss, metrics)

    return jax.jit(jax.grad(value, has_aux=True))


@pytest.fixture(scope="module")
def training():
    return differentiated(OBJECTIVE, train=True)


@pytest.fixture(scope="module")
def evaluate():
    return jax.jit(lambda params, batch: OBJECTIVE.loss(params, batch, KEY, train=False))


def leaves(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def relative_difference(one, other) -> float:
    """Largest difference of any entry, relative to the largest entry of all."""
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    scale = max(float(np.abs(leaf).max()) for leaf in one.values())
    return max(float(np.abs(one[name] - other[name]).max()) for name in one) / scale


# Parity with PyTorch.


@dataclasses.dataclass(frozen=True)
class Given(MaskedLM):
    """The objective with the corruption that the batch brings along."""

    def corrupted(self, batch, train):
        return {name: batch[name] for name in ("tokens", "positions", "labels", "weights")}


@pytest.mark.parametrize(("name", "activation"), [("bert_erf", "gelu"), ("bert_tanh", "gelu_tanh")])
def test_losses_and_gradients_equal_transformers(golden, name, activation):
    gold = golden(name)
    sizes = {key: int(value) for key, value in gold["config"].items()}
    config = EncoderBackbone(**sizes, activation=activation)
    objective = Given(config, Masking(config.vocab_size, 4, (2, 3)))
    params, batch = jax.tree.map(jnp.asarray, (gold["params"], gold["batch"]))
    batch["weight"] = jnp.ones(len(batch["lengths"]))
    batch["pair_label"] = batch.pop("is_random_next")
    grads, (loss, metrics) = differentiated(objective, train=False)(params, batch, KEY)
    differences = {
        key: abs(float(metrics[key].value()) - float(gold[key])) for key in ("mlm_loss", "nsp_loss")
    }
    differences["loss"] = abs(float(loss.value()) - float(gold["mlm_loss"] + gold["nsp_loss"]))
    ours, theirs = leaves(grads), leaves(gold["grads"])
    assert ours.keys() == theirs.keys()
    scales = {key: float(np.abs(value).max()) for key, value in theirs.items()}
    errors = {}
    for key, value in theirs.items():
        # A key bias adds the same to all scores of a query, which the softmax ignores: its exact
        # gradient is 0, what is there is rounding, to be measured against its neighbours.
        scale = scales[key.replace("key/bias", "query/bias")]
        errors[key] = float(np.abs(ours[key] - value).max()) / scale
    worst = max(errors, key=errors.__getitem__)
    print(name, differences, worst, errors[worst])
    assert max(differences.values()) < 1e-6, differences
    assert errors[worst] < 1e-5, (worst, errors[worst])


# What is summed and divided.


def test_loss_is_mean_mlm_plus_mean_nsp_by_hand(params, evaluate):
    batch = some_batch()
    loss, metrics = evaluate(params, batch)
    seen = jax.jit(lambda batch: OBJECTIVE.corrupted(batch, train=False))(batch)
    mlm, nsp = jax.jit(OBJECTIVE.logits)(
        params, Inputs.of(batch | {"tokens": seen["tokens"]}), seen["positions"]
    )
    mlm, nsp = np.asarray(mlm, np.float64), np.asarray(nsp, np.float64)

    def surprise(logits, label):
        return -np.log(np.exp(logits[label]) / np.exp(logits).sum())

    tokens, hits = [], []
    for row, slot in np.argwhere(np.asarray(seen["weights"]) == 1):
        label = int(seen["labels"][row, slot])
        assert label == int(batch["tokens"][row, seen["positions"][row, slot]])
        tokens.append(surprise(mlm[row, slot], label))
        hits.append(mlm[row, slot].argmax() == label)
    labels = np.asarray(batch["pair_label"])  # 1, the second class: a random next segment
    pairs = [surprise(logits, label) for logits, label in zip(nsp, labels, strict=True)]
    assert 8 < len(tokens) < 16  # rows of unequal counts
    expected = {
        "mlm_loss": np.mean(tokens),
        "mlm_accuracy": np.mean(hits),
        "nsp_loss": np.mean(pairs),
        "nsp_accuracy": np.mean(nsp.argmax(-1) == labels),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert float(metrics[name].value()) == pytest.approx(value, rel=1e-5), name
    assert float(loss.value()) == pytest.approx(np.mean(tokens) + np.mean(pairs), rel=1e-6)
    assert loss.count.tolist() == [len(tokens), 8]


def test_mean_adds_and_divides_once():
    one, two = Mean(jnp.float32(6), jnp.float32(2)), Mean(jnp.float32(1), jnp.float32(3))
    assert float((one + two).value()) == pytest.approx(7 / 5)
    assert float(Mean(jnp.float32(0), jnp.float32(0)).value()) == 0
    terms = Mean(jnp.array([6.0, 1.0]), jnp.array([2.0, 4.0]))
    assert float(terms.value()) == pytest.approx(3 + 0.25)
    weighted = weighted_mean(jnp.array([1.0, 5.0, 100.0]), jnp.array([1.0, 3.0, 0.0]))
    assert float(weighted.value()) == pytest.approx(4)


def test_parts_of_a_batch_add_up_to_it(params, evaluate):
    """Also where the parts predict unequal numbers: no mean of means."""
    batch = some_batch()
    whole, whole_metrics = evaluate(params, batch)
    parts = [evaluate(params, {k: v[i : i + 4] for k, v in batch.items()}) for i in (0, 4)]
    added = jax.tree.map(jnp.add, *parts)
    assert relative_difference(added[0].sum, whole.sum) < 1e-6
    assert np.array_equal(added[0].count, whole.count)
    assert np.array_equal((parts[0][0] + parts[1][0]).sum, added[0].sum)
    for name, mean in whole_metrics.items():
        assert float(added[1][name].value()) == pytest.approx(float(mean.value()), rel=1e-6)
    counts = [part[0].count[0] for part in parts]
    assert counts[0] != counts[1]


def test_cross_entropy_is_exact_for_large_logits_and_in_float32():
    logits = jnp.array([[1000.0, 0.0], [-1000.0, 0.0]])
    assert cross_entropy(logits, jnp.array([0, 0])).tolist() == [0.0, 1000.0]
    assert cross_entropy(logits.astype(jnp.bfloat16), jnp.array([1, 1])).dtype == jnp.float32


def test_filler_rows_change_nothing(params, training, evaluate):
    """Rows of weight 0: as if absent, and what they hold, if anything, does not matter."""
    batch, other = some_batch(), some_batch(seed=9)
    weight = jnp.repeat(jnp.array([1.0, 0.0]), 4)
    filled = batch | {"weight": weight}
    loss, metrics = evaluate(params, {name: value[:4] for name, value in batch.items()})
    loss_too, metrics_too = evaluate(params, filled)
    assert np.array_equal(loss.count, loss_too.count)
    assert relative_difference(metrics, metrics_too) < 1e-6

    def holding(rows):
        return {name: jnp.concatenate([batch[name][:4], rows[name][4:]]) for name in batch}

    empty = {name: jnp.zeros_like(value) for name, value in batch.items()}
    grads, (loss, _) = training(params, filled, KEY)
    for rows in (other, empty):
        grads_too, (loss_too, _) = training(params, holding(rows) | {"weight": weight}, KEY)
        assert relative_difference(grads, grads_too) < 1e-6
        assert np.array_equal(loss.count, loss_too.count)


def test_a_batch_of_filler_alone_is_zero_not_nan(params, training):
    batch = some_batch() | {"weight": jnp.zeros(8), "lengths": jnp.zeros(8, jnp.int32)}
    grads, (loss, _) = training(params, batch, KEY)
    assert float(loss.value()) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_eight_devices_agree_with_one(mesh, params, training):
    """The mean is over the global batch, whichever device holds which rows; dropout on."""
    batch = some_batch()
    rows = NamedSharding(mesh, PartitionSpec(("data", "tensor")))
    everywhere = NamedSharding(mesh, PartitionSpec())
    one = training(params, batch, KEY)
    eight = training(*jax.device_put((params, batch), (everywhere, rows)), KEY)
    assert len(jax.tree.leaves(eight[0])[0].sharding.device_set) == 8
    assert np.array_equal(one[1][0].count, eight[1][0].count)
    figures = relative_difference(one[1][1], eight[1][1]), relative_difference(one[0], eight[0])
    print("1 and 8 devices: metrics and gradients differ by", figures)
    assert max(figures) < 1e-6


# Which parameters there are and which learn.


def test_without_nsp_there_is_neither_pooler_nor_nsp_head(params):
    objective = dataclasses.replace(OBJECTIVE, nsp=False)
    batch = {k: v for k, v in some_batch().items() if k != "pair_label"}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert set(shapes) == {"encoder", "mlm_head"}
    params = {name: params[name] for name in shapes}
    grads, (loss, metrics) = differentiated(objective, train=False)(params, batch, KEY)
    assert set(metrics) == {"mlm_loss", "mlm_accuracy"}
    assert loss.sum.shape == loss.count.shape == (1,)
    assert float(loss.value()) == pytest.approx(float(metrics["mlm_loss"].value()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_counts_do_not_depend_on_the_parameters(params, training):
    """So micro-batches may be weighed by their counts before the gradients are known."""
    batch = some_batch()
    _, (loss, metrics) = training(params, batch, KEY)
    other = jax.tree.map(lambda x: -3 * x, params)
    _, (loss_too, metrics_too) = training(other, batch, KEY)
    assert float(loss.value()) != float(loss_too.value())
    assert np.array_equal(loss.count, loss_too.count)
    assert all(metrics[name].count == metrics_too[name].count for name in metrics)

    def counts(params):
        return jnp.sum(OBJECTIVE.loss(params, batch, KEY, True)[0].count)

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(counts))(params)))


def test_every_parameter_learns(params, training):
    """No gradient is zero but the key biases': they move all scores of a query alike."""
    grads, _ = training(params, some_batch(), KEY)
    largest = {name: float(np.abs(leaf).max()) for name, leaf in leaves(grads).items()}
    noise = {name for name, size in largest.items() if size < 1e-6}
    assert noise == {f"encoder/layer_{i}/attention/key/bias" for i in range(CONFIG.layers)}
    # Every head of every layer, every position up to S, both segments, the whole vocabulary.
    for i in range(CONFIG.layers):
        for name in ("query", "key", "value"):
            kernel = grads["encoder"][f"layer_{i}"]["attention"][name]["kernel"]
            assert (np.abs(kernel).max(axis=(0, 2)) > 1e-6).all()
    embeddings = grads["encoder"]["embeddings"]
    for table in ("position", "segment", "token"):
        assert (np.abs(embeddings[table]).max(axis=1) > 0).all(), table


# Keys.


def test_dropout_key_and_corruption_seed_are_apart(params, training, evaluate):
    batch = some_batch()
    grads, (loss, _) = training(params, batch, KEY)
    again, (loss_again, _) = training(params, batch, KEY)
    assert relative_difference(grads, again) == 0
    assert np.array_equal(loss.sum, loss_again.sum)
    _, (other_key, _) = training(params, batch, jax.random.key(12))
    assert not np.allclose(other_key.sum, loss.sum)  # other dropout,
    assert np.array_equal(other_key.count, loss.count)  # the same predictions

    seen = OBJECTIVE.corrupted(batch, train=True)
    reseeded = dataclasses.replace(OBJECTIVE, seed=1)
    assert not np.array_equal(reseeded.corrupted(batch, train=True)["positions"], seen["positions"])
    # Held-out figures compare between runs of any seed: evaluation has one corruption.
    fixed = reseeded.corrupted(batch, train=False)
    for name, value in OBJECTIVE.corrupted(batch, train=False).items():
        assert np.array_equal(fixed[name], value)


def test_evaluation_does_not_use_the_key(params, evaluate):
    batch = some_batch()
    loss, _ = evaluate(params, batch)
    other, _ = OBJECTIVE.loss(params, batch, jax.random.key(99), train=False)
    np.testing.assert_allclose(loss.sum, other.sum, rtol=1e-6)
