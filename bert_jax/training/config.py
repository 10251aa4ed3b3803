"""Config files: their typed arguments, and from their fields to the objects of a run."""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bert_jax.common.errors import UserError, did_you_mean

_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """Parses ARG of `--config=FILE:ARG`, as in `configs/pretrain.py:size=base,seq=128`.

    Args:
      arg: comma-separated `name=value`; a bare `name` sets a boolean to true.
      **defaults: every argument the config knows. A value is converted to its default's type.

    Returns: the arguments as attributes.
    Raises:
      UserError: an unknown name, or a value that is not of the default's type.
    """
    values, seen = dict(defaults), ""
    for item in filter(None, map(str.strip, (arg or "").split(","))):
        name, given, text = item.partition("=")
        if name not in defaults:
            raise UserError(_unknown_argument(item, seen, list(defaults)))
        if f",{name}=" in f",{seen}":
            raise UserError(f"config argument {name!r} is given twice")
        seen += item + ("," if given else "=,")
        kind = type(defaults[name])
        try:
            if kind is bool:
                values[name] = _BOOLS[text.lower()] if given else True
            else:
                if not given:
                    raise ValueError
                values[name] = kind(text)
        except (KeyError, ValueError):
            raise UserError(
                f"config argument {item!r}: {name} takes a value of type {kind.__name__}"
            ) from None
    return types.SimpleNamespace(**values)


def _unknown_argument(item: str, before: str, known: Sequence[str]) -> str:
    """What is wrong with an argument that no config has. before: the arguments before it."""
    name, given, _ = item.partition("=")
    line = f"config argument {name!r} is unknown; known: {', '.join(known) or 'none'}"
    last = before.strip(",").rpartition(",")[2]
    if last and not given:
        joined = f", several tasks are joined by +: {last}+{item}" if "tasks" in last else ""
        return f"{line} (a comma ends the argument before it, {last!r}{joined})"
    return line + did_you_mean(name, known)


def choose(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """`known[name]`, or a `UserError` that lists what is known."""
    if name not in known:
        raise UserError(f"{what} {name!r} is unknown; known: {', '.join(known)}")
    return known[name]


class Stretch(NamedTuple):
    """Steps start .. stop - 1 of a pre-training run."""

    start: int
    stop: int
    seq_length: int
    batch_size: int


def stretches(config: Any) -> list[Stretch]:
    """One phase, or a short one and a long one (paper, A.2)."""
    short = config.short_phase
    switch = round(config.steps * short.share)
    plan = [
        Stretch(0, switch, short.seq_length, short.batch_size or config.batch_size),
        Stretch(switch, config.steps, config.seq_length, config.batch_size),
    ]
    return [part for part in plan if part.start < part.stop]


def _computes_in_bfloat16(device: Any) -> bool:
    """Whether the device has units for it: all but CPUs and NVIDIA's before Ampere (8.0)."""
    nvidia = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return device.platform != "cpu" and (nvidia is None or int(nvidia[1]) >= 8)


def compute_dtype(dtype: str) -> str:
    """Decides what is computed in: "auto" is bfloat16 where the accelerator computes in it.

    Raises: UserError: an unknown dtype.
    """
    if dtype == "auto":
        return "bfloat16" if _computes_in_bfloat16(jax.devices()[0]) else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is unknown; known: float32, bfloat16, auto")
    return dtype
