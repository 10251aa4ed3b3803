"""Each purpose of random keys draws from keys of its own; runs of format 1 keep theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpus

from bert_jax import main
from bert_jax.common import keys, run_format
from bert_jax.common.keys import Purpose, root
from bert_jax.families import build_objective
from bert_jax.objectives.corruption import corrupt, instance_keys
from bert_jax.training.trainer import build_trainer

COUNT = 1000


def words(key) -> set[bytes]:
    """The bits of each of some keys."""
    data = np.asarray(jax.random.key_data(key)).reshape(-1, 2)
    return {row.tobytes() for row in data}


def folded(key, count: int = COUNT):
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(count))


def drawn(seed: int, format: int) -> dict[str, set[bytes]]:
    """The keys that each purpose draws from, of the first steps and instances."""
    steps = folded(root(seed, Purpose.DROPOUT, format))
    # Layers, embeddings and heads of a step without micro-batches; with them, one fold more.
    places = jnp.array([*range(25), keys.HEAD, keys.BILSTM])
    inside = jax.vmap(lambda k: jax.vmap(lambda p: jax.random.fold_in(k, p))(places))(steps[:50])
    instances = jnp.stack(jnp.meshgrid(jnp.arange(4), jnp.arange(COUNT)), -1).reshape(-1, 2)
    corruption = root(seed, Purpose.CORRUPTION, format)
    held_out = jnp.stack([jnp.zeros(COUNT, int), jnp.arange(COUNT)], -1)
    return {
        "init": words(jax.random.split(root(seed, Purpose.INIT, format), 8)),
        "dropout": words(steps) | words(inside),
        "corruption": words(instance_keys(corruption, instances)),
        "held out": words(instance_keys(jax.random.key(keys.HELD_OUT_SEED), held_out)),
    }


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_no_two_purposes_draw_from_one_key(seed):
    found = list(drawn(seed, run_format.FORMAT).values())
    assert sum(map(len, found)) == len(set.union(*found))


def test_the_first_format_draws_as_it_did():
    """There, initial parameters and dropout met, and masks and dropout inside a layer."""
    for purpose in Purpose:
        assert words(root(3, purpose, 1)) == words(jax.random.key(3))
    found = drawn(3, 1)
    assert found["init"] <= found["dropout"]
    assert found["dropout"] & found["corruption"]


@pytest.mark.parametrize("format", [1, 2])
def test_a_run_draws_by_its_format(corpus, format):
    """The trainer and the objective take their keys from the roots of the run's format."""
    config = tiny_corpus.small_config()
    objective = build_objective(config, corpus.tokenizer.vocabulary, format)
    mesh = tiny_corpus.one_device()
    (phase,) = main.build_phases(config, corpus, objective, mesh)
    batch = next(phase.batches(0, 1))
    trainer = build_trainer(config, mesh, 12, objective, batch, format=format)
    seen = objective.corrupted(batch, train=True)["tokens"]
    key = root(config.seed, Purpose.CORRUPTION, format)
    expected = corrupt(
        objective.masking, batch["tokens"], batch["lengths"], instance_keys(key, batch["instance"])
    )
    np.testing.assert_array_equal(seen, expected["tokens"])
    fresh = trainer.init()["params"]["encoder"]["embeddings"]["token"]
    made = objective.init(root(config.seed, Purpose.INIT, format), batch)
    table = made["encoder"]["embeddings"]["token"].value
    np.testing.assert_allclose(fresh, table, rtol=1e-5)  # compiled, and not
    noted = []
    trainer.objective = type("Noting", (), {"loss": lambda self, p, b, key, t: noted.append(key)})()
    with pytest.raises(TypeError):  # what the loss gives is nothing; its key is all that is wanted
        trainer._step(trainer.init() | {"step": jnp.int32(7)}, batch, jnp.float32(0))
    step = jax.random.fold_in(root(config.seed, Purpose.DROPOUT, format), 7)
    assert words(noted[0]) == words(step)


def test_held_out_text_is_masked_alike_in_all_formats(corpus):
    config = tiny_corpus.small_config(seed=5)
    made = [build_objective(config, corpus.tokenizer.vocabulary, format) for format in (1, 2)]
    (phase,) = main.build_phases(config, corpus, made[0], tiny_corpus.one_device())
    batch = phase.evaluation()[0]
    one, other = (objective.corrupted(batch, train=False)["tokens"] for objective in made)
    np.testing.assert_array_equal(one, other)
