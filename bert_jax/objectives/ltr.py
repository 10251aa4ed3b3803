"""Left-to-right language modelling, the paper's "LTR & No NSP" (BERT, section 5.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.models.backbone import Backbone, Inputs
from bert_jax.models.heads import MlmHead
from bert_jax.models.layers import apply
from bert_jax.objectives.base import (
    Batch,
    Mean,
    Params,
    Target,
    prediction_metrics,
    prediction_rows,
)


@dataclasses.dataclass(frozen=True)
class LeftToRight:
    """Every token is predicted from those before it, by an encoder with a causal mask.

    The batch and the head are those of `MaskedLM`, so that nothing else differs. The tokens in
    `never` ([CLS] and [SEP]) are not predicted, as they are not in the masked-LM.
    """

    backbone: Backbone  # causal
    never: tuple[int, ...]

    layout = "blocks"
    metrics = prediction_rows("lm", "LM", "unigram", perplexity=True)

    def with_options(self, **options: Any) -> "LeftToRight":
        """Makes the same objective, computed another way."""
        return dataclasses.replace(self, backbone=self.backbone.with_options(**options))

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Makes parameters {encoder, mlm_head}, boxed with logical axes."""
        c = self.backbone.head
        keys = jax.random.split(key)
        table = jnp.zeros((c.vocab_size, c.width))
        head = MlmHead(c).init(keys[1], jnp.zeros((1, 1, c.width)), table)
        encoder = self.backbone.init(keys[0], Inputs.of(batch))
        return {"encoder": encoder, "mlm_head": head["params"]}

    def flops(self, rows: int, length: int) -> float:
        """Counts the FLOPs of a training step; all positions but the last meet the vocabulary."""
        return self.backbone.flops(rows, length, length - 1)

    def targets(self, batch: Batch, train: bool) -> dict[str, Target]:
        """Gives what positions 0 .. S-2 are to predict, int[B, S-1]."""
        del train
        labels = batch["tokens"][:, 1:]
        predicted = jnp.arange(1, labels.shape[1] + 1)[None] < batch["lengths"][:, None]
        for special in self.never:
            predicted &= labels != special
        return {"lm": Target(labels, predicted * batch["weight"][:, None])}

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Computes the mean cross-entropy of the next token, and the metrics."""
        hidden = self.backbone.hidden(params["encoder"], Inputs.of(batch), key if train else None)
        table = self.backbone.table(params["encoder"])
        logits = apply(MlmHead(self.backbone.head), params["mlm_head"], hidden[:, :-1], table)
        metrics = prediction_metrics("lm", logits, *self.targets(batch, train)["lm"])
        return metrics["lm_loss"], metrics
