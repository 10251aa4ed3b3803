"""Our pre-training step, of any size, on a batch that is ready."""

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks.contest import Turn
from bert_jax import plan
from bert_jax.families import build_objective
from bert_jax.objectives.base import Batch
from bert_jax.training import memory, sharding
from bert_jax.training.trainer import Trainer, build_trainer
from configs import pretrain

VOCAB_SIZE = 30522


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is trained."""

    size: str
    batch_size: int
    seq_length: int
    dtype: str

    def config(self) -> Any:
        config = pretrain.get_config(f"size={self.size},seq={self.seq_length}")
        config.batch_size = self.batch_size
        config.dtype = self.dtype
        return config

    def batch(self) -> dict[str, np.ndarray]:
        """Full rows of random tokens, in two segments."""
        draw = np.random.default_rng(0)
        size = self.batch_size, self.seq_length
        segments = np.broadcast_to(np.arange(self.seq_length) >= self.seq_length // 2, size)
        return {
            "tokens": draw.integers(1000, VOCAB_SIZE, size, np.int32),
            "segments": segments.astype(np.int32),
            "lengths": np.full(self.batch_size, self.seq_length, np.int32),
            "instance": draw.integers(0, 2**31, (self.batch_size, 2), np.int32),
            "weight": np.ones(self.batch_size, np.float32),
            "pair_label": draw.integers(0, 2, self.batch_size, np.int32),
        }

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.seq_length


def trainer_of(shape: Shape) -> tuple[Trainer, Batch]:
    """The trainer, and a batch on its devices."""
    config = shape.config()
    mesh = sharding.make_mesh(config.mesh)
    objective = build_objective(config, plan.stand_in(VOCAB_SIZE))
    rows = shape.batch()
    trainer = build_trainer(config, mesh, config.steps, objective, rows)
    return trainer, trainer.put(rows, shape.batch_size)


def ours(shape: Shape) -> Turn:
    """The trainer's own step, in a process like that of bert_jax.main."""
    memory.keep_freed_memory()
    trainer, batch = trainer_of(shape)
    state = trainer.init()

    def turn(times: int) -> None:
        nonlocal state
        for _ in range(times):
            state, loss = trainer.step(state, batch)
        jax.block_until_ready((state, loss))

    return turn
