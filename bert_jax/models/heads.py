"""Heads on top of the encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.layers import ACTIVATIONS, Dense, HeadConfig, by_row, norm, zeros


class Pooler(nn.Module):
    """tanh(dense) of the first position ([CLS])."""

    config: HeadConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, D]."""
        dense = Dense(self.config, self.config.width, ("model", None), name="dense")
        return by_row(jnp.tanh(dense(by_row(hidden[:, 0]))))


class MlmHead(nn.Module):
    """Dense, activation, layer norm, then the token embeddings again (tied) plus a bias."""

    config: HeadConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, token_embeddings: jax.Array) -> jax.Array:
        """hidden [B, M, D] at the predicted positions, table [V, D] -> logits float32 [B, M, V]."""
        c = self.config
        dense = Dense(c, c.width, ("model", None), name="dense")
        x = by_row(norm(c)(ACTIVATIONS[c.activation](dense(by_row(hidden)))))
        bias = self.param("bias", zeros("vocab"), (c.vocab_size,))
        logits = jnp.einsum(
            "bmd,vd->bmv",
            x,
            token_embeddings.astype(c.dtype),
            preferred_element_type=jnp.float32,
        )
        # The vocabulary may be split, the positions of a row may not.
        return by_row(logits + bias[None, None], jax.sharding.PartitionSpec.UNCONSTRAINED)


class Classifier(nn.Module):
    """A dense layer from a vector to C classes; with C = 2 on the pooled output, the NSP head."""

    config: HeadConfig
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> logits float32 [..., C]."""
        c = self.config
        dense = Dense(c, self.classes, ("model", None), name="dense")
        return dense(x).astype(jnp.float32)
