"""A GPU or TPU against the CPU beside it. `python -m pytest -m accelerator`"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, pretraining, random_params, some_batch

from bert_jax.models import kernels
from bert_jax.models.encoder import EncoderBackbone

pytestmark = pytest.mark.accelerator
ROWS = 8


@pytest.fixture(autouse=True)
def device() -> jax.Device:
    if jax.default_backend() == "cpu":
        pytest.skip("needs a GPU or TPU")
    return jax.devices()[0]


def step(config: EncoderBackbone, device: jax.Device, size: int):
    """Loss, gradients and metrics of a batch, with corruption and dropout, on a device."""
    objective = pretraining(config)
    numbers = jnp.arange(2 * ROWS).reshape(ROWS, 2)
    labels = {"instance": numbers, "pair_label": numbers[:, 1] % 3 // 2}
    batch = some_batch(config, ROWS, size) | labels | {"weight": jnp.ones(ROWS)}
    arguments = random_params(config, stddev=0.05), batch, jax.random.key(1)

    def loss(params, batch, key):
        mean, metrics = objective.loss(params, batch, key, True)
        return mean.value(), metrics

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    with jax.default_matmul_precision("highest"):
        return jax.device_get(gradient(*jax.device_put(arguments, device)))


def assert_near(found, expected, tolerance: float) -> None:
    """Norm of the difference over the norm, of each array; of tiny ones, over that of all."""
    whole = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        error = np.linalg.norm(np.ravel(one) - np.ravel(other))
        assert error <= tolerance * max(np.linalg.norm(np.ravel(other)), 0.1 * whole)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_the_step_is_that_of_the_cpu(device, dtype, tolerance):
    """The masks of corruption and dropout are the same bits on both."""
    (found, metrics), by_params = step(dataclasses.replace(TINY, dtype=dtype), device, 16)
    (loss, expected), gradients = step(TINY, jax.devices("cpu")[0], 16)
    assert found == pytest.approx(loss, rel=tolerance)
    assert {n: m.count for n, m in metrics.items()} == {n: m.count for n, m in expected.items()}
    assert_near(by_params, gradients, tolerance)


def test_kernels_compute_the_same(device):
    """Compiled, where test_kernels.py interprets them."""
    config = dataclasses.replace(
        TINY, layers=3, width=128, heads=2, head_width=64, feed_forward=256, max_positions=128,
        dtype="bfloat16",
    )  # fmt: skip
    if not kernels.fits((ROWS, 128), config.width, config.heads, config.head_width):
        pytest.skip("the kernels need a TPU")
    (loss, _), gradients = step(config, device, 128)
    (found, _), by_params = step(dataclasses.replace(config, kernels=True), device, 128)
    assert found == pytest.approx(loss, rel=1e-2)
    assert_near(by_params, gradients, 3e-2)
