"""Objectives of tasks: losses by hand, and what must not matter to them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.data.buckets import collate, ladder
from bert_jax.models.body import Body
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.objectives.finetuning import Choose, Classify, Span, Tag
from bert_jax.training import sharding

ENCODER = EncoderBackbone(
    vocab_size=31, layers=1, width=8, heads=2, head_width=4, feed_forward=16, max_positions=48
)
BODY = Body(ENCODER)
FROZEN = Body(ENCODER, "weighted_all", bilstm=1, bilstm_width=6)
OBJECTIVES = {
    "single": Classify(BODY, 3),
    "multi": Classify(BODY, 3, "multi"),
    "numbers": Classify(BODY, 2, "numbers"),
    "span": Span(BODY),
    "tag": Tag(BODY, 4),
    "choose": Choose(BODY),
    "frozen tag": Tag(FROZEN, 4),
}
KEY = jax.random.key(7)
LENGTHS = [14, 5, 9]
EVERY = pytest.mark.parametrize("name", list(OBJECTIVES))


def some_rows(name):
    """Labelled features, as tasks make them."""
    rng = np.random.default_rng(len(name))

    def tokens(*shape):
        return rng.integers(5, 31, shape).astype(np.int32)

    rows = []
    for index, n in enumerate(LENGTHS):
        row = {"tokens": tokens(n), "segments": (np.arange(n) > 3).astype(np.int32)}
        if name == "single":
            row["label"] = np.array(index, np.int32)
        if name == "multi":
            row["labels"] = np.array([1, 0, index % 2], np.float32)
        if name == "numbers":
            row["numbers"] = np.array([0.5, index], np.float32)
        if name == "span":
            row |= {"start": np.array(index * 2, np.int32), "end": np.array(n - 1, np.int32)}
        if name.endswith("tag"):
            row["token_labels"] = np.where(np.arange(n) % 3 == 1, index, -1).astype(np.int32)
        if name == "choose":
            row = {
                "tokens": tokens(4, n),
                "segments": np.zeros((4, n), np.int32),
                "lengths": np.array([n, 3, n - 1, 4], np.int32),
                "label": np.array(index, np.int32),
            }
        rows.append(row)
    return rows


def some_batch(name, size=3, width=16):
    """The rows in a batch of that many rows and that width."""
    batch = collate(some_rows(name), size, 0, ladder(48))
    more = width - 16
    for key in batch.keys() & {"tokens", "segments", "token_labels"}:
        pads = [(0, 0)] * (batch[key].ndim - 1) + [(0, more)]
        batch[key] = np.pad(batch[key], pads, constant_values=-1 if key == "token_labels" else 0)
    return batch


@functools.cache
def fresh(name):
    """Parameters larger than `init` makes them, so that predictions differ."""
    init = OBJECTIVES[name].init
    shapes = nn.unbox(jax.eval_shape(init, KEY, some_batch(name)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def train(name, params, batch, key):
    """Loss and its gradients."""
    loss = lambda params: OBJECTIVES[name].loss(params, batch, key, True)[0].value()  # noqa: E731
    return jax.value_and_grad(loss)(params)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(name, params, batch, key):
    """(loss, metrics, predictions)."""
    loss, metrics = OBJECTIVES[name].loss(params, batch, key, False)
    metrics = {key: mean.value() for key, mean in metrics.items()}
    return loss, metrics, OBJECTIVES[name].predict(params, batch)


def log_softmax(x):
    x = np.float64(x)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def outcome(name):
    """Loss, metrics, and the predictions that they should follow from."""
    batch = some_batch(name)
    loss, metrics, outputs = evaluate(name, fresh(name), batch, KEY)
    assert all(x.dtype == np.float32 for x in outputs.values())
    return loss, metrics, {key: np.float64(x) for key, x in outputs.items()}, batch


# Losses by hand.


@pytest.mark.parametrize("name", ["single", "choose"])
def test_one_label_has_a_cross_entropy(name):
    loss, metrics, outputs, batch = outcome(name)
    logits, label = outputs["logits"], batch["label"]
    assert logits.shape == (3, 4 if name == "choose" else 3)
    assert float(loss.count) == 3
    expected = -log_softmax(logits)[np.arange(3), label].mean()
    np.testing.assert_allclose(loss.value(), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == label).mean(), rtol=1e-6)


def test_several_labels_have_a_binary_cross_entropy_each():
    loss, metrics, outputs, batch = outcome("multi")
    shares, labels = 1 / (1 + np.exp(-outputs["logits"])), batch["labels"]
    losses = -labels * np.log(shares) - (1 - labels) * np.log(1 - shares)
    np.testing.assert_allclose(loss.value(), losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], ((shares > 0.5) == labels).mean(), rtol=1e-6)


def test_numbers_have_a_squared_error():
    loss, metrics, outputs, batch = outcome("numbers")
    expected = ((outputs["logits"] - batch["numbers"]) ** 2).mean()
    np.testing.assert_allclose([loss.value(), metrics["squared_error"]], [expected] * 2, rtol=1e-6)


def test_spans_have_a_softmax_over_the_real_positions():
    loss, metrics, outputs, batch = outcome("span")
    terms, right = [], []
    for row, n in enumerate(LENGTHS):
        for name in ("start", "end"):
            logits = outputs[name][row, :n]
            terms.append(-log_softmax(logits)[batch[name][row]])
            right.append(logits.argmax() == batch[name][row])
            assert (outputs[name][row, n:] < -1e8).all()
    np.testing.assert_allclose(loss.value(), np.mean(terms), rtol=1e-6)
    both = np.array(right).reshape(3, 2).all(axis=1)
    np.testing.assert_allclose(metrics["exact"], both.mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["tag", "frozen tag"])
def test_tags_count_by_position_not_by_sentence(name):
    loss, metrics, outputs, batch = outcome(name)
    labels = batch["token_labels"]
    marked = labels >= 0
    logits, labels = outputs["logits"][marked], labels[marked]
    assert float(loss.count) == len(labels) == 5 + 2 + 3
    expected = -log_softmax(logits)[np.arange(len(labels)), labels].mean()
    np.testing.assert_allclose(loss.value(), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == labels).mean(), rtol=1e-6)


# What must not matter.


def assert_same(one, other, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@EVERY
def test_wider_padding_and_filler_rows_change_nothing(name):
    batch, padded = some_batch(name), some_batch(name, size=5, width=32)
    *losses, narrow = evaluate(name, fresh(name), batch, KEY)
    *others, wide = evaluate(name, fresh(name), padded, KEY)
    assert_same(losses, others)
    for key, x in narrow.items():
        y = wide[key][:3]
        if name == "span" or name.endswith("tag"):
            real = np.arange(16) < batch["lengths"][:, None]
            x, y = x[real], y[:, :16][real]
        np.testing.assert_allclose(x, y, atol=1e-6)


@EVERY
def test_dropout_follows_the_key_in_training_alone(name):
    params, batch = fresh(name), some_batch(name)
    other = jax.random.key(8)
    assert_same(train(name, params, batch, KEY), train(name, params, batch, KEY), 0)
    one, two = (float(train(name, params, batch, key)[0]) for key in (KEY, other))
    plain = evaluate(name, params, batch, KEY)
    assert len({one, two, float(plain[0].value())}) == 3
    assert_same(plain, evaluate(name, params, batch, other), 0)


@EVERY
def test_all_that_is_not_frozen_learns(name):
    _, grads = train(name, fresh(name), some_batch(name), KEY)
    sizes = {part: sum(float(np.abs(x).sum()) for x in jax.tree.leaves(tree))
             for part, tree in grads.items()}  # fmt: skip
    heads = {"span": {"span_head"}, "tag": {"tag_head"}, "frozen tag": {"tag_head"},
             "choose": {"pooler", "choice_head"}}.get(name, {"pooler", "classifier"})  # fmt: skip
    frozen = name.startswith("frozen")
    assert sizes.keys() == {"encoder", *heads, *(("mix", "bilstm") if frozen else ())}
    assert (sizes.pop("encoder") == 0) == frozen
    # One layer in the mix: its share is 1 whatever its weight.
    assert all(size > 0 for part, size in sizes.items() if part != "mix")


def test_heads_compute_in_float32_on_low_precision_bodies():
    """Scores of spans and similarities are compared; three digits would make ties."""
    low = EncoderBackbone(**{**ENCODER.__dict__, "dtype": "bfloat16"})
    batch = some_batch("numbers")
    logits = jax.jit(Classify(Body(low), 2, "numbers").predict)(fresh("numbers"), batch)["logits"]
    assert logits.dtype == jnp.float32
    assert np.abs(logits - logits.astype(jnp.bfloat16).astype(jnp.float32)).max() > 0


# On a mesh.


@EVERY
def test_every_parameter_has_its_place_on_a_mesh(name):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    boxed = jax.eval_shape(OBJECTIVES[name].init, KEY, some_batch(name))
    places = sharding.tree_shardings(mesh, boxed)
    assert jax.tree.structure(places) == jax.tree.structure(fresh(name))
    assert all(isinstance(place, NamedSharding) for place in jax.tree.leaves(places))
    head = next(part for part in places if part.endswith(("classifier", "_head")))
    assert places[head]["dense"]["kernel"].spec == PartitionSpec("fsdp", None)
    for part in places.keys() & {"mix", "bilstm"}:
        assert all(place.is_fully_replicated for place in jax.tree.leaves(places[part]))


def test_a_mesh_gives_what_one_device_gives(name="frozen tag"):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params, batch = fresh(name), some_batch(name, size=4)
    boxed = jax.eval_shape(OBJECTIVES[name].init, KEY, batch)
    spread = jax.device_put(params, sharding.tree_shardings(mesh, boxed))
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    one, many = train(name, params, batch, KEY), train(name, spread, rows, KEY)
    assert_same(one, jax.device_get(many), 1e-5)
