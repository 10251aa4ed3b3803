"""A tiny encoder with random parameters and batches, for tests of the computation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models.encoder import Encoder, EncoderBackbone, padding_mask
from bert_jax.objectives.corruption import Masking
from bert_jax.objectives.mlm import MaskedLM

TINY = EncoderBackbone(
    vocab_size=97, layers=2, width=32, heads=4, head_width=8, feed_forward=64, max_positions=24
)


def pretraining(config: EncoderBackbone) -> MaskedLM:
    return MaskedLM(config, Masking(config.vocab_size, mask_id=4, never=(2, 3)))


def boxed_shapes(config: EncoderBackbone):
    """What `init` would give, boxed with logical axes, without computing it."""
    row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    batch = {"tokens": row, "segments": row, "lengths": jax.ShapeDtypeStruct((1,), jnp.int32)}
    return jax.eval_shape(pretraining(config).init, jax.random.key(0), batch)


def random_params(config: EncoderBackbone, seed: int = 0, stddev: float = 0.2):
    """Non-trivial values everywhere, biases and layer norms included."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        value = rng.normal(0, stddev, leaf.shape) + (path[-1].key == "scale")
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(one, nn.unbox(boxed_shapes(config)))


def some_batch(config: EncoderBackbone, rows: int = 4, size: int = 16, seed: int = 0):
    rng = np.random.default_rng(seed)
    lengths = np.array([size, *rng.integers(5, size, rows - 1)], np.int32)
    real = np.arange(size) < lengths[:, None]
    tokens = np.where(real, rng.integers(5, config.vocab_size, (rows, size)), 0)
    segments = np.where(real, np.arange(size) >= lengths[:, None] // 2, 0)
    batch = {"tokens": tokens.astype(np.int32), "segments": segments.astype(np.int32)}
    return jax.tree.map(jnp.asarray, batch | {"lengths": lengths})


def encode(config, params, batch, key=None, every_layer=False):
    mask = padding_mask(batch["lengths"], batch["tokens"].shape[1])
    inputs = (batch["tokens"], batch["segments"], mask, key)
    return Encoder(config).apply({"params": params["encoder"]}, *inputs, every_layer=every_layer)
