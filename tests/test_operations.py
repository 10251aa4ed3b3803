"""Gradients written by hand are those of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models.operations import product


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
