"""How others call and lay out a model's arrays and settings: what a family says, as a value.

The names are those of transformers. A linear layer's weight is [out, in] there and [in, out] here;
the outputs of queries, keys and values and the inputs of the attention output are one axis there
and [N, H] here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.models.backbone import Backbone


@dataclasses.dataclass(frozen=True)
class Array:
    """Their name of an array; the shape of ours; of a kernel, how many axes are its inputs."""

    theirs: str
    shape: tuple[int, ...]
    inputs: int = 0

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Kernels are [outputs, inputs] there; heads are not an axis of their own."""
        if self.inputs:
            return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])
        return self.shape if self.theirs.endswith("embeddings.weight") else (math.prod(self.shape),)

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        """float32[shape] of an array of `their_shape`."""
        value = value.T if self.inputs else value
        return np.ascontiguousarray(value.reshape(self.shape), np.float32)

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        """float32[their_shape] of an array of `shape`."""
        value = value.reshape(self.their_shape[::-1]).T if self.inputs else value
        return np.ascontiguousarray(value.reshape(self.their_shape), np.float32)


@dataclasses.dataclass(frozen=True)
class Names:
    """A family in other formats: one table for reading and writing."""

    model_type: str  # of its config.json in transformers
    prefix: str  # of the arrays of a model with heads; a bare one is without
    # Their classes, and which parts ours must have besides the encoder; the first that fits is
    # written.
    classes: tuple[tuple[str, tuple[str, ...]], ...]
    parts: Mapping[str, str]  # ours, and how the names of theirs begin
    classifiers: Mapping[str, str]  # which part of ours "classifier" is in a class of theirs
    tied: Mapping[str, str]  # copies that some files hold, or hold instead
    sizes: Mapping[str, str]  # of the config: theirs, ours
    rates: Mapping[str, str]  # of the config: theirs, ours
    # (backbone, parts with their numbers of classes): every array, by our name for it.
    arrays: Callable[[Any, Mapping[str, int]], dict[str, Array]]
    # (config, where it is from): the `model` section that it means, and the backbone with all rows.
    # Raises UserError, naming `where`: a size is missing, or something is not supported.
    model: Callable[[Mapping[str, Any], Path], tuple[dict[str, Any], Backbone]]
