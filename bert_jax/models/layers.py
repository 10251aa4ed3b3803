"""The layers of BERT; every parameter's dtype, initialiser and logical axes are given here.

Source of the algorithms: the BERT paper (arXiv 1810.04805) and google-research/bert `modeling.py`.
A `key` argument is the dropout key of that call; `None` means no dropout (evaluation).
"""

import dataclasses
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Key = jax.Array | None

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # erf: the paper, the first release
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # the released code since 2019-02
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and switches of the encoder. Defaults are BERT-Base."""

    vocab_size: int  # V
    layers: int = 12  # L
    width: int = 768  # D
    heads: int = 12  # N
    head_width: int = 64  # H; N·H may differ from D
    feed_forward: int = 3072  # F
    max_positions: int = 512  # longest S
    segment_types: int = 2
    activation: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_epsilon: float = 1e-12
    init_stddev: float = 0.02
    dtype: str = "float32"  # of activations and matrix products; parameters are always float32
    causal: bool = False  # no position looks to its right (LTR); see `encoder.attention_mask`
    scan_layers: bool = False  # one compiled layer, looped: compiles faster, may run slower
    remat: bool = False  # recompute a layer's activations in the backward pass


def initializer(config: EncoderConfig, *logical_axes: str | None) -> Any:
    """Truncated normal (cut at two standard deviations), with the parameter's logical axes."""
    init = nn.initializers.truncated_normal(config.init_stddev)
    return nn.with_logical_partitioning(init, logical_axes)


def zeros(*logical_axes: str | None) -> Any:
    """Initialiser of biases, with the parameter's logical axes."""
    return nn.with_logical_partitioning(nn.initializers.zeros, logical_axes)


class Dense(nn.Module):
    """x · kernel + bias over the last `inputs` dimensions of x, as one product of two matrices.

    Flat on purpose: XLA's CPU backend runs the gradient of the same product on a [B, S, D] operand
    at less than half the speed.
    """

    config: EncoderConfig
    features: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical, of the kernel: inputs, then features
    inputs: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *features]."""
        c = self.config
        rows, inputs = x.shape[: -self.inputs], x.shape[-self.inputs :]
        kernel = self.param("kernel", initializer(c, *self.axes), (*inputs, *self.features))
        bias = self.param("bias", zeros(*self.axes[self.inputs :]), self.features)
        matrix = kernel.astype(c.dtype).reshape(math.prod(inputs), math.prod(self.features))
        flat = x.astype(c.dtype).reshape(-1, math.prod(inputs)) @ matrix
        return (flat + bias.astype(c.dtype).reshape(1, -1)).reshape(*rows, *self.features)


def norm(config: EncoderConfig, name: str = "norm") -> nn.LayerNorm:
    """Layer normalisation over D; statistics in float32."""
    return nn.LayerNorm(
        epsilon=config.norm_epsilon,
        use_fast_variance=False,  # E[x²]-E[x]² loses digits where the mean is large
        dtype=config.dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=zeros("norm"),
        name=name,
    )


def by_row(x: jax.Array, *rest: Any) -> jax.Array:
    """x [B, ...] with each device holding rows of its own, where a mesh is set; else x.

    Left alone, the compiler may split activations along the axis that parameters are split along,
    and move them instead of the smaller parameters. rest: what of the last dimensions to say
    otherwise, as in `PartitionSpec`.
    """
    return nn.with_logical_constraint(x, ("batch", *[None] * (x.ndim - 1 - len(rest)), *rest))


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> jax.Array:
    """A module as a pure function of a plain parameter tree."""
    return cast(jax.Array, module.apply({"params": params}, *args, **kwargs))


def fold(key: Key, site: int) -> Key:
    """The dropout key of one site (or layer) under `key`."""
    return None if key is None else jax.random.fold_in(key, site)


def _mix(bits: jax.Array) -> jax.Array:
    """A 32-bit finaliser with good avalanche (the `lowbias32` constants of C. Wellons)."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def dropout(x: jax.Array, rate: float, key: Key) -> jax.Array:
    """Independent dropout of every element of `x` [..., K] at exactly `rate` (to 2⁻³²).

    The random bits are a hash of (key, place in the global array): elementwise, so they are made
    where they are used, fuse into the consumer, are recomputed rather than stored, and are the
    same on one device or many. `jax.random.bernoulli` costs a sixth of a whole `mini` step on CPU,
    and its bits are a global-batch array on every chip under some generators.
    """
    if key is None or rate == 0.0:
        return x
    words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)[:2]
    row = jnp.zeros((*x.shape[:-1], 1), jnp.uint32)  # the row's index in [..., K], flattened
    for axis, size in enumerate(x.shape[:-1]):
        row = row * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, row.shape, axis)
    row = _mix(_mix(row + words[0]) ^ words[1])
    column = jax.lax.broadcasted_iota(jnp.uint32, (1,) * (x.ndim - 1) + x.shape[-1:], x.ndim - 1)
    bits = _mix(row ^ _mix(column + words[1]))
    keep = bits >= np.uint32(round(rate * 2**32))
    # Scaled in float32: 1/0.9 rounded to bfloat16 would be 0.16% low.
    return jnp.where(keep, x.astype(jnp.float32) * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


class Embeddings(nn.Module):
    """Sum of token, position and segment embeddings, normalised, dropped out."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, segments: jax.Array, key: Key, positions: jax.Array | None = None
    ) -> jax.Array:
        """tokens, segments int[B, S]; positions int[B|1, S], by default 0..S-1 -> [B, S, D]."""
        c = self.config

        def table(name: str, axis: str | None, rows: int) -> jax.Array:
            values = self.param(name, initializer(c, axis, "model"), (rows, c.width))
            # Whole vectors to look up: else the compiler looks up parts of all devices' tokens.
            whole = (jax.sharding.PartitionSpec.UNCONSTRAINED, None)
            return nn.with_logical_constraint(values, whole)

        token = table("token", "vocab", c.vocab_size)
        position = table("position", None, c.max_positions)
        segment = table("segment", None, c.segment_types)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        # A handful of segment types: a matrix product is cheaper than a gather and its scatter.
        kinds = jax.nn.one_hot(segments, c.segment_types, dtype=segment.dtype)
        x = token[tokens] + position[positions] + kinds @ segment
        return by_row(dropout(norm(c)(x), c.hidden_dropout, key))


class Attention(nn.Module):
    """Multi-head scaled dot-product attention; the softmax is in float32."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, queries: jax.Array, sources: jax.Array, mask: jax.Array | None, key: Key
    ) -> jax.Array:
        """Attends from queries [B, S, D] to sources [B, T, D].

        Args:
          mask: bool [B|1, 1|S, T], true where a query may look; a row with no true entry gets
            uniform attention, never NaN.
        Returns: [B, S, D].
        """
        c = self.config

        # Three separate kernels: splitting one fused [D, 3·N·H] product costs layout copies on TPU.
        def project(name: str, x: jax.Array) -> jax.Array:  # [B, S, D] -> [B, S, N, H]
            return Dense(c, (c.heads, c.head_width), ("model", "heads", None), name=name)(x)

        q = project("query", queries) * c.head_width**-0.5
        k = project("key", sources)
        v = project("value", sources)
        scores = jnp.einsum("bsnh,btnh->bnst", q, k).astype(jnp.float32)
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, -1e9)
        weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
        weights = dropout(weights, c.attention_dropout, key)
        mixed = jnp.einsum("bnst,btnh->bsnh", weights, v)
        output = Dense(c, (c.width,), ("heads", None, "model"), inputs=2, name="output")
        return output(mixed)


class FeedForward(nn.Module):
    """Dense, activation, dense; no dropout in between (as released)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, D] through F."""
        c = self.config
        inner = Dense(c, (c.feed_forward,), ("model", "feed_forward"), name="inner")
        outer = Dense(c, (c.width,), ("feed_forward", "model"), name="outer")
        return outer(ACTIVATIONS[c.activation](inner(x)))


class Block(nn.Module):
    """One encoder layer, normalised after each residual sum (post-LN)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, key: Key) -> jax.Array:
        """[B, S, D] -> [B, S, D]; mask as in `Attention`."""
        c = self.config
        attended = Attention(c, name="attention")(x, x, mask, fold(key, 0))
        x = norm(c, "attention_norm")(x + dropout(attended, c.hidden_dropout, fold(key, 1)))
        x = by_row(x)
        fed = FeedForward(c, name="feed_forward")(x)
        return by_row(
            norm(c, "feed_forward_norm")(x + dropout(fed, c.hidden_dropout, fold(key, 2)))
        )
