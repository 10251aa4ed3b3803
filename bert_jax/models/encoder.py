"""The encoder: embeddings and a stack of blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.layers import Block, Embeddings, EncoderConfig, apply
from bert_jax.models.operations import Key, fold

__all__ = ["Encoder", "EncoderConfig", "attention_mask", "padding_mask"]


def padding_mask(lengths: jax.Array, sequence_length: int) -> jax.Array:
    """int[B] -> bool[B, 1, S]: every query may look at the real tokens and at no padding."""
    return (jnp.arange(sequence_length)[None] < lengths[:, None])[:, None]


def attention_mask(config: EncoderConfig, lengths: jax.Array, sequence_length: int) -> jax.Array:
    """Where each query may look: the padding mask, and if `causal` nothing to the right of itself.

    lengths int[B] -> bool[B, 1, S], causal [B, S, S].
    """
    mask = padding_mask(lengths, sequence_length)
    place = jnp.arange(sequence_length)
    return mask & (place[None, None] <= place[None, :, None]) if config.causal else mask


class Encoder(nn.Module):
    """Tokens to one vector a position.

    The parameter tree is the same whether the layers are unrolled or scanned (`scan_layers` stacks
    them inside the step), so checkpoints and conversions know one layout:
    `embeddings`, `layer_0` .. `layer_{L-1}`.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        mask: jax.Array | None,
        key: Key = None,
        positions: jax.Array | None = None,
        every_layer: bool = False,
    ) -> jax.Array:
        """Encodes a batch.

        Args:
          tokens, segments: int[B, S].
          mask: bool[B|1, 1|S, S], true where a query may look; `None`: everywhere.
          key: dropout key; `None` for evaluation.
          positions: int[B|1, S], by default 0..S-1.
          every_layer: whether to return all hidden states instead of the last.
        Returns: [B, S, D], or with `every_layer` [L + 1, B, S, D], the embeddings first.
        """
        c = self.config
        x = Embeddings(c, name="embeddings")(tokens, segments, fold(key, c.layers), positions)
        if c.scan_layers and not self.is_initializing():
            x, states = self._scan(x, mask, key)
            return jnp.concatenate([states, x[None]]) if every_layer else x
        block = nn.remat(Block) if c.remat else Block
        layers = [x]
        for layer in range(c.layers):
            x = block(c, name=f"layer_{layer}")(x, mask, fold(key, layer))
            layers.append(x)
        return jnp.stack(layers) if every_layer else x

    def _scan(self, x: jax.Array, mask: jax.Array | None, key: Key) -> tuple[jax.Array, jax.Array]:
        """The same layers as one compiled loop; also returns each layer's input [L, B, S, D]."""
        c = self.config
        params = self.variables["params"]
        layers = [params[f"layer_{layer}"] for layer in range(c.layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        block = Block(c, parent=None)

        def body(x, scanned):
            layer, params = scanned
            return apply(block, params, x, mask, fold(key, layer)), x

        if c.remat:
            body = jax.checkpoint(body, prevent_cse=False)
        return jax.lax.scan(body, x, (jnp.arange(c.layers), stacked))


def model_flops(config: EncoderConfig, batch: int, sequence: int, predicted: int) -> float:
    """FLOPs of one training step (forward and twice that backward), counted analytically.

    Matrix products only: the L blocks over B·S tokens, the MLM head over B·M positions. Dropout,
    norms, embeddings and recomputation are not counted, as is usual for model FLOPs utilisation.
    """
    c = config
    projections = 4 * c.width * c.heads * c.head_width + 2 * c.width * c.feed_forward
    attention = 2 * sequence * c.heads * c.head_width
    head = c.width * c.width + c.width * c.vocab_size
    products = c.layers * sequence * (projections + attention) + predicted * head
    return 3 * 2.0 * batch * products
