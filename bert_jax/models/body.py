"""The encoder as the body of a task: fine-tuned, or frozen with a BiLSTM on its activations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.models.encoder import Encoder, EncoderConfig, padding_mask
from bert_jax.models.layers import Key, apply, fold
from bert_jax.models.recurrent import BiLSTM

# Rows of the paper's Table 7: which hidden states (0: the embeddings), and how they are joined.
FEATURES = {
    "embeddings": ((0,), "concat"),
    "second_to_last": ((-2,), "concat"),
    "last": ((-1,), "concat"),
    "weighted_last_4": ((-4, -3, -2, -1), "weighted"),
    "concat_last_4": ((-4, -3, -2, -1), "concat"),
    "weighted_all": (None, "weighted"),  # all L layers, without the embeddings
}


@dataclasses.dataclass(frozen=True)
class Body:
    """From tokens to one vector a position: the encoder, fine-tuned or frozen, [and a BiLSTM].

    features: empty to fine-tune the encoder; a row of FEATURES to read frozen layers of it.
    bilstm: layers of a randomly initialised BiLSTM on top (paper: 2), 0 for none.
    bilstm_width: both directions together (paper: 768).
    """

    encoder: EncoderConfig
    features: str = ""
    bilstm: int = 0
    bilstm_width: int = 768

    @property
    def width(self) -> int:
        """Of the vectors that come out."""
        if self.bilstm:
            return self.bilstm_width
        if not self.features:
            return self.encoder.width
        layers, join = FEATURES[self.features]
        return self.encoder.width * (len(layers) if join == "concat" and layers else 1)

    def init(self, key: jax.Array, tokens: jax.Array, segments: jax.Array) -> dict[str, Any]:
        """Parameters {encoder[, mix][, bilstm]}, boxed; tokens, segments int[B, S]."""
        c = self.encoder
        keys = jax.random.split(key, 2)
        params = {"encoder": Encoder(c).init(keys[0], tokens[:1], segments[:1], None)["params"]}
        if self.features and FEATURES[self.features][1] == "weighted":
            layers = FEATURES[self.features][0]
            params["mix"] = {"weight": jnp.zeros(len(layers or range(c.layers)))}
        if self.bilstm:
            width = dataclasses.replace(self, bilstm=0).width
            module = BiLSTM(self.bilstm, self.bilstm_width)
            lengths = jnp.ones(1, jnp.int32)
            params["bilstm"] = module.init(keys[1], jnp.zeros((1, 1, width)), lengths)["params"]
        return params

    def hidden(
        self, params: Any, tokens: jax.Array, segments: jax.Array, lengths: jax.Array, key: Key
    ) -> jax.Array:
        """tokens, segments int[B, S], lengths int[B] -> [B, S, width]."""
        mask = padding_mask(lengths, tokens.shape[1])
        encode = Encoder(self.encoder)
        if not self.features:
            x = apply(encode, params["encoder"], tokens, segments, mask, key)
        else:  # frozen: no gradient, no dropout inside
            frozen = jax.lax.stop_gradient(params["encoder"])
            states = apply(encode, frozen, tokens, segments, mask, every_layer=True)
            layers, join = FEATURES[self.features]
            chosen = states[1:] if layers is None else states[jnp.array(layers)]
            if join == "weighted":
                weights = jax.nn.softmax(params["mix"]["weight"]).astype(chosen.dtype)
                x = jnp.einsum("l,lbsd->bsd", weights, chosen)
            else:
                x = jnp.concatenate(list(chosen), axis=-1)
        if self.bilstm:
            module = BiLSTM(self.bilstm, self.bilstm_width, self.encoder.hidden_dropout)
            x = apply(module, params["bilstm"], x, lengths, fold(key, 1_000_001))
        return x
