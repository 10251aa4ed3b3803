"""The Pallas kernels, interpreted on CPU, against `operations`: their values and gradients."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import kernels, operations
from bert_jax.models.encoder import Encoder, EncoderBackbone
from bert_jax.models.layers import apply
from bert_jax.training import sharding

B, S, N, H = 2, 128, 2, 64
D = N * H
PADDING = (jnp.arange(S)[None] < jnp.array([77, 0])[:, None])[:, None]  # a row without any token
CAUSAL = PADDING & (jnp.arange(S)[None, None] <= jnp.arange(S)[None, :, None])


@pytest.fixture
def interpreted(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRET", True)


def normal(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def assert_same(plain, fused, arguments, gradient, tolerance: float) -> None:
    """Values and gradients, each compared with its own largest number; the plain in float32."""
    exact, exact_gradient = jax.tree.map(lambda x: x.astype("float32"), (arguments, gradient))
    expected, plain_back = jax.vjp(plain, *exact)
    found, fused_back = jax.vjp(fused, *arguments)
    assert found.dtype == gradient.dtype
    pairs = zip(
        (expected, *plain_back(exact_gradient)), (found, *fused_back(gradient)), strict=True
    )
    for one, other in pairs:
        largest = np.abs(one).max()
        np.testing.assert_allclose(other.astype("float32"), one, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("mask", [None, PADDING, CAUSAL], ids=["all", "padding", "causal"])
def test_attention(interpreted, mask, rate, dtype, tolerance):
    key = jax.random.key(5)

    def plain(q, k, v, biases):
        def heads(x, bias):
            return (x + bias[None, None]).reshape(B, S, N, H).swapaxes(1, 2)

        q, k, v = map(heads, (q, k, v), biases)
        mixed = operations.attend(q * H**-0.5, k, v, mask, key, rate)
        return mixed.swapaxes(1, 2).reshape(B, S, D)

    def fused(q, k, v, biases):
        return kernels.attend(q, k, v, biases, mask, key, N, rate)

    inputs = [normal(seed, B, S, D, dtype=dtype) for seed in range(4)]
    assert_same(plain, fused, (*inputs[:3], normal(4, 3, D)), inputs[3], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_residual_and_norm(interpreted, rate, dtype, tolerance):
    key = jax.random.key(5)

    def plain(x, y, y_bias, scale, bias):
        y = y + y_bias[None, None]
        return operations.add_and_norm(x, y, scale, bias, key, rate, 1e-12)

    def fused(x, y, y_bias, scale, bias):
        return kernels.add_and_norm(x, y, y_bias, scale, bias, key, rate, 1e-12)

    x, y, gradient = (normal(seed, B, S, D, dtype=dtype) for seed in range(3))
    vectors = [normal(seed, D) for seed in (3, 4, 5)]
    assert_same(plain, fused, (x, y, *vectors), gradient, tolerance)


@pytest.mark.parametrize(
    ("axes", "changes"),
    [
        ({"data": 1}, {}),
        ({"data": 2, "tensor": 2}, {}),
        ({"data": 1, "fsdp": 2}, {"remat": True}),
        ({"data": 2}, {"scan_layers": True, "remat": True}),
    ],
    ids=["one device", "batch and heads split", "parameters split, remat", "scanned, remat"],
)
def test_the_encoder_with_them_is_the_one_without(interpreted, axes, changes):
    """With dropout, whatever the mesh; the last layer, of some positions only, is plain in both."""
    rows, length, width = 4, 128, 256
    shape = {"data": 1, "fsdp": 1, "tensor": 1} | axes
    mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    plain = EncoderBackbone(
        vocab_size=50, layers=3, width=width, heads=4, feed_forward=512, max_positions=length
    )
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, 50)
    mask = (jnp.arange(length)[None] < jnp.array([128, 70, 9, 128])[:, None])[:, None]
    wanted = jnp.tile(jnp.arange(5)[None], (rows, 1))
    weights = normal(2, rows, 5, width)
    boxed = Encoder(plain).init(jax.random.key(0), tokens, tokens * 0, mask)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * normal(x.size, *x.shape), nn.unbox(boxed))
    params = jax.device_put(params, sharding.tree_shardings(mesh, boxed))

    def run(config):
        def loss(params):
            args = tokens, tokens % 2, mask, jax.random.key(3)
            return jnp.sum(apply(Encoder(config), params, *args, wanted=wanted) * weights)

        return jax.jit(sharding.on_mesh(mesh, jax.value_and_grad(loss)))(params)

    loss, gradients = run(plain)
    fused_loss, fused = run(dataclasses.replace(plain, kernels=True, **changes))
    assert float(fused_loss) == pytest.approx(float(loss), rel=1e-4)
    whole = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(gradients)))
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(fused), strict=True):
        error = jnp.linalg.norm((other - one).reshape(-1))
        # Queries and keys have small ones, sums that nearly cancel: a rounding of the whole shows.
        assert error <= 1e-5 * jnp.linalg.norm(one.reshape(-1)) + 1e-6 * whole


@pytest.mark.parametrize(
    ("shape", "width", "heads", "head_width", "fit"),
    [
        ((8, 128), 768, 12, 64, True),
        ((8, 512), 1024, 16, 64, True),
        ((8, 640), 768, 12, 64, False),
        ((8, 100), 768, 12, 64, False),
        ((8, 128), 768, 6, 128, False),
        ((8, 128), 192, 3, 64, False),
        ((8, 128), 128, 2, 64, False),  # one head on each of two devices
        ((3, 128), 768, 12, 64, False),  # three rows on four devices
    ],
)
def test_what_they_fit(interpreted, shape, width, heads, head_width, fit):
    mesh = sharding.make_mesh({"data": 4, "fsdp": 1, "tensor": 2}, jax.devices())
    assert sharding.on_mesh(mesh, kernels.fits)(shape, width, heads, head_width) == fit


def test_they_need_a_tpu():
    assert not kernels.fits((8, 128), 768, 12, 64)
