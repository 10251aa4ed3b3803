"""A loss or a gradient that is not finite ends the run at its step, and nothing of it is saved."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import lines
from tiny_corpus import make_schedule, make_trainer, one_device, small_config

from bert_jax.common.errors import UserError
from bert_jax.objectives.base import Mean
from bert_jax.training import loop
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Explosive:
    """A loss of one parameter that is infinite, or has no gradient, when it meets an instance."""

    loss_of: tuple[tuple[int, int], ...] = ()
    gradient_of: tuple[tuple[int, int], ...] = ()

    metrics = ()

    def init(self, key, batch):
        return {"weight": jnp.float32(1)}

    def loss(self, params, batch, key, train):
        def meets(instances):
            hits = [(batch["instance"] == jnp.array([one])).all(axis=1).any() for one in instances]
            return jnp.array([False, *hits]).any()

        weight = params["weight"]
        # At 0 the square root is finite, and its slope is not.
        steep = jnp.sqrt(jnp.where(meets(self.gradient_of), weight - weight, 1.0))
        huge = jnp.where(meets(self.loss_of), jnp.inf, 0.0)  # of which there is no gradient
        return Mean(weight + huge + steep, jnp.float32(1)), {}


def run(corpus, workdir, bad: str, steps: tuple[int, ...], **schedule):
    """Trains an objective that is bad at those steps, until it is told."""
    config = small_config(eval_every=12, **schedule)
    _, phases = make_trainer(config, corpus)
    example = next(phases[0].batches(0, 1))
    met = [next(phases[0].batches(step, step + 1))["instance"] for step in steps]
    objective = Explosive(**{bad: tuple(tuple(instances[5].tolist()) for instances in met)})
    trainer = Trainer(
        objective, lambda _: optax.adam(1e-3), lambda _: 1e-3, one_device(), example, config.seed
    )
    with pytest.raises(UserError) as error:
        loop.run(trainer, phases, make_schedule(config), workdir)
    return str(error.value), met, trainer


@pytest.mark.parametrize("bad", ["loss_of", "gradient_of"])
def test_it_names_the_step_and_its_instances_and_the_checkpoint_before(corpus, tmp_path, bad):
    schedule = {"log_every": 4, "checkpoint_every": 3}
    said, (instances,), trainer = run(corpus, tmp_path, bad, (7,), **schedule)
    assert re.search(r"not finite at step 7 \(last good checkpoint: 6\)", said)
    for instance in instances.tolist():
        assert str(tuple(instance)) in said
    assert [line["step"] for line in lines(tmp_path, "train")] == [4]
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps == [3, 6]
    step, state = checkpoints.restore(trainer.abstract_state)
    checkpoints.close()
    assert step == 6
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
    # The same command meets the same batch again, and says so again.
    assert "not finite at step 7 " in run(corpus, tmp_path, bad, (7,), **schedule)[0]


def test_the_first_of_several_bad_steps_is_told(corpus, tmp_path):
    """It is looked for before a save, also where no log is due."""
    said, *_ = run(corpus, tmp_path, "gradient_of", (5, 7), log_every=12, checkpoint_every=8)
    assert re.search(r"not finite at step 5 \(last good checkpoint: none\)", said)
