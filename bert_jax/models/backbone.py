"""The backbone of a model: from tokens to one vector a position, whatever it is made of."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, Self

import flax.struct
import jax

from bert_jax.models.layers import HeadConfig
from bert_jax.models.operations import Key

Params = Any  # a plain tree of float32 arrays


@flax.struct.dataclass
class Inputs:
    """What a backbone reads; one that needs more gets a field here, and no signature changes."""

    tokens: jax.Array  # int[B, S]
    segments: jax.Array  # int[B, S]
    lengths: jax.Array  # int[B], tokens that are not padding

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array]) -> "Inputs":
        """Takes the inputs of a batch; those of rows of C sequences ([B, C, S]) become [B·C, S]."""
        width = batch["tokens"].shape[-1]
        tokens, segments = (batch[name].reshape(-1, width) for name in ("tokens", "segments"))
        return cls(tokens, segments, batch["lengths"].reshape(-1))


class Backbone(Protocol):
    """A network without its heads, as a value: its sizes, and pure functions of its parameters."""

    @property
    def width(self) -> int:
        """D, of the vectors that come out."""
        ...

    @property
    def layers(self) -> int:
        """L; the hidden states are the embeddings and one a layer."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest S."""
        ...

    @property
    def segment_types(self) -> int:
        """How many texts of a sequence it can tell apart by their segments."""
        ...

    @property
    def hidden_dropout(self) -> float:
        """Share of a vector that training drops out, also in heads."""
        ...

    @property
    def pool(self) -> Literal["first", "last"]:
        """The real position whose vector sums a text up."""
        ...

    @property
    def head(self) -> HeadConfig:
        """What heads on it are made with."""
        ...

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """Makes fresh parameters, boxed with their logical axes (flax `LogicallyPartitioned`)."""
        ...

    def hidden(
        self,
        params: Params,
        inputs: Inputs,
        key: Key = None,
        *,
        wanted: jax.Array | None = None,
        every_layer: bool = False,
    ) -> jax.Array:
        """Computes the vectors.

        Args:
          params: as of `init`, without boxes.
          key: dropout key; None: evaluation.
          wanted: int[B, M], the positions to return; None: all.
          every_layer: whether to return all hidden states, the embeddings first.
        Returns: [B, S, D]; with `wanted` [B, M, D]; with `every_layer` [L + 1, B, S, D].
        """
        ...

    def table(self, params: Params) -> jax.Array:
        """Gives the token embeddings [V, E], to which heads may be tied."""
        ...

    def flops(self, rows: int, length: int, predicted: int = 0) -> float:
        """Counts the FLOPs of a training step; predicted: positions that meet the vocabulary."""
        ...

    def depth_of(self, path: tuple[str, ...]) -> int:
        """Gives the depth of a parameter: 0 for embeddings, 1 .. L for the layers.

        path: its name within the parameters of `init`.
        """
        ...

    def reinit(self, params: Params, fresh: Params, layers: int) -> tuple[Params, list[str]]:
        """Takes the top layers from `fresh`; returns the parameters and what is new, by name."""
        ...

    def without(self, rows: int, length: int) -> str:
        """Says which of its options cannot be had for such batches, on the mesh that is set."""
        ...

    def with_options(self, **options: Any) -> Self:
        """Makes the same network, computed another way (remat, scan_layers, kernels, dtype)."""
        ...
