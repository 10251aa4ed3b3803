"""What layers are made of: dropout, products, GELU, attention, residual and norm.

Plain functions. Four have gradients written by hand, which save less, and leave the compiler less
to copy or to recompute than the automatic ones; benchmarks/NOTES.md has the figures. A `key`
argument is the dropout key of that call; `None` means no dropout (evaluation).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Key = jax.Array | None


def fold(key: Key, site: int) -> Key:
    """The dropout key of one site (or layer) under `key`."""
    return None if key is None else jax.random.fold_in(key, site)


def _mix(bits: jax.Array) -> jax.Array:
    """A 32-bit finaliser with good avalanche (the `lowbias32` constants of C. Wellons)."""
    bits = _mix_upper(bits ^ (bits >> 16))
    return bits ^ (bits >> 16)


def _mix_upper(bits: jax.Array) -> jax.Array:
    """The middle of it: enough to mix what is mixed already, if the upper bits are what counts."""
    bits = bits * np.uint32(0x7FEB352D)
    return (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)


def key_words(key: Key) -> jax.Array:
    """uint32[2]: the key as `keep` takes it; without one, zeros."""
    if key is None:
        return jnp.zeros(2, jnp.uint32)
    return jax.random.key_data(key).astype(jnp.uint32).reshape(-1)[:2]


def first_row(rows: int) -> jax.Array | None:
    """Gives the place of the first of this device's `rows` among those of all devices, uint32.

    None where arrays are those of all devices, so that places are counted in them. They are not
    inside `jax.shard_map` over mesh axes, along which devices hold blocks of rows.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    return jax.lax.axis_index(axes).astype(jnp.uint32) * np.uint32(rows) if axes else None


def keep(row: jax.Array, column: jax.Array, words: Any, rate: float) -> jax.Array:
    """Which elements dropout keeps, by their row and column (uint32, to be broadcast) and a key."""
    row = _mix(_mix(row + words[0]) ^ words[1])
    return _mix_upper(row ^ _mix(column + words[1])) >= np.uint32(round(rate * 2**32))


@functools.partial(jax.jit, static_argnames="rate", inline=True)
def dropout(x: jax.Array, rate: float, key: Key) -> jax.Array:
    """Independent dropout of every element of `x` [..., K] at exactly `rate` (to 2⁻³²).

    The random bits are a hash of (key, place in the global array): elementwise, so they are made
    where they are used, fuse into the consumer, are recomputed rather than stored, and are the
    same on one device or many. `jax.random.bernoulli` costs a sixth of a whole `mini` step on CPU,
    and its bits are a global-batch array on every chip under some generators.
    """
    if key is None or rate == 0.0:
        return x
    row = jnp.zeros((*x.shape[:-1], 1), jnp.uint32)  # the row's index in [..., K], flattened
    for axis, size in enumerate(x.shape[:-1]):
        row = row * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, row.shape, axis)
    if (first := first_row(math.prod(x.shape[:-1]))) is not None:
        row = row + first
    column = jax.lax.broadcasted_iota(jnp.uint32, (1,) * (x.ndim - 1) + x.shape[-1:], x.ndim - 1)
    kept = keep(row, column, key_words(key), rate)
    # Scaled in float32: 1/0.9 rounded to bfloat16 would be 0.16% low.
    return jnp.where(kept, x.astype(jnp.float32) * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


# Products


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, count: int) -> jax.Array:
    """x · kernel over the last `count` dimensions of x and the first of the kernel.

    [..., *in] and [*in, *out] -> [..., *out]. Of flat rows, and with gradients that are written in
    the order of their results: XLA's CPU backend copies the operands of others.
    """
    inside = kernel.shape[:count]
    flat = jnp.tensordot(x.reshape(-1, *inside), kernel, count)
    return flat.reshape(*x.shape[: x.ndim - count], *kernel.shape[count:])


def _product_forward(x: jax.Array, kernel: jax.Array, count: int) -> tuple[jax.Array, Any]:
    return product(x, kernel, count), (x, kernel)


def _product_backward(count: int, saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    inside, outside = kernel.shape[:count], kernel.shape[count:]
    flat = kernel.reshape(math.prod(inside), -1)
    by_x = (grad.reshape(-1, flat.shape[1]) @ flat.T).reshape(x.shape)
    by_kernel = jax.lax.dot_general(
        x.reshape(-1, *inside), grad.reshape(-1, *outside), (((0,), (0,)), ((), ()))
    )
    return by_x, by_kernel


product.defvjp(_product_forward, _product_backward)


# GELU


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x·Φ(x), by erf in float32; elementwise. Saves x alone (arXiv 1606.08415)."""
    x32 = x.astype(jnp.float32)
    return (x32 * _normal_cdf(x32)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


@functools.partial(jax.jit, inline=True)
def _gelu_backward(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    x32 = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * x32 * x32) * (1 / math.sqrt(2 * math.pi))
    return ((grad.astype(jnp.float32) * (_normal_cdf(x32) + x32 * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


# Attention


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, key: Key, rate: float
) -> jax.Array:
    """dropout(softmax(q·kᵀ))·v of each head; the softmax is in float32.

    Args:
      q: [B, N, S, H], already scaled. k, v: [B, N, T, H].
      mask: bool [B|1, 1|S, T], true where a query may look; a row with no true entry gets uniform
        attention, never NaN.
      rate: of the dropout.
    Returns: [B, N, S, H].
    """
    return _attend_forward(q, k, v, mask, key, rate)[0]


@functools.partial(jax.jit, static_argnums=(5,), inline=True)
def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, key: Key, rate: float
) -> tuple[jax.Array, Any]:
    scores = jnp.einsum("bnsh,bnth->bnst", q, k).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, -1e9)
    # As jax.nn.softmax, but in three passes: the TPU compiler joins the last with the product.
    top = jax.lax.optimization_barrier(scores.max(-1, keepdims=True))
    exponentials = jnp.exp(scores - top)
    total = jax.lax.optimization_barrier(exponentials.sum(-1, keepdims=True))
    weights = (exponentials * (1 / total)).astype(q.dtype)
    mixed = jnp.einsum("bnst,bnth->bnsh", dropout(weights, rate, key), v)
    return mixed, (q, k, v, mask, key, weights, mixed)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _attend_backward(rate: float, saved: Any, grad: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, mask, key, weights, mixed = saved
    f32 = jnp.float32
    # Σ_t of weights and their gradient, as FlashAttention has it (arXiv 2205.14135, B.2): from
    # [.., S, H] and without waiting for the gradient of the weights.
    shared = jnp.sum(grad.astype(f32) * mixed.astype(f32), axis=-1, keepdims=True)
    by_weight = dropout(jnp.einsum("bnsh,bnth->bnst", grad, v), rate, key)
    by_score = weights.astype(f32) * (by_weight.astype(f32) - shared)
    if mask is not None:
        by_score = jnp.where(mask[:, None], by_score, 0)
    by_score = by_score.astype(q.dtype)
    by_v = jnp.einsum("bnst,bnsh->bnth", dropout(weights, rate, key), grad)
    by_q = jnp.einsum("bnst,bnth->bnsh", by_score, k)
    by_k = jnp.einsum("bnst,bnsh->bnth", by_score, q)
    return by_q, by_k, by_v, None, None


attend.defvjp(_attend_forward, _attend_backward)


# Residual and norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def add_and_norm(
    x: jax.Array,
    y: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    key: Key,
    rate: float,
    epsilon: float,
) -> jax.Array:
    """Layer norm over D of x + dropout(y): [..., D]; scale, bias [D]; statistics in float32."""
    return _add_and_norm_forward(x, y, scale, bias, key, rate, epsilon)[0]


@functools.partial(jax.jit, static_argnums=(5, 6), inline=True)
def _add_and_norm_forward(
    x: jax.Array,
    y: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    key: Key,
    rate: float,
    epsilon: float,
) -> tuple[jax.Array, Any]:
    total = x + dropout(y, rate, key)
    total32 = total.astype(jnp.float32)
    mean = total32.mean(-1, keepdims=True)
    # Not E[x²]-E[x]², which loses digits where the mean is large.
    inverse = jax.lax.rsqrt(jnp.square(total32 - mean).mean(-1, keepdims=True) + epsilon)
    one = (1,) * (x.ndim - 1)
    normed = (total32 - mean) * (inverse * scale.reshape(*one, -1)) + bias.reshape(*one, -1)
    return normed.astype(x.dtype), (total, mean, inverse, scale, key)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _add_and_norm_backward(
    rate: float, epsilon: float, saved: Any, grad: jax.Array
) -> tuple[jax.Array | None, ...]:
    del epsilon
    total, mean, inverse, scale, key = saved
    grad = grad.astype(jnp.float32)
    normed = (total.astype(jnp.float32) - mean) * inverse
    scaled = grad * scale.reshape(*(1,) * (grad.ndim - 1), -1)
    along = (scaled * normed).mean(-1, keepdims=True)
    by_total = inverse * (scaled - scaled.mean(-1, keepdims=True) - normed * along)
    by_total = by_total.astype(total.dtype)
    rows = tuple(range(grad.ndim - 1))
    by_scale, by_bias = (grad * normed).sum(rows), grad.sum(rows)
    return by_total, dropout(by_total, rate, key), by_scale, by_bias, None


add_and_norm.defvjp(_add_and_norm_forward, _add_and_norm_backward)
