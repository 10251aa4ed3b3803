"""The objective protocol, and means that are divided once, over the global batch."""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from bert_jax.models.layers import EncoderConfig

Params = Any  # a plain tree of float32 arrays
Batch = Mapping[str, jax.Array]


@flax.struct.dataclass
class Mean:
    """A mean kept as (sum, count), so that shards, micro-batches and steps just add up.

    A loss of several terms has vectors here, one entry a term: it is the sum of the terms' means.
    Counts are exact up to 2^24; above, each sum rounds by at most 6e-8 of it, as values do.
    """

    sum: jax.Array  # float32 [] or [terms]
    count: jax.Array  # float32, the same shape

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.sum + other.sum, self.count + other.count)

    def value(self) -> jax.Array:
        """The mean; 0 where nothing was counted."""
        return jnp.sum(self.sum / jnp.maximum(self.count, 1e-9))


class Objective(Protocol):
    """What a loop trains. Everything random, corruption included, is a function of its keys."""

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Fresh parameters, still boxed with their logical axes (flax `LogicallyPartitioned`)."""
        ...

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """The loss and the metrics of a batch; counts must not depend on the parameters."""
        ...


class LanguageModel(Objective, Protocol):
    """An objective of pre-training: tokens are predicted at some positions."""

    @property
    def encoder(self) -> EncoderConfig:
        """Of the model that is trained."""
        ...

    @property
    def name(self) -> str:
        """Of its metrics: NAME_loss, NAME_accuracy, NAME_perplexity."""
        ...

    def predictions(self, sequence_length: int) -> int:
        """M: positions of a sequence that meet the vocabulary."""
        ...

    def targets(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        """What is predicted: labels int[B, M], weights float32[B, M]."""
        ...


def weighted_mean(values: jax.Array, weights: jax.Array) -> Mean:
    """The mean of `values` under `weights` of the same shape."""
    return Mean(jnp.sum(values * weights), jnp.sum(weights))


def prediction_metrics(
    name: str, logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> dict[str, Mean]:
    """NAME_loss (cross-entropy) and NAME_accuracy of logits [..., C] against labels int[...].

    Right is a label that no other beats: `argmax` would be one more slow pass on TPU.
    """
    right = (_at_labels(logits, labels) >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    return {
        f"{name}_loss": weighted_mean(cross_entropy(logits, labels), weights),
        f"{name}_accuracy": weighted_mean(right, weights),
    }


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy in float32: logits [..., C], labels int[...] -> [...]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - _at_labels(logits, labels)


def _at_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[..., C], int[...] -> [...]; a sum, of which no part need be elsewhere as for a gather."""
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    return jnp.sum(jnp.where(classes == labels[..., None], logits, 0), axis=-1)
