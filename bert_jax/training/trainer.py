"""What one step of training is: an objective and an optimiser on a mesh, as jitted functions.

The loop that calls them is in `loop`.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.common import keys
from bert_jax.common.run_format import FORMAT
from bert_jax.objectives.base import Batch, Mean, Objective
from bert_jax.training import accumulate, memory, optim, sharding

# step, seed, params, opt_state, window (metrics since the last log), bad_step. With another
# log_every a checkpoint holds other sums in its window; everything else of it has the same bits.
State = dict[str, Any]


class Trainer:
    """An objective and an optimiser on a mesh: the jitted functions and the state they act on."""

    def __init__(
        self,
        objective: Objective,
        optimizer: Callable[[optax.Schedule], optax.GradientTransformation],
        learning_rate: optax.Schedule,
        mesh: jax.sharding.Mesh,
        example: Mapping[str, np.ndarray],
        seed: int,
        accumulation: int = 1,
        format: int = FORMAT,
    ):
        """Compiles nothing yet.

        Args:
          optimizer: makes the optimiser with a learning rate.
          example: rows of a batch, for their shapes.
          accumulation: micro-batches a step.
          format: of the run, which decides about its keys.
        """
        self.objective, self.optimizer, self.learning_rate = objective, optimizer, learning_rate
        self.mesh, self.seed, self.accumulation = mesh, seed, accumulation
        self._root = functools.partial(keys.root, format=format)
        example = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, dict(example)))

        def fresh(seed: jax.Array) -> State:
            batch = jax.tree.map(jnp.zeros_like, example)
            params = objective.init(self._root(seed, keys.Purpose.INIT), batch)
            return {
                "step": jnp.int32(0),
                "seed": seed,  # here, lest a step of another seed be another program to compile
                "params": params,
                "opt_state": optimizer(learning_rate).init(params),
                "bad_step": jnp.int32(-1),  # the first whose loss or gradient was not finite
            }

        # The function that is compiled, so that it is traced once.
        boxed = jax.eval_shape(fresh, np.uint32(0))
        shardings = sharding.tree_shardings(mesh, boxed)
        self._fresh = jax.jit(fresh, out_shardings=shardings)
        loss = functools.partial(objective.loss, train=True)
        params = nn.meta.unbox(boxed["params"])
        means = jax.eval_shape(loss, params, example, jax.random.key(0))[1]

        def window() -> dict[str, Mean]:
            """No metrics yet."""
            nothing = Mean(jnp.float32(0), jnp.float32(0))
            zeros = jax.tree.map(jnp.zeros_like, means)
            return {"loss": nothing, **zeros, "grad_norm": nothing}

        boxed["window"] = jax.eval_shape(window)
        shardings["window"] = sharding.tree_shardings(mesh, boxed["window"])
        self.empty_window = jax.jit(window, out_shardings=shardings["window"])
        self.abstract_state: State = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            nn.meta.unbox(boxed),
            shardings,
        )
        self._prepare_programs(shardings)

    def _prepare_programs(self, shardings: State) -> None:
        """Makes the step and the evaluation, which are compiled where they are first called."""
        self._shapes: set[tuple[Any, ...]] = set()  # of the batches so far
        self._param_specs = jax.tree.map(lambda s: s.spec, shardings["params"])
        step = jax.jit(
            sharding.on_mesh(self.mesh, self._step), donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(self.mesh)),
            compiler_options=memory.compiler_options(self.mesh.devices.flat[0].platform),
        )  # fmt: skip
        self._compiled_step = memory.Checked(
            step, "a step", "lower batch_size or the length, raise accumulation, or set remat"
        )
        # A program of its own, lest a step of another schedule be another program to compile.
        self._rate = jax.jit(sharding.on_mesh(self.mesh, self.learning_rate))
        self.evaluate_batch = self.jit(
            lambda params, batch: self.objective.loss(params, batch, jax.random.key(0), False)[1]
        )

    def init(self, params: Any = None) -> State:
        """The state before the first step, each shard made on its device; given `params`, those."""
        state = nn.meta.unbox(self._fresh(np.uint32(self.seed)))
        state["window"] = self.empty_window()
        return state if params is None else state | {"params": params}

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled for this mesh, of parameters and a batch."""
        return memory.Checked(jax.jit(sharding.on_mesh(self.mesh, function)), "a batch")

    def check_memory(self) -> None:
        """Checks that what any step needs fits into the memory, before anything is made.

        Raises: UserError: it does not.
        """
        state = self.abstract_state
        parts = [memory.tree_bytes(state[name]) for name in ("params", "opt_state")]
        # Gradients are as large as the parameters, of frozen ones there are none.
        needed = sum(parts) + min(parts)
        memory.check_fits(
            needed, "training this model (parameters, gradients and the optimiser's state)",
            "take a smaller model, or more devices (mesh.fsdp or mesh.tensor share it out)",
        )  # fmt: skip

    def put(self, batch: Mapping[str, np.ndarray], batch_size: int) -> Batch:
        """This process's rows, or on every process all batch_size -> global arrays on the mesh."""
        return sharding.to_global(self.mesh, dict(batch), batch_size)

    def step(self, state: State, batch: Batch) -> tuple[State, jax.Array]:
        """Returns the new state, which takes the place of `state` in memory, and the step's loss,
        which is a buffer of its own that the host may wait for."""
        return self._compiled_step(state, batch, self._rate(state["step"]))

    def is_new(self, batch: Batch) -> bool:
        """Tells whether `step` has yet to compile, or load, its program for a batch like this."""
        shapes = tuple(sorted((name, x.shape) for name, x in batch.items()))
        known = shapes in self._shapes
        self._shapes.add(shapes)
        return not known

    def lower(self, batch: Any) -> jax.stages.Lowered:
        """Traces the step for a batch, or the shapes of one, without running it.

        What is compiled of it is the program of `step`, which then compiles none.
        """
        rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(self.mesh))
        return self._compiled_step.lower(self.abstract_state, batch, rate)

    def _step(self, state: State, batch: Batch, rate: jax.Array) -> tuple[State, jax.Array]:
        step, params = state["step"], state["params"]
        key = jax.random.fold_in(self._root(state["seed"], keys.Purpose.DROPOUT), step)
        grads, means = accumulate.gradients(
            self.objective, params, batch, key, self.accumulation, self._param_specs
        )
        means["grad_norm"] = Mean(optax.tree.norm(grads), jnp.float32(1))
        transform = self.optimizer(lambda count: rate)
        updates, opt_state = transform.update(grads, state["opt_state"], params)
        loss = means["loss"].value()
        finite = jnp.isfinite(loss) & jnp.isfinite(means["grad_norm"].value())
        after = {
            "step": step + 1,
            "seed": state["seed"],
            "params": optax.apply_updates(params, updates),
            "opt_state": opt_state,
            "window": {name: state["window"][name] + mean for name, mean in means.items()},
            "bad_step": jnp.where(finite | (state["bad_step"] >= 0), state["bad_step"], step),
        }
        return after, loss


def build_trainer(
    config: Any, mesh: jax.sharding.Mesh, steps: int, objective: Objective,
    example: Mapping[str, np.ndarray], frozen: Collection[str] = (), format: int = FORMAT,
) -> Trainer:  # fmt: skip
    """The objective with its optimiser on a mesh.

    config: batch_size, accumulation, learning_rate, warmup_steps, optimizer, seed.
    example: rows of a batch, for their shapes.
    frozen: top-level parts of the parameters that stay as they are.
    format: of the run, which decides about its keys.
    """
    sharding.check_batch(mesh, config.batch_size, config.accumulation)
    rate = optim.schedule(config, steps)

    def optimizer(rate: optax.Schedule) -> optax.GradientTransformation:
        transform = optim.optimizer(config.optimizer, rate)
        if not frozen:
            return transform
        return optax.multi_transform(
            {"trained": transform, "frozen": optax.set_to_zero()},
            lambda params: {n: "frozen" if n in frozen else "trained" for n in params},
        )

    return Trainer(
        objective, optimizer, rate, mesh, example, config.seed, config.accumulation, format
    )
