"""Bodies of tasks: the rows of Table 7, frozen encoders, and the BiLSTM against a plain one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.common.errors import UserError
from bert_jax.models.backbone import Inputs
from bert_jax.models.body import FEATURES, Body
from bert_jax.models.encoder import Encoder, EncoderBackbone, padding_mask
from bert_jax.models.layers import apply
from bert_jax.models.recurrent import BiLSTM

SIZES = {"vocab_size": 31, "width": 8, "heads": 2, "head_width": 4, "feed_forward": 16}
ENCODER = EncoderBackbone(layers=5, max_positions=16, scan_layers=True, **SIZES)  # compiles faster
KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(5, 31, (3, 12)), jnp.int32)
SEGMENTS = jnp.zeros_like(TOKENS)
LENGTHS = jnp.array([12, 7, 1], jnp.int32)
INPUTS = Inputs(TOKENS, SEGMENTS, LENGTHS)


def fresh(body):
    """Parameters larger than `init` makes them, so that layers differ."""
    shapes = nn.unbox(jax.eval_shape(body.init, KEY, INPUTS))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def hidden(body, params, key=None):
    return body.hidden(params, INPUTS, key)


@jax.jit
def states(params):
    mask = padding_mask(LENGTHS, TOKENS.shape[1])
    encoder = Encoder(ENCODER)
    return apply(encoder, params["encoder"], TOKENS, SEGMENTS, mask, every_layer=True)


# Table 7.


def test_there_are_the_six_rows_of_the_table():
    assert len(FEATURES) == 6


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("embeddings", [0]),
        ("second_to_last", [4]),
        ("last", [5]),
        ("concat_last_4", [2, 3, 4, 5]),
    ],
)
def test_rows_that_are_read_as_they_are(name, layers):
    body = Body(ENCODER, name)
    params = fresh(body)
    assert sorted(params) == ["encoder"]
    every = states(params)
    expected = np.concatenate([every[layer] for layer in layers], axis=-1)
    assert body.width == expected.shape[-1] == 8 * len(layers)
    np.testing.assert_allclose(hidden(body, params), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layers"), [("weighted_last_4", [2, 3, 4, 5]), ("weighted_all", [1, 2, 3, 4, 5])]
)
def test_rows_that_are_weighted_sums(name, layers):
    body = Body(ENCODER, name)
    params = fresh(body)
    assert body.width == 8
    assert params["mix"]["weight"].shape == (len(layers),)
    shares = np.exp(params["mix"]["weight"])
    every = np.asarray(states(params))
    expected = sum(s * every[n] for s, n in zip(shares / shares.sum(), layers, strict=True))
    np.testing.assert_allclose(hidden(body, params), expected, atol=1e-6)
    # It begins as the plain mean.
    params["mix"] = body.init(KEY, INPUTS)["mix"]
    np.testing.assert_allclose(hidden(body, params), every[layers].mean(axis=0), atol=1e-6)


def test_without_features_it_is_the_encoder():
    body = Body(ENCODER)
    params = fresh(body)
    assert sorted(params) == ["encoder"] and body.width == 8
    np.testing.assert_allclose(hidden(body, params), states(params)[-1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("weighted_last_4", 3), ("concat_last_4", 3), ("second_to_last", 1)],
)
def test_layers_that_the_encoder_lacks_are_refused(name, layers):
    """Rather than the embeddings taken for a layer, or a layer read twice."""
    with pytest.raises(UserError, match=f"the encoder has only {layers}"):
        Body(EncoderBackbone(layers=layers, **SIZES), name)
    Body(EncoderBackbone(layers=layers + 1, **SIZES), name)


@pytest.mark.parametrize("name", ["embeddings", "last", "weighted_all"])
def test_one_layer_is_enough_for_the_other_rows(name):
    body = Body(EncoderBackbone(layers=1, **SIZES), name)
    assert body.width == body.backbone.width


def test_unknown_features_are_refused():
    with pytest.raises(UserError, match="'lasst' is unknown; known: embeddings, second_to_last"):
        Body(ENCODER, "lasst")


# What learns, and what is random.


def gradients(body, params, key=None):
    """Sum of the absolute gradients of each part."""
    grads = jax.jit(jax.grad(lambda params: jnp.sum(hidden(body, params, key) ** 2)))(params)
    return {name: sum(float(np.abs(x).sum()) for x in jax.tree.leaves(part))
            for name, part in grads.items()}  # fmt: skip


@pytest.mark.parametrize("name", ["concat_last_4", "weighted_all"])
def test_frozen_encoders_get_no_gradient(name):
    body = Body(ENCODER, name, bilstm=1, bilstm_width=6)
    sizes = gradients(body, fresh(body), KEY)
    assert sizes.pop("encoder") == 0
    assert sizes and all(size > 0 for size in sizes.values())


def test_without_features_the_encoder_learns_below_a_bilstm():
    """The paper's LTR + BiLSTM (section 5.1)."""
    body = Body(ENCODER, bilstm=1, bilstm_width=6)
    assert all(size > 0 for size in gradients(body, fresh(body)).values())


def test_dropout_is_outside_frozen_encoders_and_follows_its_key():
    frozen = Body(ENCODER, "last")
    params = fresh(frozen)
    np.testing.assert_array_equal(hidden(frozen, params), hidden(frozen, params, KEY))
    for body in (Body(ENCODER), Body(ENCODER, "last", bilstm=2, bilstm_width=6)):
        params = fresh(body)
        one, other = hidden(body, params, KEY), hidden(body, params, jax.random.key(6))
        np.testing.assert_array_equal(one, hidden(body, params, KEY))
        assert np.abs(one - other).max() > 1e-3
        assert np.abs(one - hidden(body, params)).max() > 1e-3


def test_padding_is_not_read():
    body = Body(ENCODER, bilstm=2, bilstm_width=6)
    params = fresh(body)
    whole = hidden(body, params)
    real = np.arange(16) < np.array(LENGTHS)[:, None]
    tokens = np.where(real, np.pad(TOKENS, ((0, 0), (0, 4))), 30)  # other padding, and more of it
    wider = jax.jit(body.hidden)(params, Inputs(tokens, np.zeros_like(tokens), LENGTHS), None)
    np.testing.assert_allclose(wider[real], whole[real[:, :12]], atol=1e-5)


# The BiLSTM.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_lstm(params, x):
    """One direction over one sequence [S, D], step by step, in float64."""
    gates = {name: jax.tree.map(np.float64, gate) for name, gate in params.items()}
    cell = out = np.zeros(len(gates["hi"]["bias"]))
    outs = []
    for vector in x:
        enter, forget, value, leave = (
            vector @ gates[f"i{g}"]["kernel"]
            + out @ gates[f"h{g}"]["kernel"]
            + gates[f"h{g}"]["bias"]
            for g in "ifgo"
        )
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(value)
        out = sigmoid(leave) * np.tanh(cell)
        outs.append(out)
    return np.array(outs)


@pytest.mark.parametrize("width", [6, 7])
def test_bilstm_is_two_plain_lstms_over_the_real_positions(width):
    module = BiLSTM(layers=2, width=width)
    x = jnp.asarray(RNG.normal(size=(3, 9, 5)), jnp.float32)
    lengths = jnp.array([9, 4, 1])
    params = module.init(jax.random.key(2), x, lengths)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases too
    out = apply(module, params, x, lengths)
    assert out.shape == (3, 9, width) and out.dtype == jnp.float32
    for row, n in enumerate(lengths.tolist()):
        y = np.asarray(x[row, :n])
        for layer in range(2):
            forward = plain_lstm(params[f"forward_{layer}"], y)
            backward = plain_lstm(params[f"backward_{layer}"], y[::-1])[::-1]
            y = np.concatenate([forward, backward], axis=-1)
        np.testing.assert_allclose(out[row, :n], y, atol=1e-6)
        # Nothing of the padding gets in, however large.
        poisoned = x.at[row, n:].set(1e6)
        again = apply(module, params, poisoned, lengths)
        np.testing.assert_array_equal(again[row, :n], out[row, :n])


def test_bilstm_stays_in_float32_on_low_precision_features():
    module = BiLSTM(layers=1, width=4)
    x = jnp.ones((1, 3, 5), jnp.bfloat16)
    params = module.init(KEY, x, jnp.array([3]))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert apply(module, params, x, jnp.array([3])).dtype == jnp.float32


def test_papers_bilstm():
    """Two layers of 768, both directions together, on four layers of BERT-Base."""
    body = Body(EncoderBackbone(vocab_size=100), "concat_last_4", bilstm=2)
    row = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(body.init, KEY, Inputs(row, row, row[:, 0]))["bilstm"]
    assert body.width == 768
    assert shapes["forward_0"]["ii"]["kernel"].shape == (4 * 768, 384)
    assert shapes["backward_1"]["ii"]["kernel"].shape == (768, 384)
    assert shapes["backward_1"]["hi"]["kernel"].shape == (384, 384)
