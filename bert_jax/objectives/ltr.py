"""Left-to-right language modelling, the paper's "LTR & No NSP" (BERT, section 5.1)."""

import dataclasses

import jax
import jax.numpy as jnp

from bert_jax.models.encoder import Encoder, EncoderConfig, attention_mask
from bert_jax.models.heads import MlmHead
from bert_jax.models.layers import apply
from bert_jax.objectives.base import Batch, Mean, Params, prediction_metrics


@dataclasses.dataclass(frozen=True)
class LeftToRight:
    """Every token is predicted from those before it, by an encoder with a causal mask.

    The batch and the head are those of `MaskedLM`, so that nothing else differs. The tokens in
    `never` ([CLS] and [SEP]) are not predicted, as they are not in the masked-LM.
    """

    encoder: EncoderConfig  # causal
    never: tuple[int, ...]

    name = "lm"  # of the metrics

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters {encoder, mlm_head}, boxed with logical axes."""
        c = self.encoder
        keys = jax.random.split(key)
        table = jnp.zeros((c.vocab_size, c.width))
        encoder = Encoder(c).init(keys[0], batch["tokens"][:1], batch["segments"][:1], None)
        head = MlmHead(c).init(keys[1], jnp.zeros((1, 1, c.width)), table)
        return {"encoder": encoder["params"], "mlm_head": head["params"]}

    def predictions(self, sequence_length: int) -> int:
        """M: positions of a sequence that meet the vocabulary."""
        return sequence_length - 1

    def targets(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        """What positions 0 .. S-2 are to predict: labels int[B, S-1], weights float32[B, S-1]."""
        del train
        labels = batch["tokens"][:, 1:]
        predicted = jnp.arange(1, labels.shape[1] + 1)[None] < batch["lengths"][:, None]
        for special in self.never:
            predicted &= labels != special
        return labels, predicted * batch["weight"][:, None]

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        """Mean cross-entropy of the next token; metrics lm_loss, lm_accuracy."""
        c, tokens = self.encoder, batch["tokens"]
        mask = attention_mask(c, batch["lengths"], tokens.shape[1])
        dropout_key = key if train else None
        hidden = apply(Encoder(c), params["encoder"], tokens, batch["segments"], mask, dropout_key)
        table = params["encoder"]["embeddings"]["token"]
        logits = apply(MlmHead(c), params["mlm_head"], hidden[:, :-1], table)
        metrics = prediction_metrics(self.name, logits, *self.targets(batch, train))
        return metrics["lm_loss"], metrics
