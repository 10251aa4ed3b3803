"""The training loop: initialise, shard, restore, step, log, evaluate, save. There is only one.

Everything random is a function of (seed, step) or of (seed, instance), and the position in the
data is the step. So the state below is all there is to save, and a run that is killed and started
again ends with the bits of one that was not.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.common import run_format
from bert_jax.common.errors import Stopped, UserError
from bert_jax.common.progress import Progress
from bert_jax.objectives.base import Batch, Mean, Metric
from bert_jax.training import distributed, goodput, optim, sharding
from bert_jax.training import metrics as metrics_lib
from bert_jax.training.checkpoint import Checkpoints, has_checkpoint
from bert_jax.training.trainer import State, Trainer

Evaluate = Callable[[Any, "Phase"], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training: steps start .. stop - 1."""

    start: int
    stop: int
    seq_length: int  # of the batches, or the most it may be
    batch_size: int  # rows, of all processes together
    flops: Callable[[Batch], float]  # of the model in one step, forward and backward, analytic
    batches: Callable[[int, int], Iterator[Mapping[str, np.ndarray]]]  # (from step, to step)
    evaluation: Callable[[], Iterable[Mapping[str, np.ndarray]]]  # the held-out set
    per_pass: Callable[[], int] | None = None  # rows of one pass over the data


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How often the loop does what, in steps."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int = 2  # the newest
    keep_every: int = 0  # steps; at multiples of it one is saved, and stays
    # Held-out metric of the last phase whose best checkpoint is kept besides, of a loss the lowest,
    # else the highest; empty: none.
    best: Metric | None = None
    checkpoint_minutes: float = 0.0  # since the last one: another, so that no more is lost; 0: none


class _SaveTimer:
    """Tells when so much time has passed since the last save, on all processes after the same step.

    The main process looks at its clock. As asking it costs a message, it also says after how many
    steps it is to be asked again: half of those that are likely to be done until then, and at most
    as many as were done, as the first steps are begun before they are computed.
    """

    def __init__(self, minutes: float, step: int):
        self._seconds = 60 * minutes or math.inf
        self._begin, self._first = time.monotonic(), step
        self._ask_at = step + 1

    def due(self, step: int, state: Any) -> bool:
        """Returns whether to save after this step, which gave `state`; to be asked after each."""
        if math.isinf(self._seconds) or step < self._ask_at:
            return False
        if jax.process_count() > 1:  # messages of a step that is in flight must not meet this one
            jax.block_until_ready(state)
        passed = time.monotonic() - self._begin
        done = step - self._first
        left = (self._seconds - passed) * done / max(passed, 1e-6)
        due, self._ask_at = distributed.from_main(
            [passed >= self._seconds, step + max(1, int(min(left / 2, done)))]
        )
        return bool(due)

    def saved(self, step: int) -> None:
        """Begins to count anew."""
        self._begin, self._first = time.monotonic(), step
        self._ask_at = step + 1


def longer(config: Any, steps: int, workdir: Path) -> str:
    """Says what it means for a run that it is to have more steps than it was begun with.

    config: learning_rate, warmup_steps, optimizer and so on. steps: as they are now.
    Returns: a line, empty where the folder has no checkpoint yet or the steps are as before.
    """
    if not has_checkpoint(workdir):
        return ""
    before = run_format.read_config(workdir).get("steps", 0)
    reached = max(Checkpoints(workdir / "checkpoints", read_only=True).steps)
    if not 0 < before < steps:
        return ""
    was, now = (float(optim.schedule(config, n)(reached)) for n in (before, steps))
    return (
        f"{workdir} was begun with {before:,} steps and goes on to {steps:,}: from step "
        f"{reached:,} the learning rate follows the schedule of {steps:,} steps "
        f"({now:.3g} there, not {was:.3g})"
    )


def run(
    trainer: Trainer,
    phases: list[Phase],
    schedule: Schedule,
    workdir: Path,
    initial_params: Any = None,
    evaluate: Evaluate | None = None,
) -> tuple[State, dict[str, float]]:
    """Trains to the end: from the newest checkpoint of `workdir`, `initial_params`, or scratch.

    evaluate: the held-out metrics of parameters; by default the objective's means.
    Returns: the final state and the final held-out metrics.
    Raises: UserError when the loss or the gradient is no longer finite; Stopped, saved, after a
      SIGTERM or Ctrl-C to any process.
    """
    ledger = goodput.Ledger()
    with ledger.spending("starting"):
        checkpoints = Checkpoints(
            workdir / "checkpoints", schedule.keep_checkpoints, schedule.keep_every
        )
        evaluate = evaluate or functools.partial(held_out_means, trainer)
        restored = checkpoints.restore(trainer.abstract_state)
        step, state = restored or (0, trainer.init(initial_params))
    mesh = ", ".join(f"{axis} {size}" for axis, size in trainer.mesh.shape.items() if size > 1)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    begins = f"continuing {workdir} from" if restored else "training from"
    distributed.say(f"{begins} step {step} on {devices}{mesh and f' ({mesh})'}")
    ledger.open(workdir, step)
    log = metrics_lib.MetricsLog(workdir, step)
    clock = _Clock()
    speaks = distributed.is_main()
    progress = Progress(schedule.steps, "step", done=step, quiet=not speaks)
    held_out: dict[str, float] = {}
    timer = _SaveTimer(schedule.checkpoint_minutes, step)
    in_flight = sharding.InFlight(2)  # a step needs the one before, so they cannot mix
    request = distributed.StopRequest()
    try:
        for phase, batch in ledger.waiting(_device_batches(trainer, phases, step)):
            with _compiling(progress) if trainer.is_new(batch) else contextlib.nullcontext():
                state, loss = trainer.step(state, batch)
            step += 1
            in_flight.add(loss)
            clock.count(batch, phase)
            progress.update()
            last = step == schedule.steps
            stops = request.reached(step) and not last
            kept = schedule.keep_every and step % schedule.keep_every == 0
            saves = last or stops or kept or step % schedule.checkpoint_every == 0
            saves = timer.due(step, state) or saves
            logs = last or step % schedule.log_every == 0
            score = None
            if logs or saves:
                _check_finite(state, phases, checkpoints)
            if logs:
                state = _log_training(trainer, state, step, log, clock, progress)
                ledger.write(step)
            if last or step % schedule.eval_every == 0:
                jax.block_until_ready(state["step"])  # else the pause swallows queued steps
                with clock.pause(), ledger.spending("evaluating"):
                    held_out = evaluate(state["params"], phase)
                if schedule.best and phase is phases[-1]:
                    score = schedule.best.score(held_out)
                log.write(step, "held_out", held_out, {"seconds": clock.paused})
                if speaks:
                    progress.say(_line(step, "held out", held_out))
            if saves:
                with ledger.spending("checkpoints"):
                    checkpoints.save(step, state, score)
                timer.saved(step)
            if stops:
                with ledger.spending("checkpoints"):
                    checkpoints.wait(read_back=False)  # little time may be left
                raise Stopped(f"stopped and saved at step {step}; the same command goes on")
        with ledger.spending("checkpoints"):
            checkpoints.wait()
    finally:
        with contextlib.suppress(OSError):  # the error that led here says more
            ledger.write(step)
        request.close()
        progress.close()
        log.close()
        checkpoints.close()
    return state, held_out or metrics_lib.last_evaluation(workdir)


@contextlib.contextmanager
def _compiling(progress: Progress) -> Iterator[None]:
    """Has the bar say that the program is being compiled, which takes longer than many steps."""
    before = progress.values
    progress.show(now="compiling")
    yield
    progress.show(**before)


def held_out_means(trainer: Trainer, params: Any, phase: Phase) -> dict[str, float]:
    """Computes the objective's metrics over the phase's held-out set."""
    batches = (trainer.put(batch, phase.batch_size) for batch in phase.evaluation())
    total: dict[str, Mean] = {}
    for means in sharding.ahead(trainer.evaluate_batch(params, batch) for batch in batches):
        # On the host: on the devices each sum would be one more computation in flight.
        found = jax.device_get(means)
        total = {n: total[n] + mean for n, mean in found.items()} if total else found
    return metrics_lib.values(total, trainer.objective.metrics)


def _device_batches(
    trainer: Trainer, phases: list[Phase], step: int
) -> Iterator[tuple[Phase, Batch]]:
    """Batches from `step` on, with the next one on the devices."""
    for phase in phases:
        if step < phase.stop:
            rows = phase.batches(max(step, phase.start), phase.stop)
            batches = (trainer.put(batch, phase.batch_size) for batch in rows)
            yield from ((phase, batch) for batch in sharding.ahead(batches, most=1))


def _check_finite(state: State, phases: list[Phase], checkpoints: Checkpoints) -> None:
    bad = int(state["bad_step"])
    if bad < 0:
        return
    phase = next(p for p in phases if p.start <= bad < p.stop)
    batch = next(iter(phase.batches(bad, bad + 1)))
    instances = [tuple(map(int, i)) for i in batch.get("instance", ())]
    which = f"; instances (pass, index) of that step: {instances}" if instances else ""
    checkpoints.wait()
    kept = checkpoints.steps[-1] if checkpoints.steps else "none"
    raise UserError(
        f"the loss or its gradient was not finite at step {bad} (last good checkpoint: {kept}); "
        f"lower learning_rate or lengthen warmup_steps{which}"
    )


def _log_training(
    trainer: Trainer, state: State, step: int, log: metrics_lib.MetricsLog, clock: "_Clock",
    progress: Progress,
) -> State:  # fmt: skip
    """Writes the means since the last log, and returns the state with an empty window."""
    values = metrics_lib.values(state["window"], trainer.objective.metrics)
    values["learning_rate"] = float(trainer.learning_rate(step - 1))
    speed = clock.lap()
    log.write(step, "train", values, speed)
    shown = {
        "loss": f"{values['loss']:.3f}",
        "rate": f"{values['learning_rate']:.2g}",
        "tok/s": f"{speed['tokens_per_second']:,.0f}",
    }
    if "mfu" in speed:
        shown["mfu"] = f"{speed['mfu']:.1%}"
    progress.show(**shown)
    return state | {"window": trainer.empty_window()}


def _line(step: int, title: str, values: Mapping[str, float]) -> str:
    shown = itertools.islice(values.items(), 6)
    return f"step {step} {title}: " + "  ".join(f"{name} {value:.4f}" for name, value in shown)


class _Clock:
    """Speed since the last lap, without the time spent in evaluations."""

    def __init__(self) -> None:
        self._start, self._tokens, self._flops, self._steps = time.perf_counter(), 0, 0.0, 0
        self.paused = 0.0  # seconds of the last pause
        peaks = [metrics_lib.peak_flops(device) for device in jax.devices()]
        self._peak = sum(peak for peak in peaks if peak)

    def count(self, batch: Batch, phase: Phase) -> None:
        self._tokens += batch["tokens"].size
        self._flops += phase.flops(batch)
        self._steps += 1

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside it out of the lap."""
        begin = time.perf_counter()
        yield
        self.paused = time.perf_counter() - begin
        self._start += self.paused

    def lap(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        speed = {
            "seconds": seconds,
            "steps_per_second": self._steps / seconds,
            "tokens_per_second": self._tokens / seconds,
        }
        if self._peak:
            speed["mfu"] = self._flops / seconds / self._peak
        self._start, self._tokens, self._flops, self._steps = time.perf_counter(), 0, 0.0, 0
        return speed
