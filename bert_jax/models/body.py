"""The encoder as the body of a task: fine-tuned, or frozen with a BiLSTM on its activations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.common.errors import UserError
from bert_jax.common.keys import BILSTM
from bert_jax.models.backbone import Backbone, Inputs
from bert_jax.models.layers import apply, take
from bert_jax.models.operations import Key, fold
from bert_jax.models.recurrent import BiLSTM

# Rows of the paper's Table 7: which hidden states (0: the embeddings), and how they are joined.
FEATURES: dict[str, tuple[tuple[int, ...], str]] = {
    "embeddings": ((0,), "concat"),
    "second_to_last": ((-2,), "concat"),
    "last": ((-1,), "concat"),
    "weighted_last_4": ((-4, -3, -2, -1), "weighted"),
    "concat_last_4": ((-4, -3, -2, -1), "concat"),
    "weighted_all": ((), "weighted"),  # all L layers, without the embeddings
}


@dataclasses.dataclass(frozen=True)
class Body:
    """From tokens to one vector a position: the encoder, fine-tuned or frozen, [and a BiLSTM].

    features: empty to fine-tune the encoder; a row of FEATURES to read frozen layers of it.
    bilstm: layers of a randomly initialised BiLSTM on top (paper: 2), 0 for none.
    bilstm_width: both directions together (paper: 768).

    Raises: UserError for unknown features, or more layers than the encoder has.
    """

    backbone: Backbone
    features: str = ""
    bilstm: int = 0
    bilstm_width: int = 768

    def __post_init__(self):
        if self.features and self.features not in FEATURES:
            raise UserError(f"features={self.features!r} is unknown; known: {', '.join(FEATURES)}")
        deepest = -min(self._layers)
        if deepest > self.backbone.layers:
            raise UserError(
                f"features={self.features} reads the last {deepest} layers, but the encoder has "
                f"only {self.backbone.layers}"
            )

    @property
    def _layers(self) -> tuple[int, ...]:
        """The hidden states that are read."""
        layers = FEATURES[self.features][0] if self.features else (-1,)
        return layers or tuple(range(1, self.backbone.layers + 1))

    @property
    def _is_weighted(self) -> bool:
        return bool(self.features) and FEATURES[self.features][1] == "weighted"

    @property
    def _read_width(self) -> int:
        """Of what is read from the encoder."""
        return self.backbone.width * (1 if self._is_weighted else len(self._layers))

    @property
    def _bilstm(self) -> BiLSTM:
        return BiLSTM(self.bilstm, self.bilstm_width, self.backbone.hidden_dropout)

    @property
    def width(self) -> int:
        """Of the vectors that come out."""
        return self.bilstm_width if self.bilstm else self._read_width

    def init(self, key: jax.Array, inputs: Inputs) -> dict[str, Any]:
        """Makes parameters {encoder[, mix][, bilstm]}, boxed."""
        keys = jax.random.split(key)
        params = {"encoder": self.backbone.init(keys[0], inputs)}
        if self._is_weighted:
            params["mix"] = {"weight": jnp.zeros(len(self._layers))}
        if self.bilstm:
            example = jnp.zeros((1, 1, self._read_width)), jnp.ones(1, jnp.int32)
            params["bilstm"] = self._bilstm.init(keys[1], *example)["params"]
        return params

    def hidden(
        self, params: Any, inputs: Inputs, key: Key, wanted: jax.Array | None = None
    ) -> jax.Array:
        """Computes the vectors [B, S, width].

        wanted: int[B, M], the positions to return: [B, M, width].
        """
        whole = bool(self.features or self.bilstm)  # these read all positions
        if self.features:  # frozen: no gradient, no dropout inside
            frozen = jax.lax.stop_gradient(params["encoder"])
            states = self.backbone.hidden(frozen, inputs, every_layer=True)
            chosen = [states[layer] for layer in self._layers]
            if self._is_weighted:
                shares = jax.nn.softmax(params["mix"]["weight"])
                x = jnp.einsum("l,lbsd->bsd", shares, jnp.stack(chosen))
            else:
                x = jnp.concatenate(chosen, axis=-1)
        else:
            few = None if whole else wanted
            x = self.backbone.hidden(params["encoder"], inputs, key, wanted=few)
        if self.bilstm:
            x = apply(self._bilstm, params["bilstm"], x, inputs.lengths, fold(key, BILSTM))
        return take(x, wanted) if whole and wanted is not None else x
