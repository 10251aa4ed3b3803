"""What a checkpoint costs the training loop. A table and one JSON line.

    python -m benchmarks.checkpoint --size=base [--repeats=5] [--folder=/tmp]

The state is a run's (parameters, both moments, metrics), the steps are the trainer's own on a
batch of one short row, so that they are mostly the optimiser's. In turns, `repeats` times:

  copy          the state copied within the host's memory: the least that a save must wait for
  synchronous   a save, waited for
  asynchronous  a save as in training: `blocked` until the loop goes on, `lost` what it and the
                steps beside its writing took longer than as many steps without
  restore       the newest checkpoint, its bits verified

Seconds of wall time, medians, with their range.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.provenance import provenance
from bert_jax import plan
from bert_jax.common import entry
from bert_jax.common.flag_parsing import path_flag
from bert_jax.families import build_objective
from bert_jax.training import sharding
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.trainer import build_trainer
from configs import pretrain

_SIZE = flags.DEFINE_string("size", "base", "Size of the model, as in configs/pretrain.py.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "How often each is measured.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 0, "Steps beside a save; 0: as long as it takes, and two.")
_FOLDER = path_flag("folder", "Where to write; default: the system's.")

LENGTH = 16


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of a call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


class Loop:
    """Training steps of one size, and the state they have come to."""

    def __init__(self, size: str):
        config = pretrain.get_config(f"size={size},seq={LENGTH}")
        objective = build_objective(config, plan.stand_in(30522))
        mesh = sharding.make_mesh(config.mesh)
        count = mesh.size
        config.batch_size = count
        shapes = plan.abstract_batch(mesh, "pairs", count, LENGTH)
        rows = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
        rows["lengths"] += LENGTH
        self.trainer = build_trainer(config, mesh, config.steps, objective, rows)
        self.state = self.trainer.init()
        self._batch = self.trainer.put(rows, count)
        self.run(2)  # compiled

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.state, loss = self.trainer.step(self.state, self._batch)
            jax.block_until_ready(loss)
        jax.block_until_ready(self.state)


def measure(loop: Loop, folder: str, repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each kind."""
    checkpoints = Checkpoints(folder, keep=1)
    found: dict[str, list[float]] = {
        kind: [] for kind in ("copy", "synchronous", "blocked", "lost", "restore")
    }
    place = 0

    def save() -> None:
        nonlocal place
        place += 1
        checkpoints.save(place, loop.state)

    def save_and_wait() -> None:
        save()
        checkpoints.wait()

    save_and_wait()  # what happens only once
    if not steps:
        one = seconds(lambda: loop.run(1))
        steps = 2 + round(seconds(save_and_wait) / one)
    for _ in range(repeats):
        found["copy"].append(seconds(lambda: jax.tree.map(np.array, loop.state)))
        found["synchronous"].append(seconds(save_and_wait))
        without = seconds(lambda: loop.run(steps))
        blocked = seconds(save)
        found["blocked"].append(blocked)
        beside = seconds(lambda: loop.run(steps))
        checkpoints.wait()
        found["lost"].append(blocked + beside - without)
        found["restore"].append(seconds(lambda: checkpoints.restore(loop.trainer.abstract_state)))
    checkpoints.close()
    return found


def main() -> None:
    """Measures one size."""
    loop = Loop(_SIZE.value)
    folder = tempfile.mkdtemp(dir=_FOLDER.value)
    try:
        found = measure(loop, folder, _REPEATS.value, _STEPS.value)
    finally:
        shutil.rmtree(folder)
    size = sum(x.nbytes for x in jax.tree.leaves(loop.state))
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    print(f"{_SIZE.value}: a state of {size / 1e9:.2f} GB, {_REPEATS.value} times")
    for kind, values in found.items():
        print(f"{kind:12} {medians[kind]:8.3f} s   {min(values):8.3f} .. {max(values):.3f}")
    allowed = medians["copy"] + 0.05 * medians["synchronous"]
    print(f"blocked / (copy + 5% of synchronous): {medians['blocked'] / allowed:.2f}")
    facts = {
        "size": _SIZE.value,
        "bytes": size,
        "seconds": found,
        "medians": medians,
        "blocked_share": medians["blocked"] / allowed,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(provenance("checkpoint") | facts))


if __name__ == "__main__":
    entry.run(main)
