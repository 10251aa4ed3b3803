"""The objectives of tasks: a body and a new head, with the loss of the paper's section 4.

Sources: BERT paper, section 4 and appendix; google-research/bert `run_classifier.py` (dropout of
0.1 on the pooled vector, then a linear layer) and `run_squad.py` (a linear layer to start and end).
A batch holds tokens, segments int[B, S] (choice: [B, C, S]), lengths int[B] ([B, C]) and weight
float32[B], 0 for filler rows; and the labels that each class names.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from bert_jax.models.body import Body
from bert_jax.models.heads import Classifier, Pooler
from bert_jax.models.layers import EncoderConfig, apply, dropout, fold
from bert_jax.objectives.base import Batch, Mean, Params, cross_entropy, weighted_mean

_HEAD_SITE = 1_000_000  # dropout site of the heads; the encoder's are its layers


class TaskObjective(Protocol):
    """An objective (`objectives.base`) that also predicts."""

    body: Body

    def init(self, key: jax.Array, batch: Batch) -> Params: ...

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]: ...

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """float32 outputs, each [B, ...], without dropout."""
        ...


def _pooled_init(body: Body, key: jax.Array, tokens, segments, head: str, classes: int) -> Params:
    """Parameters of a body, a pooler and a linear head, boxed; tokens, segments int[B, S]."""
    keys = jax.random.split(key, 3)
    c = _head_config(body)
    return {
        **body.init(keys[0], tokens, segments),
        "pooler": Pooler(c).init(keys[1], jnp.zeros((1, 1, c.width)))["params"],
        head: Classifier(c, classes).init(keys[2], jnp.zeros((1, c.width)))["params"],
    }


def _head_config(body: Body) -> EncoderConfig:
    return dataclasses.replace(body.encoder, width=body.width)


def _pooled_logits(
    body: Body, params: Params, tokens, segments, lengths, key, head: str, classes: int
) -> jax.Array:
    """Logits float32 [B, classes] of the pooled vector of sequences [B, S]."""
    c = _head_config(body)
    hidden = body.hidden(params, tokens, segments, lengths, key)
    pooled = apply(Pooler(c), params["pooler"], hidden)
    pooled = dropout(pooled, c.hidden_dropout, fold(key, _HEAD_SITE))
    return apply(Classifier(c, classes), params[head], pooled)


@dataclasses.dataclass(frozen=True)
class Classify:
    """Labels or numbers of a text or a pair, from the pooled vector.

    kind and labels: "single": label int[B], cross-entropy; "multi": labels float32[B, C] of 0 and
    1, a binary cross-entropy each; "numbers": numbers float32[B, C], squared error.
    """

    body: Body
    classes: int
    kind: str = "single"

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder, pooler, classifier}, boxed with logical axes."""
        return _pooled_init(
            self.body, key, batch["tokens"], batch["segments"], "classifier", self.classes
        )

    def _logits(self, params: Params, batch: Batch, key) -> jax.Array:
        inputs = batch["tokens"], batch["segments"], batch["lengths"]
        return _pooled_logits(self.body, params, *inputs, key, "classifier", self.classes)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean loss over the examples; metrics: accuracy (single and multi)."""
        logits, weight = self._logits(params, batch, key if train else None), batch["weight"]
        if self.kind == "numbers":
            losses = jnp.mean((logits - batch["numbers"]) ** 2, axis=-1)
            return (mean := weighted_mean(losses, weight)), {"squared_error": mean}
        if self.kind == "multi":
            losses = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch["labels"]), axis=-1)
            right = jnp.mean((logits > 0) == (batch["labels"] > 0), axis=-1)
        else:
            losses = cross_entropy(logits, batch["label"])
            right = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        return weighted_mean(losses, weight), {"accuracy": weighted_mean(right, weight)}

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """{"logits": float32 [B, C]}; of numbers, the numbers."""
        return {"logits": self._logits(params, batch, None)}


@dataclasses.dataclass(frozen=True)
class Span:
    """Start and end of an answer, a softmax over all positions each (released code).

    Labels: start, end int[B]; 0 ([CLS]) where there is no answer in the window.
    """

    body: Body

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder, span_head}, boxed with logical axes."""
        keys = jax.random.split(key)
        c = _head_config(self.body)
        head = Classifier(c, 2).init(keys[1], jnp.zeros((1, c.width)))["params"]
        return {**self.body.init(keys[0], batch["tokens"], batch["segments"]), "span_head": head}

    def predict(self, params: Params, batch: Batch, key=None) -> dict[str, jax.Array]:
        """{"start", "end": logits float32 [B, S]}; padding is far below everything else."""
        tokens, lengths = batch["tokens"], batch["lengths"]
        hidden = self.body.hidden(params, tokens, batch["segments"], lengths, key)
        logits = apply(Classifier(_head_config(self.body), 2), params["span_head"], hidden)
        real = (jnp.arange(tokens.shape[1])[None] < lengths[:, None])[..., None]
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

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder[, mix][, bilstm], tag_head}, boxed with logical axes."""
        keys = jax.random.split(key)
        c = _head_config(self.body)
        head = Classifier(c, self.classes).init(keys[1], jnp.zeros((1, c.width)))["params"]
        return {**self.body.init(keys[0], batch["tokens"], batch["segments"]), "tag_head": head}

    def predict(self, params: Params, batch: Batch, key=None) -> dict[str, jax.Array]:
        """{"logits": float32 [B, S, C]}."""
        c = _head_config(self.body)
        inputs = batch["tokens"], batch["segments"], batch["lengths"]
        hidden = self.body.hidden(params, *inputs, key)
        hidden = dropout(hidden, c.hidden_dropout, fold(key, _HEAD_SITE))
        return {"logits": apply(Classifier(c, self.classes), params["tag_head"], hidden)}

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean cross-entropy over the labelled positions; metrics: accuracy over the same."""
        logits = self.predict(params, batch, key if train else None)["logits"]
        labels = batch["token_labels"]
        weights = (labels >= 0) * batch["weight"][:, None]
        labels = jnp.maximum(labels, 0)
        right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        accuracy = weighted_mean(right, weights)
        return weighted_mean(cross_entropy(logits, labels), weights), {"accuracy": accuracy}


@dataclasses.dataclass(frozen=True)
class Choose:
    """One of C sequences that share a beginning: one score a sequence, a softmax over them (4.4).

    Labels: label int[B]. A batch's tokens and segments are int[B, C, S].
    """

    body: Body

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder, pooler, choice_head}, boxed with logical axes."""
        flat = [batch[name][:, 0] for name in ("tokens", "segments")]
        return _pooled_init(self.body, key, flat[0], flat[1], "choice_head", 1)

    def _logits(self, params: Params, batch: Batch, key) -> jax.Array:
        rows, choices, width = batch["tokens"].shape
        flat = [batch[name].reshape(rows * choices, width) for name in ("tokens", "segments")]
        lengths = batch["lengths"].reshape(rows * choices)
        scores = _pooled_logits(self.body, params, *flat, lengths, key, "choice_head", 1)
        return scores.reshape(rows, choices)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean cross-entropy over the choices; metrics: accuracy."""
        logits, weight = self._logits(params, batch, key if train else None), batch["weight"]
        right = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        mean = weighted_mean(cross_entropy(logits, batch["label"]), weight)
        return mean, {"accuracy": weighted_mean(right, weight)}

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """{"logits": float32 [B, C]}."""
        return {"logits": self._logits(params, batch, None)}
