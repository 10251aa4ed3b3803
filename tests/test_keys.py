"""Every random decision has a key of its own: what two runs share, comparing runs cannot show."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_finetuning_objectives import OBJECTIVES, some_batch
from tiny_corpus import make_trainer, one_device, small_config
from tiny_model import TINY, pretraining
from tiny_model import some_batch as some_text

from bert_jax.models import layers, operations, recurrent
from bert_jax.models.operations import dropout
from bert_jax.objectives import finetuning
from bert_jax.objectives.base import Mean
from bert_jax.objectives.ltr import LeftToRight
from bert_jax.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Noise:
    """An objective whose gradient is the noise itself: for each row of the batch, one number."""

    rows: int

    def init(self, key, batch):
        return {"noise": jnp.zeros(self.rows)}

    def loss(self, params, batch, key, train):
        drawn = jax.random.uniform(key, batch["row"].shape)
        return Mean(jnp.sum(params["noise"][batch["row"]] * drawn), jnp.float32(1)), {}


def test_no_two_rows_micro_batches_steps_or_seeds_share_their_noise():
    batch = {"row": np.arange(8)}
    noise = []
    for accumulation, seed in itertools.product((1, 4), (0, 1)):
        trainer = Trainer(
            Noise(8),
            lambda _: optax.sgd(-1.0),
            lambda _: 1.0,
            one_device(),
            batch,
            seed,
            accumulation,
        )
        state = trainer.init()
        for _ in range(3):
            before = np.asarray(state["params"]["noise"])
            state, _ = trainer.step(state, trainer.put(batch, 8))
            noise.append(np.asarray(state["params"]["noise"]) - before)
    for of_one_accumulation in np.split(np.stack(noise), 2):
        assert len(np.unique(of_one_accumulation.round(6))) == 2 * 3 * 8


NAMES = ["single", "span", "frozen tag", "mlm", "ltr"]


def pretraining_or_task(name: str):
    """An objective and a batch for it."""
    if name in OBJECTIVES:
        return OBJECTIVES[name], some_batch(name)
    causal = dataclasses.replace(TINY, causal=True)
    rows = np.arange(4, dtype=np.int32)
    ids = {"instance": np.stack([rows, rows], 1), "pair_label": rows % 2}
    batch = some_text(TINY) | ids | {"weight": np.ones(4, np.float32)}
    return LeftToRight(causal, (2, 3)) if name == "ltr" else pretraining(TINY), batch


def test_dropout_of_the_model_differs_between_steps_and_seeds(corpus):
    """The loss of the same parameters on the same batch."""
    trainer, phases = make_trainer(small_config(), corpus)
    batch = trainer.put(next(phases[0].batches(0, 1)), 16)

    def loss(step: int, seed: int) -> float:
        places = {name: trainer.abstract_state[name].sharding for name in ("step", "seed")}
        state = trainer.init() | jax.device_put(
            {"step": np.int32(step), "seed": np.uint32(seed)}, places
        )
        return float(trainer.step(state, batch)[1])

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(1, 0), loss(2, 0), loss(0, 1)}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_no_two_parameters_begin_alike(name):
    """Nor do those of another seed: of each array the first numbers, of constant ones none."""
    objective, batch = pretraining_or_task(name)
    init = jax.jit(objective.init)
    begins = [
        tuple(np.ravel(leaf)[:4].tolist())
        for seed in (0, 1)
        for leaf in jax.tree.leaves(nn.unbox(init(jax.random.key(seed), batch)))
    ]
    random = [values for values in begins if len(set(values)) > 1]
    assert len(random) > len(begins) // 3
    assert len(set(random)) == len(random)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_dropouts_of_an_objective_share_a_key(name, monkeypatch):
    """Those of the encoder, of what stands on it, and of the head."""
    keys = []

    def recorded(x, rate, key):
        if key is not None:  # as in a frozen encoder
            keys.append(tuple(np.ravel(jax.random.key_data(key)).tolist()))
        return dropout(x, rate, key)

    objective, batch = pretraining_or_task(name)
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0), batch))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for module in (layers, operations, finetuning, recurrent):
        monkeypatch.setattr(module, "dropout", recorded)
    with jax.disable_jit():  # else a layer is traced once, and its keys are tracers
        objective.loss(params, batch, jax.random.key(3), True)
    assert len(set(keys)) == len(keys) > 1
