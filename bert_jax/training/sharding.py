"""The device mesh, the one table from logical axes to mesh axes, and the way there and back."""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.common.errors import UserError
from bert_jax.training import watch

R = TypeVar("R")
MESH_AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # along which devices hold different rows of a batch
# Logical axis of a parameter or an activation -> mesh axes. Axes not named here are replicated.
LOGICAL_AXES: dict[str, str | tuple[str, ...]] = {
    "batch": ROW_AXES,
    "vocab": "tensor",
    "heads": "tensor",
    "feed_forward": "tensor",
    "model": "fsdp",
}


def make_mesh(sizes: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices; one size may be -1: whatever is left.

    devices: others than those of this machine, as of a topology to compile for.
    Raises: UserError: the sizes do not multiply to the number of devices.
    """
    shape = [sizes[axis] for axis in MESH_AXES]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    known = math.prod(size for size in shape if size != -1)
    rest = count // known if known > 0 else 0
    if shape.count(-1) > 1 or rest * known != count or (-1 not in shape and rest != 1):
        raise UserError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} does not fit {count} devices: the "
            "sizes must multiply to that number, one of them may be -1 for the rest"
        )
    shape = [rest if size == -1 else size for size in shape]
    # Auto: linen modules do not write out-shardings, which Explicit axes would demand.
    auto = (AxisType.Auto,) * 3
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)
    if shape[0] % slices:
        raise UserError(f"mesh.data={shape[0]} must divide by the {slices} slices it runs across")
    # Only gradients cross the network between slices: fsdp and tensor stay within one.
    within = (shape[0] // slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
    return Mesh(grid, MESH_AXES, axis_types=auto)


def check_batch(mesh: Mesh, batch_size: int, accumulation: int = 1) -> None:
    """Raises a `UserError` when the (global) micro-batches cannot be shared out evenly."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % (accumulation * shards):
        raise UserError(
            f"batch_size={batch_size} must divide by accumulation={accumulation} "
            f"times the {shards} devices that share a batch"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; everything else whole."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_AXES["batch"]))


def on_mesh(mesh: Mesh, function: Callable[..., R]) -> Callable[..., R]:
    """The function, traced so that the models' logical constraints mean axes of this mesh."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> R:
        rules = nn.logical_axis_rules(tuple(LOGICAL_AXES.items()))
        with rules, jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return wrapped


def rules_without(axes: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Returns the rules of the table that say nothing of these mesh axes."""
    taken = set(axes)
    return tuple(
        (name, None if taken & {*([to] if isinstance(to, str) else to)} else to)
        for name, to in LOGICAL_AXES.items()
    )


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
        axes: list[Any] = [LOGICAL_AXES.get(name or "") for name in leaf.names]
        fits = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, leaf.value.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


@functools.cache
def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that are on this process's devices, ascending: int[rows].

    Processes hold the same rows where the tensor axis runs across them.
    Raises: UserError: the batch cannot be shared out evenly.
    """
    check_batch(mesh, batch_size)
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    blocks = {place[0].indices(batch_size)[:2] for place in places if place}
    rows = np.concatenate([np.arange(start, stop) for start, stop in sorted(blocks)])
    rows.flags.writeable = False  # it is kept, and given to all who ask
    return rows


def to_global(mesh: Mesh, batch: Any, batch_size: int) -> Any:
    """Rows of a batch (NumPy) -> one global array a leaf, over data and fsdp.

    batch: this process's `local_rows`, or on every process all of the batch_size rows.
    """
    held, sharding = local_rows(mesh, batch_size), batch_sharding(mesh)

    def one(x: np.ndarray) -> jax.Array:
        def rows(place: Any) -> np.ndarray:  # slices of the global array, one a dimension
            start, stop, _ = place[0].indices(batch_size)
            first = start if len(x) == batch_size else int(np.searchsorted(held, start))
            return x[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, rows)

    return jax.tree.map(one, batch)


def to_host(tree: Any) -> Any:
    """Arrays -> NumPy; those that run across processes whole on each, so all must call it."""

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)


class InFlight:
    """Computations that were started and may not be finished: at most a few, oldest first.

    Every loop that starts computations counts them here. Without a bound a process runs ahead of
    its devices by hundreds: a request to stop waits for all of them, their results fill the
    memory, and on CPU, where computations that do not depend on one another share a pool of
    threads, those of several processes wait for one another for ever.
    """

    def __init__(self, most: int | None = None):
        """most: computations that may be unfinished when `add` returns.

        None: for computations that do not depend on one another. Then one, but none on the CPUs
        of several processes: gloo does not keep the messages of two computations apart.
        """
        if most is None:
            alone = jax.process_count() == 1 or jax.default_backend() != "cpu"
            most = 1 if alone else 0
        self._most = most
        self._started: collections.deque[Any] = collections.deque()

    def add(self, result: Any) -> Any:
        """Adds what a computation that was just started returned, a tree of arrays.

        Returns: what the oldest one returned, finished, once more than `most` were unfinished;
          else None.
        """
        self._started.append(result)
        return self.oldest() if len(self._started) > self._most else None

    def oldest(self) -> Any:
        """Takes out the oldest computation's result, finished; None where there is none."""
        if not self._started:
            return None
        result = jax.block_until_ready(self._started.popleft())
        watch.count()
        return result


def ahead(work: Iterable[R], most: int | None = None) -> Iterator[R]:
    """Yields what computations that do not depend on one another return, each when it is finished.

    Args:
      work: starts a computation with each item that it is asked for; an item is a tree of arrays
        and of whatever belongs to them.
      most: computations that are under way while an item is used; None: as of `InFlight`.
    """
    in_flight = InFlight(most)
    for item in work:
        if (done := in_flight.add(item)) is not None:
            yield done
    while (done := in_flight.oldest()) is not None:
        yield done
