"""Gradients of a large batch from micro-batches, with one exchange between devices a step.

Each device adds up the gradients of its own rows over all micro-batches, and only then are they
summed over the devices. Left to the compiler, every micro-batch would cross the network.

The price is memory where parameters are split over the axis `fsdp`: they are gathered once a step
and stay whole on each device until its last micro-batch is done, and so do the gradients, which are
then summed and split in one exchange. (An axis `tensor` splits both all the while.)
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bert_jax.objectives.base import Batch, Mean, Objective
from bert_jax.training import sharding


def gradients(
    objective: Objective, params: Any, batch: Batch, key: jax.Array, pieces: int, specs: Any
) -> tuple[Any, dict[str, Mean]]:
    """Computes the gradients of the loss over the global batch, and its metrics.

    Each term of the loss is divided by its count over the whole batch, so micro-batches with
    unequal numbers of predictions add up to exactly the large batch's mean.

    Args:
      batch: on the mesh that is set; row r goes to micro-batch r % pieces.
      pieces: micro-batches; with 1 the compiler sums over the devices as it likes.
      specs: partition specs of the parameters.
    Returns: the gradients, split as the parameters are; the metrics, with "loss".
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(a for a in sharding.ROW_AXES if mesh.shape[a] > 1)
    if pieces == 1 or not axes:
        return _of_rows(objective, params, batch, key, pieces, ())

    def of_device(params: Any, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, Mean]]:
        # Here arrays are those of the device's own rows, and its axes no longer to be spoken of.
        with nn.logical_axis_rules(sharding.rules_without(sharding.ROW_AXES)):
            grads, means = _of_rows(objective, params, batch, key, pieces, axes)
        return jax.tree.map(_summed, grads, kept), jax.lax.psum(means, axes)

    def _summed(grad: jax.Array, spec: PartitionSpec) -> jax.Array:
        rest = axes
        if "fsdp" in spec:
            dimension = spec.index("fsdp")
            grad = jax.lax.psum_scatter(grad, "fsdp", scatter_dimension=dimension, tiled=True)
            rest = tuple(axis for axis in axes if axis != "fsdp")
        return jax.lax.psum(grad, rest) if rest else grad

    kept = jax.tree.map(lambda spec: _only_fsdp(spec, axes), specs)
    grads, means = jax.shard_map(
        of_device,
        in_specs=(PartitionSpec(), PartitionSpec(axes), PartitionSpec()),
        out_specs=(kept, PartitionSpec()),
        axis_names=set(axes),
        check_vma=False,  # else JAX would sum the gradients in every micro-batch, too
    )(params, batch, key)
    means["loss"] = dataclasses.replace(means["loss"], count=jnp.float32(1))
    return grads, means


def _only_fsdp(spec: PartitionSpec, axes: tuple[str, ...]) -> PartitionSpec:
    """Returns the spec without the axes that stay the compiler's."""
    return PartitionSpec(*("fsdp" if a == "fsdp" and a in axes else None for a in spec))


def _of_rows(
    objective: Objective, params: Any, batch: Batch, key: jax.Array, pieces: int,
    axes: tuple[str, ...],
) -> tuple[Any, dict[str, Mean]]:  # fmt: skip
    """Computes gradients and metrics of the rows that are here; counts are over all `axes`."""
    loss, total = objective.loss, None
    if pieces > 1:
        # Counts do not depend on the parameters: the compiler drops the model from this call.
        total = loss(params, batch, key, True)[0].count
        total = jax.lax.psum(total, axes) if axes else total

    def scaled(params: Any, batch: Batch, key: jax.Array):
        mean, means = loss(params, batch, key, True)
        count = mean.count if total is None else total
        value = jnp.sum(mean.sum / jnp.maximum(count, 1e-9))
        return value, {"loss": Mean(value, jnp.float32(1)), **means}

    gradient = jax.grad(scaled, has_aux=True)
    if pieces == 1:
        return gradient(params, batch, key)
    # Row r goes to micro-batch r % pieces, so every device keeps rows of its own.
    micro = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry, piece):
        index, rows = piece
        one = gradient(params, rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, carry, one), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(jnp.zeros_like, shapes)
    (grads, means), _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), micro))
    means["loss"] = dataclasses.replace(means["loss"], count=jnp.float32(1))
    return grads, means
