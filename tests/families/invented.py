"""A family that nobody has published: the proof that a family is one file, and nothing else.

Everything in it differs from the first family: the special tokens, the layout of the text, a switch
of the network (all layers share their parameters), and what is learnt, with a head of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bert_jax.common import keys
from bert_jax.common.errors import UserError
from bert_jax.common.fields import Settings, number
from bert_jax.data.layouts import LAYOUTS, Fields, Spans, TokenBlocks
from bert_jax.data.template import Template, Vocabulary
from bert_jax.families import encoder
from bert_jax.families.base import Family
from bert_jax.models.backbone import Backbone, Inputs
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.models.heads import Classifier
from bert_jax.models.layers import apply
from bert_jax.objectives.base import (
    Batch,
    Mean,
    Metric,
    Params,
    Target,
    prediction_metrics,
    prediction_rows,
)
from bert_jax.objectives.corruption import instance_keys
from bert_jax.training.settings import PRETRAIN, check_pretraining


@dataclasses.dataclass(frozen=True)
class SharedLayers(EncoderBackbone):
    """An encoder all of whose layers have the parameters of the first."""

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        one = dataclasses.replace(self, layers=1)
        return EncoderBackbone.init(one, key, inputs)

    def hidden(self, params: Params, inputs: Inputs, key: Any = None, **wanted: Any) -> jax.Array:
        layers = {f"layer_{layer}": params["layer_0"] for layer in range(self.layers)}
        return super().hidden({**params, **layers}, inputs, key, **wanted)

    def reinit(self, params: Params, fresh: Params, layers: int) -> tuple[Params, list[str]]:
        if layers:
            raise UserError("reinit_layers: the layers share their parameters")
        return params, []


class Tails(TokenBlocks):
    """The last block of each document alone, with the number of its tokens as a label."""

    fields: ClassVar[Fields] = {"pair_label": ((), np.int32)}

    def chunks(self, pass_: int) -> np.ndarray:
        return self.block_ends - 1

    def spans(self, pass_: np.ndarray, chunk: np.ndarray) -> Spans:
        starts, ends, _ = super().spans(pass_, chunk)
        return Spans(starts, ends, ((ends - starts)[:, 0] % 2).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Swapped:
    """Which tokens were put in the place of others: two classes a position, drawn by instance."""

    backbone: Backbone
    vocabulary: Vocabulary
    special: tuple[int, ...]
    rate: float
    seed: int

    layout = "tails"
    metrics: ClassVar[tuple[Metric, ...]] = prediction_rows("swap", "swap", "majority")

    def with_options(self, **options: Any) -> "Swapped":
        return dataclasses.replace(self, backbone=self.backbone.with_options(**options))

    def init(self, key: jax.Array, batch: Batch) -> Params:
        split, head = jax.random.split(key), self.backbone.head
        return {
            "encoder": self.backbone.init(split[0], Inputs.of(batch)),
            "swap_head": Classifier(head, 2).init(split[1], jnp.zeros((1, head.width)))["params"],
        }

    def flops(self, rows: int, length: int) -> float:
        return self.backbone.flops(rows, length)

    def _swapped(self, batch: Batch, train: bool) -> tuple[jax.Array, Target]:
        seed = keys.root(self.seed if train else 0, keys.Purpose.CORRUPTION, 2)
        tokens = batch["tokens"]

        def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            split = jax.random.split(key)
            size = tokens.shape[1:]
            return (
                jax.random.uniform(split[0], size) < self.rate,
                jax.random.randint(split[1], size, 5, self.vocabulary.size),
            )

        chosen, others = jax.vmap(one)(instance_keys(seed, batch["instance"]))
        real = jnp.arange(tokens.shape[1])[None] < batch["lengths"][:, None]
        for special in self.special:
            real &= tokens != special
        swapped = chosen & real
        weights = real * batch["weight"][:, None]
        return jnp.where(swapped, others, tokens), Target(swapped.astype(jnp.int32), weights)

    def targets(self, batch: Batch, train: bool) -> dict[str, Target]:
        return {"swap": self._swapped(batch, train)[1]}

    def loss(
        self, params: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Mean, dict[str, Mean]]:
        tokens, target = self._swapped(batch, train)
        inputs = Inputs.of({**batch, "tokens": tokens})
        hidden = self.backbone.hidden(params["encoder"], inputs, key if train else None)
        logits = apply(Classifier(self.backbone.head, 2), params["swap_head"], hidden)
        metrics = prediction_metrics("swap", logits, *target)
        return metrics["swap_loss"], metrics


def _template(vocabulary: Vocabulary) -> Template:
    begin, end, pad = (vocabulary.id(role) for role in ("cls", "sep", "pad"))
    return Template((begin,), (end, end), (end,), pad, segments=(0, 0))


def _backbone(model: Mapping[str, Any], vocab_size: int, dtype: str) -> SharedLayers:
    plain = encoder.backbone(model, vocab_size, dtype)
    return SharedLayers(**dataclasses.asdict(plain))


def _section(config: Any, a: Any, preset: Mapping[str, Any]) -> None:
    config.swap = ml_collections.ConfigDict({"rate": a.rate})
    config.model = encoder.section(SIZES[a.size], preset)


def _objective(config: Any, vocabulary: Vocabulary, format: int) -> Swapped:
    backbone = _backbone(config.model.to_dict(), vocabulary.size, config.dtype)
    return Swapped(
        backbone, vocabulary, _template(vocabulary).special, config.swap.rate, config.seed
    )


SIZES = {"small": {"layers": 3, "width": 32, "heads": 2}}
LAYOUTS.setdefault("tails", Tails)
FAMILY = Family(
    name="invented",
    source="this file",
    sizes=SIZES,
    size="small",
    parameters={"small": 45_282},
    vocabulary=500,
    presets={
        "paper": {
            "steps": 20, "batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 0.1,
            "bias_correction": True, "decay_from": "warmup", "dropout": 0.1, "init_stddev": 0.05,
        }
    },
    arguments={"rate": 0.2},
    section=_section,
    settings=Settings(
        {**PRETRAIN.rows, **encoder.ROWS, "swap.rate": number(above=0, below=1)},
        check_pretraining,
    ),
    template=_template,
    backbone=_backbone,
    objective=_objective,
    layout_options=lambda config: {},
)  # fmt: skip
