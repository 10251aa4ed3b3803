"""The encoder: embeddings and a stack of blocks; as a module, and as a backbone."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import kernels
from bert_jax.models.backbone import Inputs, Params
from bert_jax.models.layers import Block, Embeddings, EncoderConfig, HeadConfig, apply
from bert_jax.models.operations import Key, fold

__all__ = ["Encoder", "EncoderBackbone", "EncoderConfig", "attention_mask", "padding_mask"]


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


@dataclasses.dataclass(frozen=True)
class EncoderBackbone(EncoderConfig):
    """The encoder as a backbone (see `models.backbone`); its switches make most families."""

    @property
    def pool(self) -> Literal["first", "last"]:
        """The first position ([CLS]); of a causal encoder the last, which alone has seen all."""
        return "last" if self.causal else "first"

    @property
    def head(self) -> HeadConfig:
        """What heads on it are made with."""
        return HeadConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(HeadConfig)})

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """Makes fresh parameters, boxed; of the inputs only the shapes count."""
        example = inputs.tokens[:1], inputs.segments[:1], None
        return Encoder(self).init(key, *example)["params"]

    def hidden(
        self,
        params: Params,
        inputs: Inputs,
        key: Key = None,
        *,
        wanted: jax.Array | None = None,
        every_layer: bool = False,
    ) -> jax.Array:
        """Computes the vectors; see `Backbone`."""
        mask = attention_mask(self, inputs.lengths, inputs.tokens.shape[1])
        given = inputs.tokens, inputs.segments, mask, key
        return apply(Encoder(self), params, *given, every_layer=every_layer, wanted=wanted)

    def table(self, params: Params) -> jax.Array:
        """Gives the token embeddings [V, D]."""
        return params["embeddings"]["token"]

    def flops(self, rows: int, length: int, predicted: int = 0) -> float:
        """Counts the FLOPs of one training step (forward and twice that backward), analytically.

        Matrix products only: the blocks over B·S tokens, but the last, past its keys and values,
        and the MLM head over the B·M predicted positions. With `predicted` 0, as in fine-tuning,
        there is no such head and the last block counts whole (of pooled tasks too, which leave most
        of it out). Dropout, norms, embeddings and recomputation are not counted, as is usual for
        model FLOPs utilisation.
        """
        projection = self.width * self.heads * self.head_width
        attention = 2 * length * self.heads * self.head_width
        query = 2 * projection + attention + 2 * self.width * self.feed_forward  # of one position
        head = self.width * self.width + self.width * self.vocab_size
        queries = (self.layers - 1) * length + (predicted or length)
        products = self.layers * length * 2 * projection + queries * query + predicted * head
        return 3 * 2.0 * rows * products

    def depth_of(self, path: tuple[str, ...]) -> int:
        """Gives the depth of a parameter: 0 for embeddings, 1 .. L for the layers."""
        return 1 + int(path[0].removeprefix("layer_")) if path[0].startswith("layer_") else 0

    def reinit(self, params: Params, fresh: Params, layers: int) -> tuple[Params, list[str]]:
        """Takes the top layers from `fresh`."""
        names = [f"layer_{layer}" for layer in range(self.layers - layers, self.layers)]
        return {**params, **{name: fresh[name] for name in names}}, names

    def without(self, rows: int, length: int) -> str:
        """Says whether the kernels that were asked for cannot run."""
        sizes = self.width, self.heads, self.head_width
        if self.kernels and not kernels.fits((rows, length), *sizes):
            return kernels.NOT_HERE
        return ""

    def with_options(self, **options: Any) -> "EncoderBackbone":
        """Makes the same network, computed another way."""
        return dataclasses.replace(self, **options)
