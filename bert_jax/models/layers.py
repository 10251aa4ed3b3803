"""The layers of BERT; every parameter's dtype, initialiser and logical axes are given here.

Source of the algorithms: the BERT paper (arXiv 1810.04805) and google-research/bert `modeling.py`.
A `key` argument is the dropout key of that call; `None` means no dropout (evaluation).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import kernels
from bert_jax.models.operations import Key, add_and_norm, attend, dropout, fold, gelu, product

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,  # erf: the paper, the first release
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # the released code since 2019-02
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What a layer outside the blocks depends on. Defaults are BERT-Base."""

    vocab_size: int  # V
    width: int = 768  # D
    activation: str = "gelu"
    hidden_dropout: float = 0.1
    norm_epsilon: float = 1e-12
    init_stddev: float = 0.02
    dtype: str = "float32"  # of activations and matrix products; parameters are always float32


@dataclasses.dataclass(frozen=True)
class EncoderConfig(HeadConfig):
    """Sizes and switches of the encoder. Defaults are BERT-Base."""

    layers: int = 12  # L
    heads: int = 12  # N
    head_width: int = 64  # H; N·H may differ from D
    feed_forward: int = 3072  # F
    max_positions: int = 512  # longest S
    segment_types: int = 2
    attention_dropout: float = 0.1
    causal: bool = False  # no position looks to its right (LTR); see `encoder.attention_mask`
    scan_layers: bool = False  # one compiled layer, looped: compiles faster, may run slower
    remat: bool = False  # recompute a layer's activations in the backward pass
    kernels: bool = False  # fused kernels on TPU, where `kernels.fits`


def initializer(config: HeadConfig, *logical_axes: str | None) -> Any:
    """Truncated normal (cut at two standard deviations), with the parameter's logical axes."""
    init = nn.initializers.truncated_normal(config.init_stddev)
    return nn.with_logical_partitioning(init, logical_axes)


def ones(*logical_axes: str | None) -> Any:
    """Initialiser of the scales of norms, with the parameter's logical axes."""
    return nn.with_logical_partitioning(nn.initializers.ones, logical_axes)


def zeros(*logical_axes: str | None) -> Any:
    """Initialiser of biases, with the parameter's logical axes."""
    return nn.with_logical_partitioning(nn.initializers.zeros, logical_axes)


Product = tuple[jax.Array, jax.Array]  # x · kernel, and the bias that is still to be added


class Dense(nn.Module):
    """x · kernel + bias over the last dimension of x."""

    config: HeadConfig
    features: int
    axes: tuple[str | None, str | None]  # logical, of the kernel: inputs, features

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., features]."""
        return add_bias(*self.apart(x))

    @nn.compact
    def apart(self, x: jax.Array) -> Product:
        """[..., inputs] -> [..., features] and [features]."""
        c = self.config
        kernel = self.param("kernel", initializer(c, *self.axes), (x.shape[-1], self.features))
        bias = self.param("bias", zeros(self.axes[1]), (self.features,))
        return product(x.astype(c.dtype), kernel.astype(c.dtype), 1), bias


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """[..., K] and [K], rounded to the dtype of x first."""
    return x + bias.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


def norm(config: HeadConfig, name: str = "norm") -> nn.LayerNorm:
    """Layer normalisation over D; statistics in float32."""
    return nn.LayerNorm(
        epsilon=config.norm_epsilon,
        use_fast_variance=False,  # E[x²]-E[x]² loses digits where the mean is large
        dtype=config.dtype,
        scale_init=ones("norm"),
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
        if c.segment_types == 1:  # such a model has both texts of a pair in the one there is
            segments = jnp.zeros_like(segments)
        # A handful of segment types: a matrix product is cheaper than a gather and its scatter.
        kinds = jax.nn.one_hot(segments, c.segment_types, dtype=segment.dtype)
        x = token[tokens] + position[positions] + kinds @ segment
        return by_row(dropout(norm(c)(x), c.hidden_dropout, key))


class Projection(nn.Module):
    """A dense layer between [B, S, D] and heads, its bias left to be added.

    For `attend` the heads are [B, N, S, H]: the TPU compiler has the product write that layout;
    from heads side by side, as of `Dense`, it would copy. For our kernels they are just that,
    [B, S, N·H].
    """

    config: EncoderConfig
    merge: bool = False  # from the heads, rather than to them

    @nn.compact
    def __call__(self, x: jax.Array) -> Product:
        """[B, S, D] -> heads and their biases [N, H], or with `merge` heads -> [B, S, D], [D]."""
        c = self.config
        heads, axes = (c.heads, c.head_width), ("heads", None)
        if self.merge:
            kernel = self.param("kernel", initializer(c, *axes, "model"), (*heads, c.width))
            bias = self.param("bias", zeros("model"), (c.width,))
            kernel = kernel.astype(c.dtype)
            if c.kernels:
                return x @ kernel.reshape(-1, c.width), bias
            return product(x.swapaxes(1, 2), kernel, 2), bias
        kernel = self.param("kernel", initializer(c, "model", *axes), (c.width, *heads))
        bias = self.param("bias", zeros(*axes), heads)
        x, kernel = x.astype(c.dtype), kernel.astype(c.dtype)
        if c.kernels:
            return x @ kernel.reshape(c.width, -1), bias
        return product(x, kernel, 1).swapaxes(1, 2), bias


def take(x: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, S, K] at positions int[B, M] -> [B, M, K]."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, mask: jax.Array | None, key: Key
    ) -> Product:
        """Of x [B, M, D] over context [B, S, D] -> [B, M, D], [D]; mask bool [B|1, 1|M, S]."""
        c = self.config
        # Three kernels: splitting one fused [D, 3·N·H] product costs layout copies on TPU.
        query = Projection(c, name="query")(x)
        projected = query, *(Projection(c, name=name)(context) for name in ("key", "value"))
        if c.kernels:
            (q, k, v), biases = zip(*projected, strict=True)
            flat = jnp.stack(biases).reshape(3, -1)
            mixed = kernels.attend(q, k, v, flat, mask, key, c.heads, c.attention_dropout)
        else:
            q, k, v = (y + bias.astype(c.dtype)[None, :, None] for y, bias in projected)
            mixed = attend(q * c.head_width**-0.5, k, v, mask, key, c.attention_dropout)
        return Projection(c, merge=True, name="output")(mixed)


class FeedForward(nn.Module):
    """Dense, activation, dense; no dropout in between (as released)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> Product:
        """[B, S, D] -> [B, S, D] through F, and [D]."""
        c = self.config
        inner = Dense(c, c.feed_forward, ("model", "feed_forward"), name="inner")
        outer = Dense(c, c.width, ("feed_forward", "model"), name="outer")
        return outer.apart(ACTIVATIONS[c.activation](inner(x)))


class AddAndNorm(nn.Module):
    """Dropout, residual sum, layer normalisation (post-LN)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, y: Product, key: Key) -> jax.Array:
        """[B, S, D], and what is dropped out before it is added to it -> [B, S, D]."""
        c = self.config
        scale = self.param("scale", ones("norm"), (c.width,))
        bias = self.param("bias", zeros("norm"), (c.width,))
        rest = scale, bias, key, c.hidden_dropout, c.norm_epsilon
        if c.kernels:
            return by_row(kernels.add_and_norm(x, *y, *rest))
        return by_row(add_and_norm(x, add_bias(*y), *rest))


class Block(nn.Module):
    """One encoder layer."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, key: Key, wanted: jax.Array | None = None
    ) -> jax.Array:
        """[B, S, D] -> [B, S, D], or only the positions wanted, int[B, M] -> [B, M, D].

        mask: bool [B|1, 1|S, S] as in `attend`.
        """
        c = self.config
        context = x
        if wanted is not None:
            c = dataclasses.replace(c, kernels=False)  # they take whole sequences
            x = by_row(take(x, wanted))
            if mask is not None and mask.shape[1] > 1:
                mask = take(jnp.broadcast_to(mask, (len(x), *mask.shape[1:])), wanted)
        attended = Attention(c, name="attention")(x, context, mask, fold(key, 0))
        x = AddAndNorm(c, name="attention_norm")(x, attended, fold(key, 1))
        fed = FeedForward(c, name="feed_forward")(x)
        return AddAndNorm(c, name="feed_forward_norm")(x, fed, fold(key, 2))
