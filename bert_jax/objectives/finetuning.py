"""The objectives of tasks: a body and a new head, with the loss of the paper's section 4.

Sources: BERT paper, section 4 and appendix; google-research/bert `run_classifier.py` (dropout of
0.1 on the pooled vector, then a linear layer) and `run_squad.py` (a linear layer to start and end).
A batch holds tokens, segments int[B, S] (choice: [B, C, S]), lengths int[B] ([B, C]) and weight
float32[B], 0 for filler rows; and for `loss` the labels that each class names.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from bert_jax.common import keys
from bert_jax.models.backbone import Inputs
from bert_jax.models.body import Body
from bert_jax.models.heads import Classifier, Pooler
from bert_jax.models.layers import HeadConfig, apply
from bert_jax.models.operations import Key, dropout, fold
from bert_jax.objectives.base import (
    Batch,
    Mean,
    Metric,
    Objective,
    Params,
    cross_entropy,
    weighted_mean,
)


class TaskObjective(Objective, Protocol):
    """An objective that also predicts."""

    @property
    def body(self) -> Body:
        """The encoder below the head, and what is made of its layers."""
        ...

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """float32 outputs, each [B, ...], without dropout."""
        ...


def _head_config(body: Body) -> HeadConfig:
    # In float32 whatever the body computes in: heads are small, and close scores get compared.
    return dataclasses.replace(body.backbone.head, width=body.width, dtype="float32")


def _new_head(body: Body, key: jax.Array, classes: int) -> Params:
    c = _head_config(body)
    return Classifier(c, classes).init(key, jnp.zeros((1, c.width)))["params"]


def _score(body: Body, head: Params, classes: int, x: jax.Array) -> jax.Array:
    """Logits float32 [..., classes] of vectors [..., width]."""
    return apply(Classifier(_head_config(body), classes), head, x)


def _pooled_init(body: Body, key: jax.Array, batch: Batch, head: str, classes: int) -> Params:
    """Parameters {encoder[, mix][, bilstm], pooler, HEAD}, boxed."""
    split = jax.random.split(key, 3)
    c = _head_config(body)
    return {
        **body.init(split[0], Inputs.of(batch)),
        "pooler": Pooler(c).init(split[1], jnp.zeros((1, 1, c.width)))["params"],
        head: _new_head(body, split[2], classes),
    }


def _pooled_logits(
    body: Body, params: Params, batch: Batch, key: Key, head: str, classes: int
) -> jax.Array:
    """Logits float32 [R, classes] of the pooled vector of each sequence.

    It is made of [CLS]; of a causal encoder of the last real position ([SEP]), which alone has seen
    the whole text. The paper does not say what LTR models were pooled from; GPT's was a token at
    the end, new in fine-tuning.
    """
    c = _head_config(body)
    inputs = Inputs.of(batch)
    last = inputs.lengths - 1
    wanted = last if body.backbone.pool == "last" else jnp.zeros_like(last)
    hidden = body.hidden(params, inputs, key, wanted[:, None])
    pooled = apply(Pooler(c), params["pooler"], hidden)
    pooled = dropout(pooled, c.hidden_dropout, fold(key, keys.HEAD))
    return _score(body, params[head], classes, pooled)


def _label_loss(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
    """Mean cross-entropy and accuracy of logits [..., C] against labels int[...]."""
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    mean = weighted_mean(cross_entropy(logits, labels), weights)
    return mean, {"accuracy": weighted_mean(right, weights)}


_ACCURACY = Metric("accuracy", "accuracy", "higher", "{:.1%}")


@dataclasses.dataclass(frozen=True)
class Classify:
    """Labels or numbers of a text or a pair, from the pooled vector.

    kind and labels: "single": label int[B], cross-entropy; "multi": labels float32[B, C] of 0 and
    1, a binary cross-entropy each; "numbers": numbers float32[B, C], squared error.
    standardised: whether the numbers are not in their own unit (see `tasks.scaling`), so that
    their squared_error would not be that of the task; the loss alone is then told.
    """

    body: Body
    classes: int
    kind: str = "single"
    standardised: bool = False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """accuracy; of numbers in their own unit squared_error."""
        if self.kind != "numbers":
            return (_ACCURACY,)
        return () if self.standardised else (Metric("squared_error", "squared error", "lower"),)

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder, pooler, classifier}, boxed with logical axes."""
        return _pooled_init(self.body, key, batch, "classifier", self.classes)

    def _logits(self, params: Params, batch: Batch, key: Key) -> jax.Array:
        return _pooled_logits(self.body, params, batch, key, "classifier", self.classes)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean loss over the examples; metrics: accuracy, of numbers squared_error."""
        logits, weight = self._logits(params, batch, key if train else None), batch["weight"]
        if self.kind == "single":
            return _label_loss(logits, batch["label"], weight)
        if self.kind == "multi":
            labels = batch["labels"]
            losses = optax.sigmoid_binary_cross_entropy(logits, labels)
            right = (logits > 0) == (labels > 0)
            metric = {"accuracy": weighted_mean(jnp.mean(right, axis=-1), weight)}
            return weighted_mean(jnp.mean(losses, axis=-1), weight), metric
        losses = jnp.mean((logits - batch["numbers"]) ** 2, axis=-1)
        mean = weighted_mean(losses, weight)
        return mean, {} if self.standardised else {"squared_error": mean}

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """{"logits": float32 [B, C]}; of numbers, what `tasks.scaling` makes the numbers of."""
        return {"logits": self._logits(params, batch, None)}


@dataclasses.dataclass(frozen=True)
class Span:
    """Start and end of an answer, a softmax over all positions each (released code).

    Labels: start, end int[B]; 0 ([CLS]) where there is no answer in the window.
    """

    body: Body

    metrics = (Metric("exact", "both ends right", "higher", "{:.1%}"),)

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder[, mix][, bilstm], span_head}, boxed with logical axes."""
        split = jax.random.split(key)
        body = self.body.init(split[0], Inputs.of(batch))
        return {**body, "span_head": _new_head(self.body, split[1], 2)}

    def predict(self, params: Params, batch: Batch, key: Key = None) -> dict[str, jax.Array]:
        """{"start", "end": logits float32 [B, S]}; padding is far below everything else."""
        inputs = Inputs.of(batch)
        hidden = self.body.hidden(params, inputs, key)
        logits = _score(self.body, params["span_head"], 2, hidden)
        real = (jnp.arange(logits.shape[1])[None] < inputs.lengths[:, None])[..., None]
        # So the loss does not depend on how far a batch is padded (the released code's does).
        logits = jnp.where(real, logits, -1e9)
        return {"start": logits[..., 0], "end": logits[..., 1]}

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean of the two cross-entropies; metrics: exact, the share of windows with both right."""
        logits = self.predict(params, batch, key if train else None)
        losses = [cross_entropy(logits[name], batch[name]) for name in ("start", "end")]
        right = [jnp.argmax(logits[name], axis=-1) == batch[name] for name in ("start", "end")]
        exact = (right[0] & right[1]).astype(jnp.float32)
        mean = weighted_mean((losses[0] + losses[1]) / 2, batch["weight"])
        return mean, {"exact": weighted_mean(exact, batch["weight"])}


@dataclasses.dataclass(frozen=True)
class Tag:
    """A label for each marked position (the first piece of each word, say).

    Labels: token_labels int[B, S], -1 where there is none.
    """

    body: Body
    classes: int

    metrics = (_ACCURACY,)

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder[, mix][, bilstm], tag_head}, boxed with logical axes."""
        split = jax.random.split(key)
        body = self.body.init(split[0], Inputs.of(batch))
        return {**body, "tag_head": _new_head(self.body, split[1], self.classes)}

    def predict(self, params: Params, batch: Batch, key: Key = None) -> dict[str, jax.Array]:
        """{"logits": float32 [B, S, C]}."""
        hidden = self.body.hidden(params, Inputs.of(batch), key)
        hidden = dropout(hidden, self.body.backbone.hidden_dropout, fold(key, keys.HEAD))
        return {"logits": _score(self.body, params["tag_head"], self.classes, hidden)}

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean cross-entropy over the labelled positions; metrics: accuracy over the same."""
        logits = self.predict(params, batch, key if train else None)["logits"]
        labels = batch["token_labels"]
        weights = (labels >= 0) * batch["weight"][:, None]
        return _label_loss(logits, jnp.maximum(labels, 0), weights)


@dataclasses.dataclass(frozen=True)
class Choose:
    """One of C sequences that share a beginning: one score a sequence, a softmax over them (4.4).

    Labels: label int[B]. A batch's tokens and segments are int[B, C, S].
    """

    body: Body

    metrics = (_ACCURACY,)

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder, pooler, choice_head}, boxed with logical axes."""
        return _pooled_init(self.body, key, batch, "choice_head", 1)

    def _logits(self, params: Params, batch: Batch, key: Key) -> jax.Array:
        scores = _pooled_logits(self.body, params, batch, key, "choice_head", 1)
        return scores.reshape(batch["lengths"].shape)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean cross-entropy over the choices; metrics: accuracy."""
        logits = self._logits(params, batch, key if train else None)
        return _label_loss(logits, batch["label"], batch["weight"])

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """{"logits": float32 [B, C]}."""
        return {"logits": self._logits(params, batch, None)}
