"""The device mesh, and the one table from logical axes to mesh axes."""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
# Logical axis of a parameter -> mesh axis. Axes not named here are replicated.
LOGICAL_AXES = {
    "vocab": "tensor",
    "heads": "tensor",
    "feed_forward": "tensor",
    "model": "fsdp",
}
BATCH = PartitionSpec(("data", "fsdp"))  # rows of a batch


def make_mesh(sizes: Any) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices; one size may be -1: whatever is left."""
    shape = [sizes[axis] for axis in MESH_AXES]
    devices = jax.device_count()
    known = math.prod(size for size in shape if size != -1)
    rest = devices // known if known > 0 else 0
    if shape.count(-1) > 1 or rest * known != devices or (-1 not in shape and rest != 1):
        raise UserError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} does not fit {devices} devices: the "
            "sizes must multiply to that number, one of them may be -1 for the rest"
        )
    shape = [rest if size == -1 else size for size in shape]
    # Auto: linen modules do not write out-shardings, which Explicit axes would demand.
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; everything else whole."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Shardings of a tree of shapes, boxed with logical axes, in the structure without boxes.

    An axis whose size the mesh axis does not divide stays whole.
    """

    def one(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return replicated(mesh)
        axes = [LOGICAL_AXES.get(name) if name else None for name in leaf.names]
        fits = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.value.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def to_global(sharding: NamedSharding, batch: Any) -> Any:
    """This process's rows of a batch (NumPy) -> one global array a leaf."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
