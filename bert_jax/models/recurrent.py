"""A bidirectional LSTM, for the paper's ablations: on frozen features, and on top of LTR."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.layers import Key, dropout, fold


class LSTM(nn.Module):
    """One direction of one layer, in float32 (Hochreiter and Schmidhuber 1997, with forget gates).

    Not `flax.linen.RNN`: the products with the inputs of all steps are one product here, which
    takes a fifth off a step on CPU.
    """

    width: int
    reverse: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        """x [B, S, D], real bool[B, S] -> [B, S, width]; where not real the state stays."""
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], 4 * self.width))
        recurrent = self.param("recurrent", init, (self.width, 4 * self.width))
        bias = self.param("bias", nn.initializers.zeros, (4 * self.width,))

        def step(state, inputs):
            cell, out = state
            x, real = inputs
            enter, forget, leave, value = jnp.split(x + out @ recurrent, 4, axis=-1)
            new = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(value)
            cell = jnp.where(real, new, cell)
            out = jnp.where(real, jax.nn.sigmoid(leave) * jnp.tanh(new), out)
            return (cell, out), out

        steps = (x.astype(jnp.float32) @ kernel + bias[None, None]).swapaxes(0, 1)
        start = jnp.zeros((x.shape[0], self.width))
        real = real.swapaxes(0, 1)[..., None]
        _, outs = jax.lax.scan(step, (start, start), (steps, real), reverse=self.reverse)
        return outs.swapaxes(0, 1)


class BiLSTM(nn.Module):
    """Stacked bidirectional LSTM; padding is not read, in either direction.

    width: of the output, the two directions side by side.
    """

    layers: int
    width: int
    dropout: float = 0.0  # on each layer's input

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, key: Key = None) -> jax.Array:
        """x [B, S, D], lengths int[B] -> float32 [B, S, width]."""
        real = jnp.arange(x.shape[1])[None] < lengths[:, None]
        half = self.width // 2
        for layer in range(self.layers):
            x = dropout(x, self.dropout, fold(key, layer))
            forward = LSTM(half, name=f"forward_{layer}")(x, real)
            backward = LSTM(self.width - half, reverse=True, name=f"backward_{layer}")(x, real)
            x = jnp.concatenate([forward, backward], axis=-1)
        return x
