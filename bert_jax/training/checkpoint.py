"""Checkpoints: asynchronous, atomic, verified; a damaged one falls back to the one before.

Orbax writes each checkpoint under a temporary name and commits it whole, so one that was cut off
is never seen. Damage after that (a truncated or missing file) may surface as an error, or as
wrong numbers; so every tree is stored with a fingerprint of its bits, checked when it is loaded,
and once after it was written (`seal`): what cannot be read is told at the first save.
"""

import contextlib
import itertools
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from bert_jax.common.errors import Restart, UserError, lost_a_process, may_pass, out_of_memory
from bert_jax.training import distributed, memory, seal


@jax.jit
def fingerprint(state: Mapping[str, Any]) -> dict[str, jax.Array]:
    """uint32[leaves] for each entry of `state`: a wrapping sum of each leaf's bits and places.

    Whole numbers, so it is the same however a leaf is sharded.
    """

    def one(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{leaf.dtype.itemsize * 8}"))
        odd = 2 * jax.lax.iota(jnp.uint32, leaf.size).reshape(leaf.shape) + 1
        return jnp.sum(bits.astype(jnp.uint32) * odd, dtype=jnp.uint32)

    return {
        name: jnp.stack([one(leaf) for leaf in jax.tree.leaves(tree)])
        for name, tree in state.items()
    }


class Checkpoints:
    """The checkpoints of one run, newest last, in `folder`.

    There stay the newest, the best scored one, and those of every N steps.
    """

    def __init__(self, folder: str | Path, keep: int = 2, every: int = 0, read_only: bool = False):
        """Opens `folder`, making it unless read_only.

        keep: how many of the newest stay. every: and those at multiples of it; 0: none.
        read_only: touch nothing, the run may be going on.
        Raises: UserError when there is nothing to read.
        """
        self._folder, self._read_only = Path(folder).resolve(), read_only
        self._orbax: Any = None  # writes
        self._saving: Any = None  # the save that was started last
        self._reading_back: Future[None] | None = None
        self._reader, self._closing = ThreadPoolExecutor(1, "read back"), threading.Event()
        seal.check_path(self._folder)
        if read_only and not self._folder.is_dir():
            raise UserError(f"there are no checkpoints at {self._folder}")
        self._context = ocp.Context()
        self._context.pytree.loading.partial_load = True
        if read_only:  # Orbax's Checkpointer reads the metrics of all, and stops at a damaged one
            return
        for step in self.steps if distributed.is_main() else []:
            try:
                seal.check_files(self._folder / str(step))
            except (ValueError, FileNotFoundError) as error:
                self._set_aside(step, error, restart=False)
        distributed.from_main(None)  # nobody opens what is being moved away
        policies = ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            # The loop decides when to save; Orbax's own policy would skip some.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    *([policies.EveryNSteps(every)] if every else []),
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics["score"],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
            context=self._context,
        )

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts saving `state`; returns once it is copied to the host. Committed by `wait`.

        score: ranks the checkpoints that have one; higher is better, then later.
        """
        tree = {"state": state, "fingerprint": fingerprint(state)}
        jax.block_until_ready(tree)  # its messages must not meet those of `wait`
        self.wait()
        with self._explained():
            saving = self._orbax.save_async(step, tree, metrics=seal.scored(score))
        names = {
            entry: [_name(path, ".") for path, _ in jax.tree.leaves_with_path({entry: part})]
            for entry, part in state.items()
        }
        prints = tree["fingerprint"]
        self._saving = saving

        def read_back() -> None:
            saving.result()
            checkpoint = self._folder / str(step)
            seal.check_files(checkpoint)
            if seal.check_arrays(checkpoint, names, prints, self._closing):
                seal.seal(checkpoint)

        if distributed.is_main():  # one is enough
            self._reading_back = self._reader.submit(read_back)

    def wait(self, read_back: bool = True) -> None:
        """Blocks until what was started is committed and, with `read_back`, was read back.

        Raises: UserError, as does the next `save`: it could not be.
        """
        saving, self._saving = self._saving, None
        with self._explained():
            if saving:  # its thread and files stay open until it is asked
                saving.result()
        if read_back:
            self._check_read_back()

    def _check_read_back(self) -> None:
        """Raises UserError, on all processes: the last checkpoint cannot be read."""
        reading, self._reading_back = self._reading_back, None
        error = reading.exception() if reading else None
        if distributed.from_main(error is None):
            return
        reason = "told by the main process" if error is None else _reason(error)
        raise UserError(
            f"the checkpoint that was just written to {self._folder} cannot be read back "
            f"({reason}): the disk or its file system loses data; put that right, or choose a "
            "--workdir elsewhere, before training on"
        ) from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
            raise UserError(
                f"a checkpoint could not be written to {self._folder} ({_reason(error)}); those "
                "committed before are kept: put that right, and the same command goes on from the "
                "newest"
            ) from error

    def close(self) -> None:
        """Waits, and ends what runs behind. Raises: UserError, as `wait`."""
        if self._read_only:
            return
        self._closing.set()
        try:
            self.wait(read_back=False)
        finally:
            with self._explained():
                self._orbax.close()
            self._reader.shutdown()

    @property
    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending."""
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())

    def by_score(self) -> list[int]:
        """Steps of the checkpoints that have a score, the best last."""
        scored = []
        for step in self.steps:
            try:
                score = seal.score_of(self._folder / str(step))
            except ValueError as error:
                self._set_aside(step, error)
                continue
            scored += [] if score is None else [(score, step)]
        return [step for _, step in sorted(scored)]

    def restore(
        self, abstract: Mapping[str, Any] | None = None, best: bool = False, step: int = -1
    ) -> tuple[int, Any] | None:
        """The newest sound checkpoint as (step, state), or None where there is none at all.

        Args:
          abstract: the tree of `jax.ShapeDtypeStruct` (with shardings) to restore into; entries of
            the state that it leaves out are not read. None: the parameters alone, on one device.
          best: the best scored one instead, where there are scores.
          step: that one and no other; -1: any.
        Raises:
          UserError: the checkpoint is of another model, or every checkpoint is damaged.
          Restart: one was, and is moved away; all processes must go back to the one before.
        """
        steps = (best and self.by_score()) or self.steps
        if step >= 0:
            steps = [found for found in self.steps if found == step]
        steps = distributed.from_main(steps)
        for one in reversed(steps):
            self._look_for(one)
            try:
                return one, self._load(one, abstract)
            except (UserError, MemoryError):
                raise
            except Exception as error:  # Orbax raises many kinds for a damaged file
                system = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
                gone = lost_a_process(error)
                if system or gone or may_pass(error) or out_of_memory(error):
                    raise  # it says nothing about the checkpoint
                _check_readable(self._folder / str(one))
                self._set_aside(one, error)
        if steps or (step < 0 and any(self._damaged.glob("*"))):
            raise UserError(
                f"{self._folder}: all checkpoints are damaged; restore one from a backup, or start "
                "in another work directory"
            )
        return None

    def _look_for(self, step: int) -> None:
        """Makes sure that this host sees a checkpoint that the main process has chosen."""
        if step in self.steps:
            return
        if not distributed.sees(self._folder / str(step)):
            raise Restart(
                f"this host does not see checkpoint {step} in {self._folder}, which process 0 does:"
                " start again"
            )
        self._orbax.reload()

    @property
    def _damaged(self) -> Path:
        return self._folder.parent / "damaged_checkpoints"

    def _set_aside(self, step: int, error: Exception, restart: bool = True) -> None:
        """Says that a checkpoint is damaged, and moves it out of the way unless read_only.

        restart: of several processes some may have found it sound, so all must look again.
        Raises: Restart.
        """
        reason = str(error).strip().split("\n")[0][:200]
        text = f"checkpoint {step} is damaged ({reason})"
        if not self._read_only:
            self._damaged.mkdir(exist_ok=True)
            names = (f"{step}-{number}" if number else f"{step}" for number in itertools.count())
            aside = next(path for name in names if not (path := self._damaged / name).exists())
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                (self._folder / str(step)).replace(aside)
            text += f"; moved to {aside}"
            if restart and jax.process_count() > 1:
                raise Restart(f"{text}: start again, to go on from the one before")
            if self._orbax:
                self._orbax.reload()
        print(f"warning: {text}; falling back to the one before", file=sys.stderr)

    def _load(self, step: int, abstract: Mapping[str, Any] | None) -> Any:
        where = self._folder / str(step)
        seal.check_files(where)
        with self._context:
            description = ocp.metadata(where, checkpointable_name="state").metadata
        if description is None:
            raise ValueError("its description cannot be read")
        stored = description["state"]
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if abstract is None:
            params = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                stored["params"],
                is_leaf=lambda x: hasattr(x, "shape"),
            )
            abstract = {"params": params}
        check_fit({name: stored.get(name) for name in abstract}, abstract, where)
        memory.check_fits(
            memory.tree_bytes(abstract), f"reading {where}", "use a machine with more", devices=1
        )
        prints = {
            name: jax.ShapeDtypeStruct((len(jax.tree.leaves(tree)),), jnp.uint32, sharding=sharding)
            for name, tree in abstract.items()
        }
        with self._context:
            wanted = {"state": {"state": abstract, "fingerprint": prints}}
            loaded = ocp.load_checkpointables(where, wanted)["state"]
        now = fingerprint(loaded["state"])
        for name in abstract:
            if np.any(np.asarray(now[name]) != np.asarray(loaded["fingerprint"][name])):
                raise ValueError(f"the bits of {name} are not those that were saved")
        return loaded["state"]


def _check_readable(folder: Path) -> None:
    """Raises OSError where a file is there but cannot be read: it may be sound.

    Another process may be moving the folder away meanwhile.
    """
    with contextlib.suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    file.read(1)


def _reason(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][-200:]  # the cause comes last


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether a run has a committed checkpoint: these are named by their step alone."""
    return any(path.name.isdigit() for path in (Path(workdir) / "checkpoints").glob("*"))


def load_params(
    workdir: str | Path, abstract: Any = None, step: int = -1, best: bool = False
) -> Any:
    """The parameters of a run's newest checkpoint; touches nothing.

    Args:
      workdir: the work directory of the run, which may be going on.
      abstract: tree of `jax.ShapeDtypeStruct` that they must fit; None: what is stored.
      step: those of this step instead; -1: any.
      best: those of the best scored checkpoint instead.
    Raises:
      UserError: there is no checkpoint, or it is of another model.
    """
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", read_only=True)
    wanted, steps = None if abstract is None else {"params": abstract}, checkpoints.steps
    restored = checkpoints.restore(wanted, best=best, step=step)
    checkpoints.close()
    if restored is None and steps:
        raise UserError(f"{workdir} has no checkpoint {step}, only {', '.join(map(str, steps))}")
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    return restored[1]["params"]


def check_fit(stored: Any, wanted: Any, where: str | Path) -> None:
    """Raises a `UserError` listing the names and shapes in which two trees differ."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
        return {_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}

    have, want = shapes(stored), shapes(wanted)
    differences = [
        f"{name}: {have.get(name, 'absent')} there, {want.get(name, 'absent')} here"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise UserError(
            f"{where}: the checkpoint is of another model: {'; '.join(differences[:8])}{more}"
        )


def _name(path: tuple, between: str = "/") -> str:
    """`params/encoder/…`; the same for attributes, dictionary keys and list positions."""
    parts = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
    return between.join(map(str, parts))
