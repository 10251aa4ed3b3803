"""Masked language modelling, with or without next sentence prediction (BERT, section 3.1)."""

import dataclasses

import jax
import jax.numpy as jnp

from bert_jax.common.keys import HELD_OUT_SEED, Purpose, root
from bert_jax.common.run_format import FORMAT
from bert_jax.models.encoder import Encoder, EncoderConfig, attention_mask
from bert_jax.models.heads import Classifier, MlmHead, Pooler
from bert_jax.models.layers import apply
from bert_jax.objectives.base import Batch, Mean, Params, prediction_metrics
from bert_jax.objectives.corruption import Masking, corrupt, instance_keys


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """The MLM loss over the predicted positions, plus the NSP loss, unweighted (paper, A.2).

    A batch holds tokens, segments int[B, S]; lengths int[B]; instance int[B, 2], the id that its
    corruption is drawn from; weight float32[B], 0 for filler rows; and, with `nsp`,
    is_random_next int[B] (1: the second segment is from elsewhere). Without, the sequences may be
    pairs or contiguous text: the two readings of the paper's "No NSP".
    """

    encoder: EncoderConfig
    masking: Masking
    nsp: bool = True
    seed: int = 0  # of the corruption in training
    format: int = FORMAT  # of the run, which decides about its keys

    name = "mlm"  # of the metrics

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder, mlm_head[, pooler, nsp_head]}, boxed with logical axes."""
        c = self.encoder
        keys = jax.random.split(key, 4)
        tokens, segments = batch["tokens"][:1], batch["segments"][:1]
        hidden = jnp.zeros((1, 1, c.width))
        table = jnp.zeros((c.vocab_size, c.width))
        params = {
            "encoder": Encoder(c).init(keys[0], tokens, segments, None)["params"],
            "mlm_head": MlmHead(c).init(keys[1], hidden, table)["params"],
        }
        if self.nsp:
            params["pooler"] = Pooler(c).init(keys[2], hidden)["params"]
            params["nsp_head"] = Classifier(c, 2).init(keys[3], hidden[:, 0])["params"]
        return params

    def predictions(self, sequence_length: int) -> int:
        """M: positions of a sequence that meet the vocabulary."""
        return self.masking.slots(sequence_length)

    def targets(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        """What is predicted: labels int[B, M], weights float32[B, M]."""
        seen = self.corrupted(batch, train)
        return seen["labels"], seen["weights"]

    def corrupted(self, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """The batch as the model sees it; see `corruption.corrupt`. Filler rows weigh nothing."""
        key = (
            root(self.seed, Purpose.CORRUPTION, self.format)
            if train
            else jax.random.key(HELD_OUT_SEED)
        )
        keys = instance_keys(key, batch["instance"])
        seen = corrupt(self.masking, batch["tokens"], batch["lengths"], keys)
        return seen | {"weights": seen["weights"] * batch["weight"][:, None]}

    def logits(
        self, params: Params, tokens: jax.Array, batch: Batch, positions: jax.Array, key=None
    ) -> tuple[jax.Array, jax.Array | None]:
        """MLM logits [B, M, V] at positions int[B, M], and NSP logits [B, 2] (or None)."""
        c = self.encoder
        mask = attention_mask(c, batch["lengths"], tokens.shape[1])
        # Only the predicted positions meet the vocabulary, and [CLS] the pooler.
        wanted = jnp.pad(positions, ((0, 0), (1, 0)))
        inputs = tokens, batch["segments"], mask, key
        hidden = apply(Encoder(c), params["encoder"], *inputs, wanted=wanted)
        table = params["encoder"]["embeddings"]["token"]
        mlm = apply(MlmHead(c), params["mlm_head"], hidden[:, 1:], table)
        if not self.nsp:
            return mlm, None
        pooled = apply(Pooler(c), params["pooler"], hidden)
        return mlm, apply(Classifier(c, 2), params["nsp_head"], pooled)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Loss (terms: MLM[, NSP]) and metrics mlm_loss, mlm_accuracy[, nsp_loss, nsp_accuracy]."""
        seen = self.corrupted(batch, train)
        mlm, nsp = self.logits(
            params, seen["tokens"], batch, seen["positions"], key if train else None
        )
        metrics = prediction_metrics(self.name, mlm, seen["labels"], seen["weights"])
        if nsp is not None:
            metrics |= prediction_metrics("nsp", nsp, batch["is_random_next"], batch["weight"])
        terms = [mean for name, mean in metrics.items() if name.endswith("loss")]
        loss = Mean(jnp.stack([t.sum for t in terms]), jnp.stack([t.count for t in terms]))
        return loss, metrics
