"""A bidirectional LSTM, for the paper's ablations: on frozen features, and on top of LTR."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.layers import Key, dropout, fold


class BiLSTM(nn.Module):
    """Stacked bidirectional LSTM; padding is not read, in either direction.

    width: of the output, the two directions side by side.
    """

    layers: int
    width: int
    dropout: float = 0.0  # on each layer's input

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, key: Key = None) -> jax.Array:
        """x [B, S, D], lengths int[B] -> [B, S, width]."""
        for layer in range(self.layers):
            x = dropout(x, self.dropout, fold(key, layer)).astype(jnp.float32)
            forward = nn.RNN(nn.OptimizedLSTMCell(self.width // 2), name=f"forward_{layer}")
            backward = nn.RNN(
                nn.OptimizedLSTMCell(self.width - self.width // 2),
                reverse=True,
                keep_order=True,
                name=f"backward_{layer}",
            )
            x = jnp.concatenate(
                [forward(x, seq_lengths=lengths), backward(x, seq_lengths=lengths)], axis=-1
            )
        return x
