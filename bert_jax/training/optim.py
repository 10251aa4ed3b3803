"""Optimisers and learning rates; each difference between paper, code and today is a switch.

Sources: BERT paper A.2; google-research/bert `optimization.py` (AdamWeightDecayOptimizer);
LAMB: arXiv 1904.00962 with the exclusions of google-research/albert `lamb_optimizer.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.common.errors import UserError


def scale_by_adam(
    beta1: float, beta2: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformation:
    """m / (√v + ε), with m and v as they are (released code) or bias-corrected (Adam's paper).

    `optax.scale_by_adam` always corrects, so the released optimiser needs its own.
    """
    if bias_correction:
        return optax.scale_by_adam(beta1, beta2, epsilon)

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        )

    def update(grads, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def decayed(params: Any) -> Any:
    """Which parameters weight decay touches: all but biases and layer norms, as a tree of bools.

    All embedding tables are decayed, the output bias is not (released code).
    """

    def is_decayed(path: tuple, _: Any) -> bool:
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        return names[-1] != "bias" and not any(name.endswith("norm") for name in names)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def _falling(count: jax.Array, begin: float, steps: int) -> jax.Array:
    return jnp.clip((steps - count) / max(steps - begin, 1), 0.0, 1.0)


# By the name of optimizer.decay_from: the share of the peak after warm-up, of (step, steps of
# warm-up, steps). A schedule of another shape is one more row.
DECAYS: dict[str, Callable[[jax.Array, float, int], jax.Array]] = {
    # From step 0 on, so the rate jumps down a little where warm-up ends (released code).
    "start": lambda count, warmup, steps: _falling(count, 0, steps),
    "warmup": _falling,  # it falls from the peak at the end of warm-up
}


def learning_rate(
    peak: float, steps: int, warmup_steps: float, decay_from: str = "start"
) -> optax.Schedule:
    """Makes a linear warm-up from 0, then the decay that is named.

    warmup_steps: below 1 it is a share of the steps. decay_from: a name of DECAYS.
    Raises: UserError: another `decay_from`, or warm-up longer than the training.
    """
    if decay_from not in DECAYS:
        raise UserError(f"optimizer.decay_from is {decay_from!r}; known: {', '.join(DECAYS)}")
    if 0 < warmup_steps < 1:
        warmup_steps = round(steps * warmup_steps)
    if not 0 <= warmup_steps <= steps:
        raise UserError(f"warmup_steps={warmup_steps:g} must lie between 0 and steps={steps}")
    decay = DECAYS[decay_from]

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rising = count / max(warmup_steps, 1)
        return peak * jnp.where(count < warmup_steps, rising, decay(count, warmup_steps, steps))

    return schedule


def schedule(config: Any, steps: int) -> optax.Schedule:
    """The learning rate of a run; with `short_phase.learning_rate`, anew in the second phase.

    config: learning_rate, warmup_steps, optimizer.decay_from[, short_phase].
    """
    decay_from = config.optimizer.decay_from
    peak, warmup_steps, switch = 0.0, 0.0, 0
    if "short_phase" in config:
        short = config.short_phase
        peak, warmup_steps, share = short.learning_rate, short.warmup_steps, short.share
        switch = round(steps * share) if peak else 0
    if switch >= steps:
        return learning_rate(peak, steps, warmup_steps, decay_from)
    last = learning_rate(config.learning_rate, steps - switch, config.warmup_steps, decay_from)
    if not switch:
        return last
    first = learning_rate(peak, switch, warmup_steps, decay_from)
    return optax.join_schedules([first, last], [switch])


def _adamw(config: Any) -> list[optax.GradientTransformation]:
    return [
        scale_by_adam(config.beta1, config.beta2, config.epsilon, config.bias_correction),
        optax.add_decayed_weights(config.weight_decay, None if config.decay_all else decayed),
    ]


def _lamb(config: Any) -> list[optax.GradientTransformation]:
    return [*_adamw(config), optax.masked(optax.scale_by_trust_ratio(), decayed)]


# By name: the steps between the clipped gradient and the learning rate. config: beta1, beta2,
# epsilon, weight_decay, decay_all (of biases and norms, too), bias_correction.
OPTIMIZERS: dict[str, Callable[[Any], list[optax.GradientTransformation]]] = {
    "adamw": _adamw,  # decoupled weight decay
    "lamb": _lamb,  # with LAMB's trust ratio
}


def optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimiser: clip by global norm, a row of OPTIMIZERS, learning rate.

    config: name, clip_norm (0: no clipping), and what the row takes.
    Raises: UserError: another name.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f"optimizer.name is {config.name!r}; known: {', '.join(OPTIMIZERS)}")
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    rows = OPTIMIZERS[config.name](config)
    return optax.chain(*clip, *rows, optax.scale_by_learning_rate(schedule))
