"""Micro-batches: the gradients of the whole batch, exchanged once a step on every mesh.

The objective is small, so that compiling takes no time; test_sharding has a real one.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.models.layers import by_row
from bert_jax.models.operations import dropout, product
from bert_jax.objectives.base import Mean
from bert_jax.training import accumulate, sharding

ROWS, LENGTH, WIDTH, CLASSES = 32, 3, 16, 8
SPECS = {"inner": PartitionSpec("fsdp", "tensor"), "outer": PartitionSpec("tensor", None)}
MESHES = [(8, 1, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2)]


@dataclasses.dataclass(frozen=True)
class TwoLayers:
    """Predicts a class of each row that has a weight; dropout at every place that models have it:
    of rows, and of rows by positions."""

    rate: float = 0.5

    def loss(self, params, batch, key, train):
        del train
        first, second = jax.random.split(key)
        x = by_row(dropout(batch["x"], self.rate, first))
        hidden = jnp.tanh(product(x, params["inner"], 1)).mean(1)
        logits = product(dropout(hidden, self.rate, second), params["outer"], 1)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)[:, 0]
        terms = [Mean(-jnp.sum(chosen * w), jnp.sum(w)) for w in (batch["weight"], batch["other"])]
        loss = Mean(*(jnp.stack([getattr(t, n) for t in terms]) for n in ("sum", "count")))
        return loss, {"first": terms[0], "second": terms[1]}


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,) * 3
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, sharding.MESH_AXES, axis_types=auto, devices=devices)


def inputs(mesh):
    rng = np.random.default_rng(0)
    params = {
        "inner": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32),
        "outer": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
    }
    batch = {
        "x": rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
        "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
        # Unequal numbers in micro-batches and devices.
        "weight": (rng.random(ROWS) < np.linspace(0.1, 1, ROWS)).astype(np.float32),
        "other": (rng.random(ROWS) < 0.2).astype(np.float32),
    }
    place = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    return jax.device_put(params, place), sharding.to_global(mesh, batch, ROWS)


def compiled(mesh, pieces: int, rate: float = 0.5):
    function = functools.partial(accumulate.gradients, TwoLayers(rate), pieces=pieces, specs=SPECS)
    split = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    jitted = jax.jit(
        sharding.on_mesh(mesh, lambda *args: function(*args)),
        out_shardings=(split, sharding.replicated(mesh)),
    )
    params, batch = inputs(mesh)
    return jitted.lower(params, batch, jax.random.key(7)).compile()


def results(mesh, pieces: int, rate: float = 0.5):
    params, batch = inputs(mesh)
    found = compiled(mesh, pieces, rate)(params, batch, jax.random.key(7))
    return jax.tree.map(np.asarray, found)


@functools.cache
def on_one_device(pieces: int, rate: float):
    return results(mesh_of(1, 1, 1), pieces, rate)


def assert_close(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("shape", MESHES)
def test_every_mesh_gives_what_one_device_gives(shape, pieces):
    """With dropout: its masks are of places in the batch, not of places on a device."""
    assert_close(results(mesh_of(*shape), pieces), on_one_device(pieces, 0.5))


@pytest.mark.parametrize("pieces", [2, 4])
def test_micro_batches_add_up_to_the_batch(pieces):
    """Without dropout, of which each micro-batch has its own."""
    assert_close(on_one_device(pieces, 0.0), on_one_device(1, 0.0))


def test_each_micro_batch_has_dropout_of_its_own():
    """Else its rows would be masked as those of the others."""
    found = [on_one_device(pieces, 0.5)[0]["inner"] for pieces in (1, 2, 4)]
    for x, y in ((0, 1), (1, 2)):
        assert np.abs(found[x] - found[y]).max() > 1e-3


COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all)\(.*op_name=\"(.*?)\""
)


@pytest.mark.parametrize("shape", MESHES)
def test_the_network_is_crossed_once_a_step(shape):
    """In the loop over micro-batches nothing moves but what the axis `tensor` needs."""
    texts = {pieces: compiled(mesh_of(*shape), pieces).as_text() for pieces in (2, 4)}
    counts = set()
    for text in texts.values():
        found = [match.groups() for line in text.splitlines() if (match := COLLECTIVE.search(line))]
        inside = [types for types, where in found if "while/body" in where]
        assert shape[2] > 1 or not inside
        assert all("dot_general" in where for _, where in found if "while/body" in where)
        counts.add(len(found) - len(inside))
        outside = " ".join(types for types, where in found if "while/body" not in where)
        assert "[" in outside  # the gradients
    assert len(counts) == 1  # whatever the number of micro-batches
