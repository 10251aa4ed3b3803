"""Metrics on their way to people: JSON lines, TensorBoard, and the speed of a run."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax.common import schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import json_line, read_json_lines, write_json_lines
from bert_jax.objectives.base import Mean, Metric
from bert_jax.training import distributed
from bert_jax.training.events import Events

# Peak dense bf16 FLOP/s of a device, by a part of its `device_kind`, the first that
# fits; the published figures.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,  # a core
    "TPU v3": 61.5e12,  # a core
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # a core
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device, or None where it is not known (a CPU)."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if kind in device.device_kind), None)


def values(means: Mapping[str, Mean], metrics: Sequence[Metric] = ()) -> dict[str, float]:
    """Divides means, as Python floats, and adds the perplexities that `metrics` declare."""
    result = {name: float(mean.value()) for name, mean in jax.device_get(dict(means)).items()}
    for metric in metrics:
        if metric.perplexity_of in result:
            # Capped at what a float64 holds, as a run that diverges must not end in an overflow.
            result[metric.name] = math.exp(min(result[metric.perplexity_of], 700.0))
    return result


class MetricsLog:
    """`metrics.jsonl` and TensorBoard events of a work directory, consistent after a restart.

    Of several processes, the main one writes.

    A line is {"step", "split", the metrics, "time": {...}}; everything but "time" is the same,
    to the bit, for an interrupted and an uninterrupted run.
    """

    def __init__(self, workdir: Path, step: int):
        """Continues after `step`: what a killed run wrote past that is dropped."""
        self._writes = distributed.is_main()
        if not self._writes:
            return
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        write_json_lines(self._path, kept)
        self._file = self._path.open("a")
        self._events = Events(workdir / "events", step, kept)

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], time: Mapping[str, float]
    ) -> None:
        """Appends a line, flushed, and the same numbers as events.

        Raises: OSError, with the file's name: it cannot be written.
        """
        if not self._writes:
            return
        line: dict[str, Any] = {"step": step, "split": split, **metrics, "time": dict(time)}
        try:
            self._file.write(json_line(line))
            self._file.flush()
        except OSError as error:  # a full disk: it does not say of which file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._events.write(line)

    def close(self) -> None:
        """Closes both; what could not be written has been said."""
        for file in (self._file, self._events) if self._writes else ():
            with contextlib.suppress(OSError):
                file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line cut off by a kill is left out.

    A number that was not finite, and so is null in the file, is NaN.
    """
    return [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in read_json_lines(workdir / "metrics.jsonl", schemas.MetricsLine)
    ]


def last_evaluation(workdir: Path) -> dict[str, float]:
    """The held-out metrics that a finished run logged last.

    Raises: UserError: there are none.
    """
    lines = [line for line in read_metrics(workdir) if line["split"] == "held_out"]
    if not lines:
        raise UserError(
            f"{workdir} is trained to the end, but its metrics.jsonl has no held-out metrics; "
            "bring it back, or remove the last checkpoint, to train from the one before"
        )
    return {k: v for k, v in lines[-1].items() if k not in ("step", "split", "time")}
