"""The encoder: embeddings and a stack of blocks."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import kernels
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
    `embeddings`, `layer_0` .. `layer_{L-1}`. So it is with `kernels` or without; where these cannot
    run (`kernels.fits`), plain JAX computes the same.
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
        wanted: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes a batch.

        Args:
          tokens, segments: int[B, S].
          mask: bool[B|1, 1|S, S], true where a query may look; `None`: everywhere.
          key: dropout key; `None` for evaluation.
          positions: int[B|1, S], by default 0..S-1.
          every_layer: whether to return all hidden states instead of the last.
          wanted: int[B, M], the positions to return. The last layer leaves the others out, but as
            keys and values: for M much below S that is most of its work.
        Returns: [B, S, D], with `wanted` [B, M, D]; or with `every_layer` [L + 1, B, S, D], the
          embeddings first.
        """
        c = self.config
        if c.kernels and not kernels.fits(tokens.shape, c.width, c.heads, c.head_width):
            c = dataclasses.replace(c, kernels=False)
        x = Embeddings(c, name="embeddings")(tokens, segments, fold(key, c.layers), positions)
        earlier, first = [], 0
        if c.scan_layers and c.layers > 1 and not self.is_initializing():
            first = c.layers - 1  # the last does other work
            x, inputs = self._scan(Block(c, parent=None), x, mask, key, first)
            earlier = [inputs]
        block = nn.remat(Block) if c.remat else Block
        for layer in range(first, c.layers):
            earlier.append(x[None])
            here = wanted if layer == c.layers - 1 else None
            x = block(c, name=f"layer_{layer}")(x, mask, fold(key, layer), here)
        return jnp.concatenate([*earlier, x[None]]) if every_layer else x

    def _scan(
        self, block: Block, x: jax.Array, mask: jax.Array | None, key: Key, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """The first layers as one compiled loop; also returns the inputs of each [.., B, S, D]."""
        c = self.config
        params = self.variables["params"]
        layers = [params[f"layer_{layer}"] for layer in range(count)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

        def body(x, scanned):
            layer, params = scanned
            return apply(block, params, x, mask, fold(key, layer)), x

        if c.remat:
            body = jax.checkpoint(body, prevent_cse=False)
        return jax.lax.scan(body, x, (jnp.arange(count), stacked))


def model_flops(config: EncoderConfig, batch: int, sequence: int, predicted: int) -> float:
    """FLOPs of one training step (forward and twice that backward), counted analytically.

    Matrix products only: the blocks over B·S tokens, but the last, past its keys and values, and
    the MLM head over the B·M predicted positions. With `predicted` 0, as in fine-tuning, there is
    no such head and the last block counts whole (of pooled tasks too, which leave most of it out).
    Dropout, norms, embeddings and recomputation are not counted, as is usual for model FLOPs
    utilisation.
    """
    c = config
    projection = c.width * c.heads * c.head_width
    attention = 2 * sequence * c.heads * c.head_width
    query = 2 * projection + attention + 2 * c.width * c.feed_forward  # of one position
    head = c.width * c.width + c.width * c.vocab_size
    queries = (c.layers - 1) * sequence + (predicted or sequence)
    products = c.layers * sequence * 2 * projection + queries * query + predicted * head
    return 3 * 2.0 * batch * products
