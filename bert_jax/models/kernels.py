"""Pallas kernels for TPU: attention; dropout, residual and norm. `operations` is the oracle.

Same values, gradients and dropout masks as `operations.attend` and `operations.add_and_norm` (to
rounding), but fewer passes over HBM: no [S, S] array ever leaves the core, biases are added and
their gradients summed on the way, and the backward pass recomputes what it can. All of it runs once
on each device of the mesh, on its rows and heads.

Attention goes through two heads of width 64 at a time, which fill the 128 lanes of a register: a
head's operand is that of both with the other's lanes zero. Scores are held as [T, S], so that the
sums over T run along registers rather than inside them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.models.operations import Key, first_row, keep, key_words

LANES = 128
HEAD_WIDTH = 64
LONGEST = 512  # the longest S whose [T, S] scores fit the core's memory with all that is beside
NOT_HERE = (
    f"model.kernels=true has no effect: the kernels are for TPU, heads of {HEAD_WIDTH} and an even "
    f"number of them on each device, S and D in steps of {LANES}, S up to {LONGEST}"
)
INTERPRET = False  # tests set it: the kernels in plain JAX, on any platform


def fits(shape: tuple[int, ...], width: int, heads: int, head_width: int) -> bool:
    """Whether the kernels can run: on a TPU, for [B, S], D, N and H over the mesh that is set."""
    rows, length = shape
    mesh = jax.sharding.get_abstract_mesh()
    shards = {"batch": 1, "heads": 1}
    if mesh.empty:
        platform = jax.default_backend()
    else:
        platform = mesh.abstract_device.platform if mesh.abstract_device else ""
        for name in shards:
            [axes] = nn.logical_to_mesh_axes((name,)) or [None]
            axes = (axes,) if isinstance(axes, str) else axes or ()
            shards[name] = math.prod(mesh.shape[axis] for axis in axes)
    return (
        (INTERPRET or platform == "tpu")
        and rows % shards["batch"] == 0
        and heads % (2 * shards["heads"]) == 0
        and head_width == HEAD_WIDTH
        and width % LANES == 0
        and length % LANES == 0
        and length <= LONGEST
    )


def _on_each_device(
    function: Callable[..., Any], arguments: tuple[str, ...], results: tuple[str, ...]
) -> Callable[..., Any]:
    """The function, run on each device's part of its arguments, if a mesh is set.

    arguments, results: logical axes of each, as in "batch - heads".
    """
    mesh = jax.sharding.get_abstract_mesh()
    left = set(mesh.axis_names) - set(mesh.manual_axes)  # along the others it is so already
    if not left:
        return function

    def specs(names: tuple[str, ...]) -> Any:
        axes = [tuple(None if a == "-" else a for a in name.split()) for name in names]
        return tuple(nn.logical_to_mesh_axes(a) for a in axes)

    return jax.shard_map(
        function, in_specs=specs(arguments), out_specs=specs(results), axis_names=left,
        check_vma=False,
    )  # fmt: skip


def _call(kernel: Callable[..., None], grid: tuple[int, ...], inputs: Any, outputs: Any) -> Any:
    """A kernel over a grid, whose steps run one after another.

    inputs: (array, block shape, place of a step's block) each; without a shape, an array of
      numbers for addresses and keys. outputs: the same, with `ShapeDtypeStruct`s for the arrays.
    """

    def spec(_: Any, shape: Any = None, place: Any = None) -> pl.BlockSpec:
        return pl.BlockSpec(shape, place) if shape else pl.BlockSpec(memory_space=pltpu.SMEM)

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[spec(*x) for x in inputs],
        out_specs=[spec(*x) for x in outputs],
        out_shape=[x[0] for x in outputs],
        interpret=INTERPRET,
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=64 * 2**20),
    )(*[x[0] for x in inputs])


def _iota(shape: tuple[int, int], axis: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


# Attention


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    biases: jax.Array,
    mask: jax.Array | None,
    key: Key,
    heads: int,
    rate: float,
) -> jax.Array:
    """`operations.attend` of (q + bias)/√H, k + bias, v + bias, the heads side by side.

    Args:
      q, k, v: [B, S, N·H].
      biases: [3, N·H], of q, k and v.
      mask: bool [B|1, 1|S, S], as there.
      heads: N.
    Returns: [B, S, N·H].
    """
    return _attend_forward(q, k, v, biases, mask, key, heads, rate)[0]


def _attend_forward(q, k, v, biases, mask, key, heads, rate):
    saved = (q, k, v, biases, mask, key)
    (mixed,) = _attention(_forward_kernel, ["batch - heads"], saved, (), heads, rate)
    return mixed, saved


def _attend_backward(heads, rate, saved, grad):
    results = ["batch - heads"] * 3 + ["batch heads - -"]
    *by_qkv, sums = _attention(_backward_kernel, results, saved, (grad,), heads, rate)
    biases = saved[3]
    by_biases = sums.sum(0).swapaxes(0, 1).reshape(biases.shape).astype(biases.dtype)
    return *by_qkv, by_biases, None, None


attend.defvjp(_attend_forward, _attend_backward)


def _attention(kernel, results, saved, grad, heads, rate):
    """Runs one of the two kernels on every device; results: logical axes."""
    q, k, v, biases, mask, key = saved
    rows, length, _ = q.shape
    if mask is None:
        mask = jnp.ones((1, 1, 1), bool)
    # [B|1, T, S], whole: it is read once for all heads.
    mask = jnp.broadcast_to(mask, (len(mask), length, length)).swapaxes(1, 2).astype(jnp.int8)
    rate = 0.0 if key is None else rate

    def local(q, k, v, biases, mask, words, row, head, *grad):
        block = math.gcd(q.shape[0], LONGEST // length)
        wide = (block, length, LANES), lambda b, n: (b, 0, n)
        of_mask = ((block, length, length), lambda b, n: (b, 0, 0))
        if len(mask) == 1:
            of_mask = mask.shape, lambda b, n: (0, 0, 0)
        numbers = jnp.concatenate([words, row[:1], head[:1]])
        inputs = [
            (numbers,), (q, *wide), (k, *wide), (v, *wide),
            (biases, (3, LANES), lambda b, n: (0, n)),
            (mask, *of_mask),
            *[(g, *wide) for g in grad],
        ]  # fmt: skip
        pairs = q.shape[2] // LANES
        outputs: list[Any] = [(jax.ShapeDtypeStruct(q.shape, q.dtype), *wide)]
        if grad:
            sums = jax.ShapeDtypeStruct((1, pairs, 3, LANES), jnp.float32)
            outputs = outputs * 3 + [(sums, sums.shape, lambda b, n: (0, 0, 0, 0))]
        grid = (q.shape[0] // block, pairs)
        return _call(functools.partial(kernel, heads, rate), grid, inputs, outputs)

    axes = "batch - heads"
    of_mask = "batch - -" if len(mask) > 1 else "- - -"
    arguments = (axes, axes, axes, "- heads", of_mask, "-", "batch", "heads", axes)
    run = _on_each_device(local, arguments[: 8 + len(grad)], tuple(results))
    numbers = _places(rows), jnp.arange(heads, dtype=jnp.uint32)
    return run(q, k, v, biases, mask, key_words(key), *numbers, *grad)


def _places(rows: int) -> jax.Array:
    """Numbers the rows of an array as they are in the whole batch: uint32[rows]."""
    places = jnp.arange(rows, dtype=jnp.uint32)
    return places if (first := first_row(rows)) is None else places + first


class _Heads:
    """What both kernels compute of one row and the two heads of a step."""

    def __init__(self, heads, rate, numbers, refs, r):
        q, k, v, biases, mask = refs
        self.rate, self.dtype = rate, q.dtype
        bias = biases[...].astype(jnp.float32)
        self.q = (q[r].astype(jnp.float32) + bias[0:1]).astype(self.dtype).astype(jnp.float32)
        self.q *= HEAD_WIDTH**-0.5
        self.k = (k[r].astype(jnp.float32) + bias[1:2]).astype(self.dtype)
        self.v = (v[r].astype(jnp.float32) + bias[2:3]).astype(self.dtype)
        self.mask = mask[r if mask.shape[0] > 1 else 0].astype(jnp.int32) > 0  # [T, S]
        row = numbers[2] + (pl.program_id(0) * q.shape[0] + r).astype(jnp.uint32)
        head = numbers[3] + (2 * pl.program_id(1)).astype(jnp.uint32)
        self.first = (row * jnp.uint32(heads) + head) * jnp.uint32(q.shape[1])
        self.words = numbers[0], numbers[1]

    def half(self, x, h):
        """[S, 2·H] with the lanes of the other head zero."""
        lane = _iota((1, LANES), 1)
        return jnp.where((lane < HEAD_WIDTH) == (h == 0), x.astype(jnp.float32), 0).astype(
            self.dtype
        )

    def weights(self, h):
        """Exponentials [T, S] of head h and what to multiply them by [1, S]."""
        scores = _dot(self.k, self.half(self.q, h), 1, 1)
        scores = jnp.where(self.mask, scores, -1e9)
        exponentials = jnp.exp(scores - scores.max(0, keepdims=True))
        return exponentials, 1 / exponentials.sum(0, keepdims=True)

    def dropped(self, x, h):
        """x [T, S], unscaled, with zeros where the weights of head h are dropped out."""
        if not self.rate:
            return x
        length = x.shape[0]
        row = self.first + jnp.uint32(h * length) + _iota((1, length), 1).astype(jnp.uint32)
        column = _iota((length, 1), 0).astype(jnp.uint32)
        return jnp.where(keep(row, column, self.words, self.rate), x, 0)


def _dot(a, b, axis_a, axis_b):
    """The product of two matrices over the given axes, in float32."""
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _forward_kernel(heads, rate, numbers, *refs):
    *inputs, mixed = refs
    for r in range(mixed.shape[0]):
        x = _Heads(heads, rate, numbers, inputs, r)

        def one(h, x=x):
            exponentials, scale = x.weights(h)
            weights = x.dropped(exponentials * (scale * (1 / (1 - rate))), h).astype(x.dtype)
            return _dot(weights, x.half(x.v, h), 0, 0)

        mixed[r] = (one(0) + one(1)).astype(x.dtype)


def _backward_kernel(heads, rate, numbers, *refs):
    *inputs, grad, by_q, by_k, by_v, sums = refs
    pair = pl.program_id(1)

    @pl.when((pl.program_id(0) == 0) & (pair == 0))
    def _():
        sums[...] = jnp.zeros_like(sums)

    total = jnp.zeros((3, LANES))
    for r in range(grad.shape[0]):
        x = _Heads(heads, rate, numbers, inputs, r)

        def one(h, x=x, r=r):
            exponentials, scale = x.weights(h)
            q, g = x.half(x.q, h), x.half(grad[r], h)
            weights = exponentials * scale
            scaled = x.dropped(weights * (1 / (1 - rate)), h)
            product = scaled * _dot(x.v, g, 1, 1)  # weights times their gradient
            by_score = product - weights * product.sum(0, keepdims=True)
            by_score = jnp.where(x.mask, by_score, 0).astype(x.dtype)
            by_k = _dot(by_score, q, 1, 0)
            return _dot(by_score, x.half(x.k, h), 0, 0), by_k, _dot(scaled.astype(x.dtype), g, 1, 0)

        by = [first + second for first, second in zip(one(0), one(1), strict=True)]
        by[0] *= HEAD_WIDTH**-0.5
        for ref, value in zip((by_q, by_k, by_v), by, strict=True):
            ref[r] = value.astype(x.dtype)
        total += jnp.concatenate([value.sum(0, keepdims=True) for value in by])
    sums[0, pair] += total


# Residual and norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def add_and_norm(
    x: jax.Array,
    y: jax.Array,
    y_bias: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    key: Key,
    rate: float,
    epsilon: float,
) -> jax.Array:
    """`operations.add_and_norm` of x and y + y_bias: [B, S, D]; y_bias, scale, bias [D]."""
    return _add_and_norm_forward(x, y, y_bias, scale, bias, key, rate, epsilon)[0]


def _add_and_norm_forward(x, y, y_bias, scale, bias, key, rate, epsilon):
    vectors = jnp.stack([y_bias, scale, bias])
    kernel = functools.partial(_norm_forward_kernel, 0.0 if key is None else rate, epsilon)
    out, total = _norm(kernel, (x, y), vectors, key, False)
    return out, (total, vectors, key)


def _add_and_norm_backward(rate, epsilon, saved, grad):
    total, vectors, key = saved
    kernel = functools.partial(_norm_backward_kernel, 0.0 if key is None else rate, epsilon)
    by_x, by_y, sums = _norm(kernel, (grad, total), vectors, key, True)
    return by_x, by_y, *sums.sum(0), None


add_and_norm.defvjp(_add_and_norm_forward, _add_and_norm_backward)


def _norm(kernel, arrays, vectors, key, sums):
    """Runs one of the two kernels on every device, on two arrays [B, S, D] and vectors [3, D].

    Returns two arrays, and with `sums` those over the rows of each device, [devices, 3, D].
    """
    rows, length, width = arrays[0].shape

    def local(words, row, vectors, *arrays):
        flat = [x.reshape(-1, width) for x in arrays]
        tokens, block = len(flat[0]), math.gcd(len(flat[0]), 256)
        tile = (block, width), lambda t: (t, 0)
        numbers = jnp.concatenate([words, row[:1] * jnp.uint32(length)])
        inputs = [(numbers,), (vectors, (3, width), lambda t: (0, 0)), *[(x, *tile) for x in flat]]
        outputs: list[Any] = [(jax.ShapeDtypeStruct(x.shape, x.dtype), *tile) for x in flat]
        if sums:
            shape = (1, 3, width)
            outputs += [(jax.ShapeDtypeStruct(shape, jnp.float32), shape, lambda t: (0, 0, 0))]
        out = _call(kernel, (tokens // block,), inputs, outputs)
        return *[x.reshape(arrays[0].shape) for x in out[:2]], *out[2:]

    both = ("batch - -",) * 2
    run = _on_each_device(local, ("-", "batch", "- -", *both), (*both, *["batch - -"] * sums))
    return run(key_words(key), _places(rows), vectors, *arrays)


def _keep(numbers, rate, shape):
    """The mask of a step's [tokens, D], as `operations.dropout` has it."""
    first = numbers[2] + (pl.program_id(0) * shape[0]).astype(jnp.uint32)
    row = first + _iota((shape[0], 1), 0).astype(jnp.uint32)
    return keep(row, _iota((1, shape[1]), 1).astype(jnp.uint32), (numbers[0], numbers[1]), rate)


def _normed(total, epsilon):
    centred = total - total.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def _norm_forward_kernel(rate, epsilon, numbers, vectors, x, y, out, total):
    y_bias, scale, bias = (vectors[i : i + 1].astype(jnp.float32) for i in range(3))
    added = y[...].astype(jnp.float32) + y_bias
    if rate:
        added = jnp.where(_keep(numbers, rate, x.shape), added * (1 / (1 - rate)), 0)
    rounded = (x[...].astype(jnp.float32) + added).astype(total.dtype)
    total[...] = rounded
    normed, _ = _normed(rounded.astype(jnp.float32), epsilon)
    out[...] = (normed * scale + bias).astype(out.dtype)


def _norm_backward_kernel(rate, epsilon, numbers, vectors, grad, total, by_x, by_y, sums):
    @pl.when(pl.program_id(0) == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    g = grad[...].astype(jnp.float32)
    normed, inverse = _normed(total[...].astype(jnp.float32), epsilon)
    scaled = g * vectors[1:2].astype(jnp.float32)
    along = (scaled * normed).mean(-1, keepdims=True)
    by_total = inverse * (scaled - scaled.mean(-1, keepdims=True) - normed * along)
    by_added = by_total
    if rate:
        by_added = jnp.where(_keep(numbers, rate, g.shape), by_total * (1 / (1 - rate)), 0)
    by_x[...] = by_total.astype(by_x.dtype)
    by_y[...] = by_added.astype(by_y.dtype)
    parts = by_added, g * normed, g
    sums[0] += jnp.concatenate([part.sum(0, keepdims=True) for part in parts])
