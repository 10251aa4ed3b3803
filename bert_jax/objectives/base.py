"""The objective protocol, and means that are divided once, over the global batch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self

import flax.struct
import jax
import jax.numpy as jnp

from bert_jax.models.backbone import Backbone, Params

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


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measure of a model: its name in the metrics, and how people are told it."""

    name: str
    title: str
    better: Literal["lower", "higher"]
    form: str = "{:.3f}"  # of the value
    # What is no model's merit: "unigram" (the tokens' frequencies), "majority" (the most frequent
    # label), or "" where nothing is compared.
    baseline: Literal["", "unigram", "majority"] = ""
    perplexity_of: str = ""  # the metric whose exponential it is

    def score(self, values: Mapping[str, float]) -> float:
        """Gives the value so that higher is better."""
        return values[self.name] * (1 if self.better == "higher" else -1)


def prediction_rows(
    name: str, title: str, baseline: Literal["unigram", "majority"], perplexity: bool = False
) -> tuple[Metric, ...]:
    """Declares what `prediction_metrics` of that name makes, and perhaps the perplexity."""
    loss = Metric(f"{name}_loss", f"{title} loss", "lower", baseline=baseline)
    exp = Metric(
        f"{name}_perplexity", f"{title} perplexity", "lower", "{:.1f}", baseline, loss.name
    )
    accuracy = Metric(f"{name}_accuracy", f"{title} accuracy", "higher", "{:.1%}", baseline)
    return (loss, exp, accuracy) if perplexity else (loss, accuracy)


class Objective(Protocol):
    """What a loop trains. Everything random, corruption included, is a function of its keys."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What `loss` measures and people are told; the first decides which checkpoint is best."""
        ...

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Makes fresh parameters, boxed with their logical axes (flax `LogicallyPartitioned`)."""
        ...

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Computes the loss and the metrics; counts must not depend on the parameters."""
        ...


class Target(NamedTuple):
    """What is predicted: labels int[...], and weights float32 of the same shape."""

    labels: jax.Array
    weights: jax.Array


class Pretraining(Objective, Protocol):
    """An objective of pre-training: it is asked by the loop, by reports and by plans."""

    @property
    def layout(self) -> str:
        """How the text is cut, a name of `data.layouts.LAYOUTS`."""
        ...

    @property
    def backbone(self) -> Backbone:
        """The one that stays: which fine-tuning goes on with."""
        ...

    def flops(self, rows: int, length: int) -> float:
        """Counts the FLOPs of a training step on so many rows."""
        ...

    def targets(self, batch: Batch, train: bool) -> dict[str, Target]:
        """Gives what is predicted, by the NAME of NAME_loss and NAME_accuracy."""
        ...

    def with_options(self, **options: Any) -> Self:
        """Makes the same objective, computed another way; see `Backbone.with_options`."""
        ...


def weighted_mean(values: jax.Array, weights: jax.Array) -> Mean:
    """The mean of `values` under `weights` of the same shape."""
    return Mean(jnp.sum(values * weights), jnp.sum(weights))


def total(terms: Sequence[Mean]) -> Mean:
    """Adds terms of a loss, each a mean of its own."""
    return Mean(jnp.stack([term.sum for term in terms]), jnp.stack([t.count for t in terms]))


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
