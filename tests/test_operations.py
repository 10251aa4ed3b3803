"""Gradients written by hand are those of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models.operations import attend, product


@pytest.mark.parametrize(
    ("rows", "inside", "outside"),
    [((2, 3), (5,), (7,)), ((2, 3), (5,), (2, 4)), ((2, 3), (2, 4), (5,)), ((6,), (5,), (7,))],
    ids=["dense", "to heads", "from heads", "of rows"],
)
def test_product_and_its_gradients(rows, inside, outside):
    """Of whole numbers, whose sums are exact in any order: equal to the bit."""
    draw = np.random.default_rng(0)
    x, kernel, grad = (
        jnp.asarray(draw.integers(-9, 10, shape), jnp.float32)
        for shape in ((*rows, *inside), (*inside, *outside), (*rows, *outside))
    )
    count = len(inside)
    ours, gradients = jax.vjp(lambda x, kernel: product(x, kernel, count), x, kernel)
    plain, expected = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, count), x, kernel)
    np.testing.assert_array_equal(ours, plain)
    for found, one in zip(gradients(grad), expected(grad), strict=True):
        np.testing.assert_array_equal(found, one)


@pytest.mark.parametrize("rows", [1, 2])
def test_attention_and_its_gradients(rows):
    """Also where a query may look nowhere: it looks everywhere alike, and learns nothing of it."""
    draw = np.random.default_rng(1)
    q, k, v, grad = (jnp.asarray(draw.normal(size=(2, 3, 5, 4)), jnp.float32) for _ in range(4))
    mask = draw.random((rows, 5, 5)) < 0.6
    mask[0, 2] = False

    def plain(q, k, v):
        scores = jnp.where(mask[:, None], jnp.einsum("bnsh,bnth->bnst", q, k), -1e9)
        return jnp.einsum("bnst,bnth->bnsh", jax.nn.softmax(scores), v)

    ours, gradients = jax.vjp(
        lambda q, k, v: attend(q, k, v, jnp.asarray(mask), None, 0.0), q, k, v
    )
    theirs, expected = jax.vjp(plain, q, k, v)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(ours[0, :, 2], v[0].mean(axis=1), atol=1e-6)
    for found, one in zip(gradients(grad), expected(grad), strict=True):
        np.testing.assert_allclose(found, one, atol=2e-6)
    assert not gradients(grad)[0][0, :, 2].any()
