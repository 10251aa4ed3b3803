"""Learning rates, decayed parameters and updates: what the released code and the papers say."""

import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.common.errors import UserError
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.objectives.corruption import Masking
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.training import optim
from configs import pretrain

RELEASED = {  # google-research/bert optimization.py
    "name": "adamw",
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-6,
    "weight_decay": 0.01,
    "decay_all": False,
    "clip_norm": 1.0,
    "bias_correction": False,
}


def settings(**changes):
    return types.SimpleNamespace(**(RELEASED | changes))


@pytest.fixture(scope="module")
def params():
    """The real parameter tree, with values everywhere (fresh biases are all zero)."""
    config = EncoderBackbone(
        23, layers=2, width=8, heads=2, head_width=4, feed_forward=12, max_positions=10
    )
    objective = MaskedLM(config, Masking(23, 4, (2, 3)))
    ids = jnp.zeros((1, 6), jnp.int32)
    batch = {"tokens": ids, "segments": ids, "lengths": ids[:, 0]}
    tree = nn.meta.unbox(jax.eval_shape(lambda: objective.init(jax.random.key(0), batch)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)


def flat(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in leaves}


def gradients(params, step: int):
    """Global norms from well under 1 to well over it."""
    rng = np.random.default_rng(step)
    scale = (0.001, 1.0, 0.02)[step % 3]
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), params
    )


def run(transform, params, steps: int, grads=gradients):
    state = transform.init(params)

    @jax.jit
    def update(grads, state, params):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = update(grads(params, step), state, params)
    return flat(params)


def assert_close(actual, expected, tolerance=2e-6):
    assert actual.keys() == expected.keys()
    for name in actual:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


# Learning rates.


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (1, 1e-8),
        (5_000, 5e-5),
        (9_999, 9.999e-5),
        (10_000, 9.9e-5),  # the line has fallen from step 0 on: a jump down
        (500_000, 5e-5),
        (999_999, 1e-10),
        (1_000_000, 0.0),
        (2_000_000, 0.0),
    ],
)
def test_learning_rates_of_the_paper_as_released(step, rate):
    schedule = optim.learning_rate(1e-4, 1_000_000, 10_000, "start")
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (11, 89 / 90), (55, 0.5), (99, 1 / 90), (100, 0), (101, 0)],
)
def test_decay_from_the_end_of_warmup_is_continuous(step, rate):
    schedule = optim.learning_rate(1.0, 100, 10, "warmup")
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)


@pytest.mark.parametrize("decay_from", ["start", "warmup"])
def test_no_warmup_starts_at_the_peak(decay_from):
    schedule = optim.learning_rate(1.0, 10, 0, decay_from)
    rates = [float(schedule(step)) for step in range(11)]
    np.testing.assert_allclose(rates, np.linspace(1, 0, 11), atol=1e-6)


@pytest.mark.parametrize("decay_from", ["start", "warmup"])
def test_warmup_as_long_as_the_run_only_rises(decay_from):
    schedule = optim.learning_rate(1.0, 4, 4, decay_from)
    np.testing.assert_allclose([schedule(step) for step in range(4)], [0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((1.0, 10, 0, "end"), "start, warmup"),
        ((1.0, 10, 11, "start"), "warmup_steps=11"),
        ((1.0, 10, -1, "start"), "warmup_steps=-1"),
    ],
)
def test_wrong_schedules_are_user_errors(arguments, names):
    with pytest.raises(UserError, match=names):
        optim.learning_rate(*arguments)


def test_a_first_phase_alone_has_its_own_schedule():
    config = pretrain.get_config("size=large,preset=lamb,phases=true")
    config.short_phase.share = 1.0
    rate = optim.schedule(config, config.steps)
    warm = round(0.2843 * config.steps)
    assert float(rate(warm)) == pytest.approx(6e-3) and rate(config.steps) == 0


# Which parameters decay.


def test_every_kernel_and_embedding_table_decays_and_nothing_else(params):
    layer = ["attention/query", "attention/key", "attention/value", "attention/output"]
    layer += ["feed_forward/inner", "feed_forward/outer"]
    expected = {f"encoder/embeddings/{table}" for table in ("token", "position", "segment")}
    expected |= {f"encoder/layer_{i}/{name}/kernel" for i in range(2) for name in layer}
    expected |= {f"{head}/dense/kernel" for head in ("mlm_head", "pooler", "nsp_head")}
    marked = flat(optim.decayed(params))
    assert {name for name, is_decayed in marked.items() if is_decayed} == expected
    assert not marked["mlm_head/bias"]


def test_names_are_those_of_the_released_exclusion_list(params):
    """Its regular expressions: LayerNorm, layer_norm, bias; ours are called `norm`."""
    for name, is_decayed in flat(optim.decayed(params)).items():
        assert is_decayed == (not re.search("norm|bias", name)), name


def test_boxed_parameters_are_marked_like_plain_ones(params):
    boxed = jax.tree.map(lambda x: nn.LogicallyPartitioned(x, (None,) * x.ndim), params)
    marks = nn.meta.unbox(optim.decayed(boxed))
    assert jax.tree.leaves(marks) == jax.tree.leaves(optim.decayed(params))


# Updates.


def literal_adamw(params, steps: int, rates, c, ratio=None, grads=gradients):
    """optimization.py, written out in float64: clip, AdamWeightDecayOptimizer.apply_gradients.

    ratio: LAMB's (google-research/albert lamb_optimizer.py), of (param, update), or None.
    """
    start = params
    params = {name: p.astype(np.float64) for name, p in flat(params).items()}
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    for step in range(steps):
        given = {n: g.astype(np.float64) for n, g in flat(grads(start, step)).items()}
        norm = np.sqrt(sum(np.sum(g * g) for g in given.values()))
        for name in params:
            g = given[name] * (min(1.0, c.clip_norm / norm) if c.clip_norm else 1.0)
            m[name] = c.beta1 * m[name] + (1 - c.beta1) * g
            v[name] = c.beta2 * v[name] + (1 - c.beta2) * g * g
            update = m[name] / (np.sqrt(v[name]) + c.epsilon)
            excluded = re.search("norm|bias", name)
            if c.decay_all or not excluded:
                update = update + c.weight_decay * params[name]
            if ratio and not excluded:
                update = update * ratio(params[name], update)
            params[name] = params[name] - rates[step] * update
    return params


RATES = np.array([0.01, 0.003, 0.02, 0.001, 0.005], np.float32)


def schedule(count):
    return jnp.asarray(RATES)[count]


@pytest.mark.parametrize(
    "changes",
    [{}, {"clip_norm": 0.0}, {"beta2": 0.98, "weight_decay": 0.3}, {"decay_all": True}],
)
def test_released_adamw_step_by_step(params, changes):
    c = settings(**changes)
    for steps in (1, 5):
        actual = run(optim.optimizer(c, schedule), params, steps)
        assert_close(actual, literal_adamw(params, steps, RATES, c))


def test_released_adamw_agrees_with_the_golden_numbers(golden):
    file = golden("bert_erf")
    stored = file["adamw_released"]
    rates, scales = jnp.asarray(stored["rates"], jnp.float32), stored["grad_scales"]

    def grads(_, step):
        return jax.tree.map(lambda g: jnp.asarray(g * scales[step], jnp.float32), file["grads"])

    transform = optim.optimizer(settings(), lambda count: rates[count])
    params = jax.tree.map(jnp.asarray, file["params"])
    assert_close(run(transform, params, len(scales), grads), flat(stored["params"]))


def test_first_released_step_is_about_three_times_the_corrected_one(params):
    """m/√v = 0.1·g / (√0.001·|g|) = 3.16 without correction (C10); 1 with it."""
    grads = lambda params, _: jax.tree.map(jnp.ones_like, params)  # noqa: E731
    sizes = {}
    for correction in (False, True):
        c = settings(bias_correction=correction, weight_decay=0.0, clip_norm=0.0)
        after = run(optim.optimizer(c, lambda count: 1e-3), params, 1, grads)
        sizes[correction] = (flat(params)["mlm_head/bias"] - after["mlm_head/bias"]).mean()
    np.testing.assert_allclose(sizes[False], 0.1 / np.sqrt(0.001) * 1e-3, rtol=1e-3)
    np.testing.assert_allclose(sizes[True], 1e-3, rtol=1e-3)


def test_with_bias_correction_it_is_adamw_of_optax(params):
    c = settings(bias_correction=True, clip_norm=0.0)
    theirs = optax.adamw(schedule, 0.9, 0.999, 1e-6, weight_decay=0.01, mask=optim.decayed)
    assert_close(run(optim.optimizer(c, schedule), params, 5), run(theirs, params, 5), 1e-7)


def trust_ratio(param, update):
    norm, length = np.linalg.norm(param), np.linalg.norm(update)
    return norm / length if norm > 0 and length > 0 else 1.0


def test_lamb_step_by_step(params):
    """Each kernel and table moves by its own norm; one that is all zero moves unscaled."""
    params = jax.tree.map(lambda x: x, params)
    params["pooler"]["dense"]["kernel"] = jnp.zeros((8, 8))
    c = settings(name="lamb")
    for steps in (1, 5):
        actual = run(optim.optimizer(c, schedule), params, steps)
        assert_close(actual, literal_adamw(params, steps, RATES, c, trust_ratio), 1e-5)


def test_lamb_without_an_update_stays_where_it_is(params):
    """‖u‖ = 0: the ratio is 1, not 0/0."""
    zero = lambda params, _: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    c = settings(name="lamb", weight_decay=0.0)
    assert_close(run(optim.optimizer(c, schedule), params, 2, zero), flat(params), 0)


def test_unknown_optimizer_is_a_user_error():
    with pytest.raises(UserError, match="adamw, lamb"):
        optim.optimizer(settings(name="sgd"), schedule)
