"""The encoder and heads: parity with second implementations, parameters, the computation."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, boxed_shapes, encode, pretraining, random_params, some_batch

from bert_jax.families.bert import SIZES
from bert_jax.models import layers
from bert_jax.models.backbone import Inputs
from bert_jax.models.encoder import (
    Encoder,
    EncoderBackbone,
    attention_mask,
    padding_mask,
)
from bert_jax.models.heads import Pooler

ACTIVATION = {"bert_erf": "gelu", "bert_tanh": "gelu_tanh"}


def largest(tree) -> float:
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


def difference(one, other) -> float:
    return largest(jax.tree.map(lambda a, b: jnp.asarray(a) - jnp.asarray(b), one, other))


# Parity with second implementations.


@pytest.mark.parametrize("name", ["bert_erf", "bert_tanh"])
def test_forward_equals_transformers(golden, name):
    gold = golden(name)
    sizes = {key: int(value) for key, value in gold["config"].items()}
    config = EncoderBackbone(**sizes, activation=ACTIVATION[name])
    params, batch = jax.tree.map(jnp.asarray, (gold["params"], gold["batch"]))
    hidden = encode(config, params, batch, every_layer=True)
    pooled = Pooler(config).apply({"params": params["pooler"]}, hidden[-1])
    mlm, nsp = pretraining(config).logits(params, Inputs.of(batch), batch["positions"])
    ours = {"hidden": hidden, "pooled": pooled, "mlm_logits": mlm, "nsp_logits": nsp}
    differences = {key: difference(value, gold[key]) for key, value in ours.items()}
    print(name, differences)
    assert max(differences.values()) < 1e-5, differences


def reference_encoder(config, p, tokens, segments, lengths):
    """BERT's encoder, written out in float64 for one sequence at a time and one head at a time."""

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + 1e-12) * p["scale"] + p["bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    rows = []
    for token_ids, kinds, length in zip(tokens, segments, lengths, strict=True):
        e = p["embeddings"]
        x = e["token"][token_ids] + e["position"][: len(token_ids)] + e["segment"][kinds]
        x = norm(x, e["norm"])
        for layer in range(config.layers):
            block = p[f"layer_{layer}"]
            a = block["attention"]
            attended = np.zeros_like(x) + a["output"]["bias"]
            for head in range(config.heads):
                q, k, v = (
                    x @ a[name]["kernel"][:, head] + a[name]["bias"][head]
                    for name in ("query", "key", "value")
                )
                scores = np.exp((q @ k.T / math.sqrt(config.head_width))[:, :length])
                weights = scores / scores.sum(-1, keepdims=True)
                attended += weights @ v[:length] @ a["output"]["kernel"][head]
            x = norm(x + attended, block["attention_norm"])
            f = block["feed_forward"]
            inner = gelu(x @ f["inner"]["kernel"] + f["inner"]["bias"])
            fed = inner @ f["outer"]["kernel"] + f["outer"]["bias"]
            x = norm(x + fed, block["feed_forward_norm"])
        rows.append(x)
    return np.stack(rows)


@pytest.mark.parametrize(("heads", "head_width"), [(3, 8), (2, 32), (5, 4), (1, 32)])
def test_heads_need_not_fill_the_width(heads, head_width):
    config = dataclasses.replace(TINY, heads=heads, head_width=head_width)
    params, batch = random_params(config), some_batch(config)
    arrays = (np.asarray(batch[name]) for name in ("tokens", "segments", "lengths"))
    expected = reference_encoder(config, params["encoder"], *arrays)
    assert difference(encode(config, params, batch), expected) < 1e-5


def test_table_6_with_three_heads_of_256():
    config = EncoderBackbone(30522, layers=6, width=768, heads=3, head_width=256)
    twelve = dataclasses.replace(config, heads=12, head_width=64)
    shapes = nn.unbox(boxed_shapes(config))
    attention = shapes["encoder"]["layer_5"]["attention"]
    assert attention["query"]["kernel"].shape == (768, 3, 256)
    assert attention["output"]["kernel"].shape == (3, 256, 768)

    def count(c):
        return sum(leaf.size for leaf in jax.tree.leaves(boxed_shapes(c)))

    assert count(config) == count(twelve)


# Parameters.


def test_parameter_tree():
    norm = {"scale": (32,), "bias": (32,)}
    dense = {"kernel": (32, 32), "bias": (32,)}
    split = {"kernel": (32, 4, 8), "bias": (4, 8)}
    layer = {
        "attention": {"query": split, "key": split, "value": split}
        | {"output": {"kernel": (4, 8, 32), "bias": (32,)}},
        "attention_norm": norm,
        "feed_forward": {
            "inner": {"kernel": (32, 64), "bias": (64,)},
            "outer": {"kernel": (64, 32), "bias": (32,)},
        },
        "feed_forward_norm": norm,
    }
    embeddings = {"token": (97, 32), "position": (24, 32), "segment": (2, 32), "norm": norm}
    expected = {
        "encoder": {"embeddings": embeddings} | {f"layer_{i}": layer for i in range(2)},
        "mlm_head": {"dense": dense, "norm": norm, "bias": (97,)},
        "pooler": {"dense": dense},
        "nsp_head": {"dense": {"kernel": (32, 2), "bias": (2,)}},
    }
    for scan in (False, True):
        config = dataclasses.replace(TINY, scan_layers=scan)
        assert jax.tree.map(lambda x: x.shape, nn.unbox(boxed_shapes(config))) == expected


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_equal_transformers(golden, size):
    number, width, heads = SIZES[size].values()
    config = EncoderBackbone(
        30522, layers=number, width=width, heads=heads, head_width=width // heads,
        feed_forward=4 * width,
    )  # fmt: skip
    count = sum(leaf.size for leaf in jax.tree.leaves(boxed_shapes(config)))
    assert count == int(golden("bert_counts")[size])
    if size in ("base", "large"):  # with both heads, the tied table counted once
        assert count == {"base": 110_106_428, "large": 336_226_108}[size]


@pytest.fixture(scope="module")
def fresh():
    config = dataclasses.replace(TINY, vocab_size=2000, width=64, feed_forward=256)
    return nn.unbox(jax.jit(pretraining(config).init)(jax.random.key(0), some_batch(config)))


def test_fresh_parameters_are_truncated_normal_zeros_and_ones(fresh):
    for path, value in jax.tree_util.tree_leaves_with_path(fresh):
        name = path[-1].key
        assert value.dtype == jnp.float32
        if name in ("scale", "bias"):
            assert np.all(np.asarray(value) == (name == "scale")), path
            continue
        value = np.asarray(value, np.float64).ravel()
        assert np.abs(value).max() <= 0.04 + 1e-9, path  # cut at two standard deviations
        # A standard normal cut at ±2 has standard deviation 0.87963.
        error = 6 / math.sqrt(value.size)
        assert abs(value.std() / (0.02 * 0.87963) - 1) < error, path
        assert abs(value.mean()) < 0.0176 * error, path
    assert np.abs(fresh["encoder"]["embeddings"]["token"]).max() > 0.0399


def test_no_two_fresh_parameters_are_alike(fresh):
    """A key used twice would start two tables or layers equal."""
    random = [np.ravel(x)[:128] for x in jax.tree.leaves(fresh) if np.std(x) > 0]
    assert np.abs(np.corrcoef(np.stack(random)) - np.eye(len(random))).max() < 6 / math.sqrt(128)


def test_every_parameter_has_logical_axes():
    boxes = jax.tree.leaves(
        boxed_shapes(TINY), is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
    assert all(len(box.names) == len(box.value.shape) for box in boxes)
    size = {"vocab": 97, "model": 32, "heads": 4, "feed_forward": 64, "norm": 32}
    for box in boxes:
        for name, length in zip(box.names, box.value.shape, strict=True):
            assert name is None or size[name] == length


# The computation.


@pytest.mark.parametrize("change", [{}, {"scan_layers": True}, {"remat": True}, {"causal": True}])
def test_wanted_positions_are_those_of_the_whole(change):
    """Values, and the gradients of all parameters; positions may repeat."""
    config = dataclasses.replace(TINY, layers=3, **change)
    params, batch = random_params(config)["encoder"], some_batch(config)
    wanted = jnp.asarray(np.random.default_rng(1).integers(0, 5, (4, 6)))
    mask = attention_mask(config, batch["lengths"], 16)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6, config.width)), jnp.float32)

    def run(params, inside):
        inputs = batch["tokens"], batch["segments"], mask
        given = {"wanted": wanted} if inside else {}
        x = Encoder(config).apply({"params": params}, *inputs, **given)
        x = x if inside else layers.take(x, wanted)
        return (x * weights).sum(), x

    some, whole = (jax.grad(run, has_aux=True)(params, inside) for inside in (True, False))
    assert difference(some[1], whole[1]) < 1e-5
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole[0]))
    assert difference(some[0], whole[0]) < 1e-5 * scale


def test_scan_and_remat_change_nothing():
    """Hidden states of every layer and gradients, with the very same dropout masks."""
    deep = dataclasses.replace(TINY, layers=3)  # of which two are scanned
    batch, params = some_batch(deep), random_params(deep)

    def run(key, **change):
        config = dataclasses.replace(deep, **change)

        def loss(encoder):
            hidden = encode(config, {"encoder": encoder}, batch, key, every_layer=True)
            return jnp.sum(jnp.sin(hidden[1:])), hidden

        if key is None:
            return jax.jit(loss)(params["encoder"])[1], None
        grads, hidden = jax.jit(jax.grad(loss, has_aux=True))(params["encoder"])
        return hidden, grads

    key = jax.random.key(3)
    hidden, grads = run(key)
    assert hidden.shape == (deep.layers + 1, *batch["tokens"].shape, TINY.width)
    for change in ({"scan_layers": True}, {"remat": True}, {"scan_layers": True, "remat": True}):
        hidden_too, grads_too = run(key, **change)
        assert difference(hidden, hidden_too) < 1e-5, change
        assert difference(grads, grads_too) < 1e-5 * largest(grads), change
    assert difference(run(None)[0], run(None, scan_layers=True)[0]) < 1e-5


def test_every_layer_ends_in_its_layer_norm():
    """Post-LN: with fresh norms, embeddings and every layer have mean 0 and variance 1 over D."""
    params = random_params(TINY)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, path[-1].key == "scale") if "norm" in str(path[-2]) else x,
        params,
    )
    hidden = np.asarray(encode(TINY, params, some_batch(TINY), every_layer=True), np.float64)
    assert np.abs(hidden.mean(-1)).max() < 1e-6
    assert np.abs(hidden.var(-1) - 1).max() < 1e-5


@pytest.mark.parametrize("train", [False, True])
def test_padding_does_not_influence_real_positions(train):
    batch, params = some_batch(TINY), random_params(TINY)
    key = jax.random.key(0) if train else None
    size = batch["tokens"].shape[1]
    real = np.arange(size) < np.asarray(batch["lengths"])[:, None]
    other = batch | {
        "tokens": jnp.where(real, batch["tokens"], 50),
        "segments": jnp.where(real, batch["segments"], 1),
    }
    one = np.asarray(encode(TINY, params, batch, key))
    two = np.asarray(encode(TINY, params, other, key))
    assert not real.all()
    assert np.array_equal(one[real], two[real])
    assert not np.allclose(one[~real], two[~real])


def test_real_positions_do_not_depend_on_the_amount_of_padding():
    batch, params = some_batch(TINY, size=16), random_params(TINY)
    longer = {k: jnp.pad(batch[k], ((0, 0), (0, 8))) for k in ("tokens", "segments")}
    longer["lengths"] = batch["lengths"]
    real = np.arange(16) < np.asarray(batch["lengths"])[:, None]
    one, two = encode(TINY, params, batch), encode(TINY, params, longer)[:, :16]
    assert difference(one[real], two[real]) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_padding_gives_no_nan(dtype):
    """Filler rows of the last evaluation batch have length 0; gradients stay finite as well."""
    config = dataclasses.replace(TINY, dtype=dtype, layers=1)
    batch, params = some_batch(config), random_params(config)
    batch["lengths"] = jnp.zeros_like(batch["lengths"]).at[0].set(5)

    def total(params):
        return jnp.sum(encode(config, params, batch, jax.random.key(0)).astype(jnp.float32) ** 2)

    value, grads = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_row_does_not_depend_on_its_neighbours_or_its_place():
    batch, params = some_batch(TINY, rows=6), random_params(TINY)
    hidden = encode(TINY, params, batch)
    order = np.array([4, 0, 5, 2, 1, 3])
    moved = encode(TINY, params, {name: value[order] for name, value in batch.items()})
    assert difference(hidden[order], moved) < 1e-5
    alone = encode(TINY, params, {name: value[2:3] for name, value in batch.items()})
    assert difference(hidden[2:3], alone) < 1e-5


def test_positions_are_an_input():
    batch, params = some_batch(TINY), random_params(TINY)
    size = batch["tokens"].shape[1]

    def run(**kwargs):
        mask = padding_mask(batch["lengths"], size)
        inputs = (batch["tokens"], batch["segments"], mask)
        return Encoder(TINY).apply({"params": params["encoder"]}, *inputs, **kwargs)

    assert np.array_equal(run(), run(positions=jnp.arange(size)[None]))
    table = params["encoder"]["embeddings"]["position"]
    shifted = run(positions=jnp.arange(size)[None] + 5)
    params["encoder"]["embeddings"]["position"] = jnp.roll(table, -5, axis=0)
    assert np.array_equal(shifted, run())


def test_bfloat16_computes_near_float32_from_the_same_float32_parameters():
    low = dataclasses.replace(TINY, dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(boxed_shapes(low)))
    batch, params = some_batch(TINY), random_params(TINY, stddev=0.1)
    exact, rounded = encode(TINY, params, batch), encode(low, params, batch)
    assert rounded.dtype == jnp.bfloat16
    error = np.asarray(exact) - np.asarray(rounded, np.float32)
    # bfloat16 keeps 8 bits: a relative step of 2⁻⁸ a rounding, a few roundings a layer.
    assert np.sqrt((error**2).mean()) < 3 * 2**-8 * np.asarray(exact).std()
    positions = jnp.zeros((4, 2), jnp.int32)
    for logits in pretraining(low).logits(params, Inputs.of(batch), positions):
        assert logits.dtype == jnp.float32


def test_model_flops_count_every_matrix_product():
    """6 FLOPs a weight and token (forward 2, backward 4); attention as two products a layer."""
    params = nn.unbox(boxed_shapes(TINY))
    blocks = [v for k, v in params["encoder"].items() if k.startswith("layer")]
    kernels = sum(
        leaf.size for leaf in jax.tree.leaves(blocks) if leaf.ndim >= 2 and leaf.size > 32
    )
    batch, size, predicted = 4, 16, 3
    attention = 2 * size * TINY.heads * TINY.head_width  # of a query
    everywhere = kernels * size + TINY.layers * size * attention
    assert TINY.flops(batch, size) == 6 * batch * everywhere
    # Of the last layer, queries and what follows them at the predicted positions only.
    last = kernels / TINY.layers - 2 * 32 * TINY.heads * TINY.head_width + attention
    head = predicted * (32 * 32 + 32 * 97)
    expected = 6 * batch * (everywhere - (size - predicted) * last + head)
    assert TINY.flops(batch, size, predicted) == expected
