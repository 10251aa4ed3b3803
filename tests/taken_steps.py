"""What tests of training look at: the state after some steps, its gradients, and differences."""

import jax
import numpy as np


def steps(trainer, phases, stop: int, state=None):
    """The state after the first `stop` steps, on from `state`."""
    state = trainer.init() if state is None else state
    for batch in phases[0].batches(int(state["step"]), stop):
        state, _ = trainer.step(state, trainer.put(batch, phases[0].batch_size))
    return state


def gradients(state):
    """The gradients of the first step, clipped: the first moment after it is a tenth of them."""
    (moments,) = [part for part in state["opt_state"] if hasattr(part, "mu")]
    return jax.tree.map(lambda m: np.asarray(m) / 0.1, moments.mu)


def means(window) -> dict[str, float]:
    return {name: float(mean.value()) for name, mean in window.items()}


def difference(one, other) -> float:
    """The largest absolute difference between two trees."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
