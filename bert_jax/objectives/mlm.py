"""Masked language modelling, with or without next sentence prediction (BERT, section 3.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.common.keys import HELD_OUT_SEED, Purpose, root
from bert_jax.common.run_format import FORMAT
from bert_jax.models.backbone import Backbone, Inputs
from bert_jax.models.heads import Classifier, MlmHead, Pooler
from bert_jax.models.layers import apply
from bert_jax.models.operations import Key
from bert_jax.objectives.base import (
    Batch,
    Mean,
    Metric,
    Params,
    Target,
    prediction_metrics,
    prediction_rows,
    total,
)
from bert_jax.objectives.corruption import Masking, corrupt, instance_keys


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """The MLM loss over the predicted positions, plus the NSP loss, unweighted (paper, A.2).

    A batch holds tokens, segments int[B, S]; lengths int[B]; instance int[B, 2], the id that its
    corruption is drawn from; weight float32[B], 0 for filler rows; and, with `nsp`,
    pair_label int[B] (1: the second text is from elsewhere). Without, the sequences may be
    pairs or contiguous text: the two readings of the paper's "No NSP".
    """

    backbone: Backbone
    masking: Masking
    nsp: bool = True
    pairs: bool = True  # the text is cut in pairs of sentences, which nsp needs, or in blocks
    seed: int = 0  # of the corruption in training
    format: int = FORMAT  # of the run, which decides about its keys

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """mlm_loss, mlm_perplexity, mlm_accuracy[, nsp_loss, nsp_accuracy]."""
        rows = prediction_rows("mlm", "MLM", "unigram", perplexity=True)
        return (*rows, *prediction_rows("nsp", "NSP", "majority")) if self.nsp else rows

    @property
    def layout(self) -> str:
        """Pairs of sentences, or blocks of text."""
        return "pairs" if self.pairs else "blocks"

    def with_options(self, **options: Any) -> "MaskedLM":
        """Makes the same objective, computed another way."""
        return dataclasses.replace(self, backbone=self.backbone.with_options(**options))

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Makes parameters {encoder, mlm_head[, pooler, nsp_head]}, boxed with logical axes."""
        c = self.backbone.head
        keys = jax.random.split(key, 4)
        hidden = jnp.zeros((1, 1, c.width))
        table = jnp.zeros((c.vocab_size, c.width))
        params = {
            "encoder": self.backbone.init(keys[0], Inputs.of(batch)),
            "mlm_head": MlmHead(c).init(keys[1], hidden, table)["params"],
        }
        if self.nsp:
            params["pooler"] = Pooler(c).init(keys[2], hidden)["params"]
            params["nsp_head"] = Classifier(c, 2).init(keys[3], hidden[:, 0])["params"]
        return params

    def flops(self, rows: int, length: int) -> float:
        """Counts the FLOPs of a training step; only the M masked positions meet the vocabulary."""
        return self.backbone.flops(rows, length, self.masking.slots(length))

    def targets(self, batch: Batch, train: bool) -> dict[str, Target]:
        """Gives the masked tokens int[B, M], and with nsp the labels of the pairs int[B]."""
        seen = self.corrupted(batch, train)
        found = {"mlm": Target(seen["labels"], seen["weights"])}
        if self.nsp:
            found["nsp"] = Target(batch["pair_label"], batch["weight"])
        return found

    def corrupted(self, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Gives the batch as the model sees it; see `corruption.corrupt`. Fillers weigh nothing."""
        key = (
            root(self.seed, Purpose.CORRUPTION, self.format)
            if train
            else jax.random.key(HELD_OUT_SEED)
        )
        keys = instance_keys(key, batch["instance"])
        seen = corrupt(self.masking, batch["tokens"], batch["lengths"], keys)
        return seen | {"weights": seen["weights"] * batch["weight"][:, None]}

    def logits(
        self, params: Params, inputs: Inputs, positions: jax.Array, key: Key = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Computes MLM logits [B, M, V] at positions int[B, M], and NSP logits [B, 2] (or None)."""
        c = self.backbone.head
        # Only the predicted positions meet the vocabulary, and [CLS] the pooler.
        wanted = jnp.pad(positions, ((0, 0), (1, 0)))
        hidden = self.backbone.hidden(params["encoder"], inputs, key, wanted=wanted)
        table = self.backbone.table(params["encoder"])
        mlm = apply(MlmHead(c), params["mlm_head"], hidden[:, 1:], table)
        if not self.nsp:
            return mlm, None
        pooled = apply(Pooler(c), params["pooler"], hidden)
        return mlm, apply(Classifier(c, 2), params["nsp_head"], pooled)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Computes the loss (terms: MLM[, NSP]) and the metrics."""
        seen = self.corrupted(batch, train)
        inputs = Inputs.of({**batch, "tokens": seen["tokens"]})
        mlm, nsp = self.logits(params, inputs, seen["positions"], key if train else None)
        metrics = prediction_metrics("mlm", mlm, seen["labels"], seen["weights"])
        terms = [metrics["mlm_loss"]]
        if nsp is not None:
            metrics |= prediction_metrics("nsp", nsp, batch["pair_label"], batch["weight"])
            terms.append(metrics["nsp_loss"])
        return total(terms), metrics
