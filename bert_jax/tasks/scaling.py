"""The scale of numbers that are learnt: each has mean 0 and standard deviation 1 in training.

A head starts near 0, and its learning rate suits outputs of about 1. Numbers such as the lengths of
texts (mean 54, standard deviation 44) are out of its reach in a fine-tuning of usual length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Scales = tuple[tuple[float, float], ...]  # of each number, its mean and its standard deviation


def scales_of(numbers: Sequence[Sequence[float]]) -> Scales:
    """Computes the mean and the standard deviation of each column of numbers [examples, C].

    Raises: ValueError, with the column: all its numbers are the same (to rounding), or so large
      that their squares are not finite.
    """
    columns = np.array(numbers, np.float64).T
    with np.errstate(over="ignore", invalid="ignore"):
        scales = [(float(np.mean(column)), float(np.std(column))) for column in columns]
    for column, (_, deviation) in enumerate(scales):
        if not 1e-12 * np.abs(columns[column]).max() < deviation < np.inf:
            raise ValueError(column)
    return tuple(scales)


def standardised(numbers: Sequence[float], scales: Scales) -> np.ndarray:
    """Turns numbers of one example into those that are learnt: float32[C]."""
    mean, deviation = _columns(scales, len(numbers))
    return ((np.asarray(numbers, np.float64) - mean) / deviation).astype(np.float32)


def restored(outputs: np.ndarray, scales: Scales) -> np.ndarray:
    """Turns outputs of the model, float32[..., C], back into numbers: float64[..., C]."""
    mean, deviation = _columns(scales, outputs.shape[-1])
    return np.asarray(outputs, np.float64) * deviation + mean


def rescaled_head(head: Mapping[str, Any], before: Scales, now: Scales) -> dict[str, Any]:
    """Changes a head {"dense": {"kernel" [D, C], "bias" [C]}} to outputs of other scales.

    The numbers that are made of the outputs stay the same, but for rounding.
    """
    kernel, bias = (np.asarray(head["dense"][name], np.float64) for name in ("kernel", "bias"))
    old_mean, old_deviation = _columns(before, len(bias))
    mean, deviation = _columns(now, len(bias))
    ratio = old_deviation / deviation
    dense = {"kernel": kernel * ratio, "bias": bias * ratio + (old_mean - mean) / deviation}
    return {"dense": {name: value.astype(np.float32) for name, value in dense.items()}}


def _columns(scales: Scales, count: int) -> np.ndarray:
    """Means and standard deviations, float64[2, C]; 0 and 1 where there are no scales."""
    return np.array(scales or ((0.0, 1.0),) * count, np.float64).T
