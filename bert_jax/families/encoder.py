"""What families of the encoder share: the `model` section of their configs, and its backbone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from bert_jax.common import run_format
from bert_jax.common.errors import UserError
from bert_jax.common.fields import Field, number, one_of, switch, whole
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.models.layers import ACTIVATIONS
from bert_jax.training.config import choose, compute_dtype


def _has_layers(config: Any) -> str:
    return "with model.layers=1" if config.model.layers == 1 else ""


def _begins_anew(config: Any) -> str:
    return "with init_from, whose parameters the run takes" if config.init_from else ""


ROWS: dict[str, Field] = {
    "family": Field("text", argument="configs/pretrain.py:family=..."),
    "model.layers": whole(1, 1_000),
    "model.width": whole(1),
    "model.heads": whole(1),
    "model.head_width": whole(0),
    "model.feed_forward": whole(0),
    "model.max_positions": whole(1),
    "model.segment_types": whole(1),
    "model.activation": one_of(*ACTIVATIONS),
    "model.norm_epsilon": number(above=0),
    "model.init_stddev": number(above=0, acts=_begins_anew),
    "model.causal": switch(),
    "model.hidden_dropout": number(least=0, below=1),
    "model.attention_dropout": number(least=0, below=1),
    "model.scan_layers": switch(_has_layers),
    "model.remat": switch(),
    "model.kernels": switch(),
}
# What a model of elsewhere, or a run that was converted from one, may not say; it is as in BERT.
_UNSAID = {"causal", "kernels", "norm_epsilon"}


def section(
    size: Mapping[str, int], preset: Mapping[str, Any], causal: bool = False
) -> ml_collections.ConfigDict:
    """Makes the `model` section. size: layers, width and heads. preset: of pre-training."""
    model = ml_collections.ConfigDict()
    model.layers = size["layers"]
    model.width = size["width"]
    model.heads = size["heads"]
    model.head_width = 0  # 0: width / heads
    model.feed_forward = 0  # 0: 4 * width
    model.max_positions = 512
    model.segment_types = 2
    model.activation = "gelu"  # erf (paper); gelu_tanh (released code since 2019-02); relu
    model.norm_epsilon = 1e-12
    model.init_stddev = preset["init_stddev"]  # of fresh kernels and embeddings, cut at two of it
    model.causal = causal  # no position looks to its right: the objective is left to right
    model.hidden_dropout = preset["dropout"]
    model.attention_dropout = preset["dropout"]
    model.scan_layers = False  # one compiled layer: compiles faster
    model.remat = False  # recompute activations in the backward pass: less memory
    model.kernels = False  # fused TPU kernels; not yet measured on a TPU
    return model


def backbone(model: Mapping[str, Any], vocab_size: int, dtype: str) -> EncoderBackbone:
    """Makes the encoder of a `model` section; 0 as head or feed-forward width: D/N and 4·D.

    dtype: float32, bfloat16, or auto: bfloat16 where the accelerator computes in it.
    Raises: UserError: an unknown activation or dtype, or heads that do not divide the width; a
      name that is missing in the section, or that this version does not know.
    """
    names = {field.name for field in dataclasses.fields(EncoderBackbone)}
    known = names - {"vocab_size", "dtype"}
    if missing := known - model.keys() - _UNSAID:
        raise UserError(f"the model section of the config lacks {', '.join(sorted(missing))}")
    if unknown := model.keys() - known:
        raise run_format.newer("config", f"setting model.{min(unknown)}")
    choose("model.activation", model["activation"], ACTIVATIONS)  # of models from elsewhere
    width, heads = model["width"], model["heads"]
    if not model["head_width"] and width % heads:
        raise UserError(f"model.width={width} does not divide by model.heads={heads}")
    sizes = {
        "head_width": model["head_width"] or width // heads,
        "feed_forward": model["feed_forward"] or 4 * width,
    }
    return EncoderBackbone(**{**model, **sizes}, vocab_size=vocab_size, dtype=compute_dtype(dtype))
