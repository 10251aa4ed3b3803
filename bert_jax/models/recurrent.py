"""A bidirectional LSTM, for the paper's ablations: on frozen features, and on top of LTR."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.operations import Key, dropout, fold


class BiLSTM(nn.Module):
    """Stacked bidirectional LSTM in float32; padding is not read, in either direction.

    width: of the output, the two directions side by side.
    """

    layers: int
    width: int
    dropout: float = 0.0  # on each layer's input

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, key: Key = None) -> jax.Array:
        """x [B, S, D], lengths int[B] -> float32 [B, S, width]."""

        def direction(name: str, width: int, reverse: bool = False) -> Any:
            cell = nn.OptimizedLSTMCell(width, name=name)
            lstm = nn.RNN(cell, reverse=reverse, keep_order=True)
            return lstm(x, seq_lengths=lengths)

        x = x.astype(jnp.float32)
        half = self.width // 2
        for layer in range(self.layers):
            x = dropout(x, self.dropout, fold(key, layer))
            forward = direction(f"forward_{layer}", half)
            backward = direction(f"backward_{layer}", self.width - half, reverse=True)
            x = jnp.concatenate([forward, backward], axis=-1)
        return x
