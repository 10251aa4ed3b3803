"""BERT as others publish it: the names and layouts of its arrays and of its config, and ours.

Every array has one entry in the table that `layout` makes; reading and writing both follow it. The
names are those of transformers. A linear layer's weight is [out, in] there and [in, out] here; the
outputs of queries, keys and values and the inputs of the attention output are one axis there and
[N, H] here.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.models.encoder import EncoderConfig
from bert_jax.training.config import encoder_config

PARTS = {  # ours, and how the names of theirs begin; several are called "classifier" there
    "pooler": "bert.pooler.",
    "mlm_head": "cls.predictions.",
    "nsp_head": "cls.seq_relationship",
    "classifier": "classifier",
    "tag_head": "classifier",
    "choice_head": "classifier",
    "span_head": "qa_outputs",
}
CLASSIFIER = {"BertForTokenClassification": "tag_head", "BertForMultipleChoice": "choice_head"}
ACTIVATIONS = {  # theirs, ours
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
SIZES = {  # theirs, ours
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "segment_types",
}
RATES = {  # theirs, ours
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "init_stddev",
    "layer_norm_eps": "norm_epsilon",
}
_DEFAULT_RATES = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "init_stddev": 0.02}
TIED = {  # copies that some files hold, or hold instead
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


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


def layout(c: EncoderConfig, parts: Mapping[str, int]) -> dict[str, Array]:
    """Our name of every array of the encoder and of `parts` -> theirs.

    parts: names of ours, with the number of classes where there are any.
    """
    table: dict[str, Array] = {}
    width, split, inner = (c.width,), (c.heads, c.head_width), (c.feed_forward,)

    def dense(ours: str, theirs: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        table[f"{ours}/kernel"] = Array(f"{theirs}.weight", inputs + outputs, len(inputs))
        table[f"{ours}/bias"] = Array(f"{theirs}.bias", outputs)

    def norm(ours: str, theirs: str) -> None:
        table[f"{ours}/scale"] = Array(f"{theirs}.weight", width)
        table[f"{ours}/bias"] = Array(f"{theirs}.bias", width)

    rows = {"token": c.vocab_size, "position": c.max_positions, "segment": c.segment_types}
    names = {"token": "word", "position": "position", "segment": "token_type"}
    for name, size in rows.items():
        theirs = f"bert.embeddings.{names[name]}_embeddings.weight"
        table[f"encoder/embeddings/{name}"] = Array(theirs, (size, c.width))
    norm("encoder/embeddings/norm", "bert.embeddings.LayerNorm")
    for layer in range(c.layers):
        ours, theirs = f"encoder/layer_{layer}", f"bert.encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            dense(f"{ours}/attention/{name}", f"{theirs}.attention.self.{name}", width, split)
        dense(f"{ours}/attention/output", f"{theirs}.attention.output.dense", split, width)
        norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm")
        dense(f"{ours}/feed_forward/inner", f"{theirs}.intermediate.dense", width, inner)
        dense(f"{ours}/feed_forward/outer", f"{theirs}.output.dense", inner, width)
        norm(f"{ours}/feed_forward_norm", f"{theirs}.output.LayerNorm")
    for part, classes in parts.items():
        if part == "pooler":
            dense("pooler/dense", "bert.pooler.dense", width, width)
        elif part == "mlm_head":
            dense("mlm_head/dense", "cls.predictions.transform.dense", width, width)
            norm("mlm_head/norm", "cls.predictions.transform.LayerNorm")
            table["mlm_head/bias"] = Array("cls.predictions.bias", (c.vocab_size,))
        else:
            dense(f"{part}/dense", PARTS[part], width, (classes,))
    return table


def model_section(config: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], EncoderConfig]:
    """The `model` section that a BERT config means, and the encoder with all its rows.

    Raises: UserError, naming `where`: a size is missing, or something is not supported.
    """
    missing = [name for name in (*SIZES, "vocab_size", "hidden_act") if name not in config]
    if missing:
        raise UserError(f"{where}: the config lacks {', '.join(missing)}")
    if config["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act={config['hidden_act']} is not supported; "
            f"known: {', '.join(ACTIVATIONS)}"
        )
    model = {
        **{ours: config[theirs] for theirs, ours in SIZES.items()},
        "head_width": 0,
        "activation": ACTIVATIONS[config["hidden_act"]],
        **_DEFAULT_RATES,
        **{ours: config[theirs] for theirs, ours in RATES.items() if theirs in config},
        "causal": False,
        "scan_layers": False,
        "remat": False,
        "kernels": False,
    }
    return model, encoder_config(model, config["vocab_size"], "float32")
