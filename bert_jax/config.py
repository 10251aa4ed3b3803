"""Config files: their typed arguments, and from their fields to the objects of a run."""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from bert_jax import run_format
from bert_jax.errors import UserError
from bert_jax.models.encoder import EncoderConfig
from bert_jax.models.layers import ACTIVATIONS

# name: (layers L, width D, heads N). tiny to medium are sizes of google-research/bert's 24 small
# models, base and large the paper's.
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
_LEAST = {
    "steps": 1, "batch_size": 1, "accumulation": 1, "seq_length": 1, "short_phase.seq_length": 1,
    "short_phase.batch_size": 0, "short_phase.learning_rate": 0, "short_phase.warmup_steps": 0,
    "log_every": 1, "checkpoint_every": 1, "checkpoint_minutes": 0, "eval_instances": 1,
    "keep_checkpoints": 1, "keep_every": 0, "workers": 0, "warmup_steps": 0,
    "model.layers": 1, "model.width": 1, "model.heads": 1, "model.head_width": 0,
    "model.feed_forward": 0, "model.max_positions": 1, "model.segment_types": 1,
    "masking.max_predictions": 0, "masking.dupe_factor": 0,
    "eval_every": 0, "max_length": 4, "train_examples": 0, "reinit_layers": 0, "bilstm": 0,
    "bilstm_width": 2, "optimizer.epsilon": 0, "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
}  # fmt: skip
_POSITIVE = ("epochs", "learning_rate", "model.init_stddev", "model.norm_epsilon")
_SHARES = (
    "short_phase.share", "short_seq_prob", "masking.rate", "masking.mask_share",
    "masking.random_share", "model.hidden_dropout", "model.attention_dropout",
    "dropout", "dev_share", "optimizer.beta1", "optimizer.beta2",
)  # fmt: skip
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
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, given, text = item.partition("=")
        if name not in defaults:
            raise UserError(
                f"config argument {name!r} is unknown; known: {', '.join(defaults) or 'none'}"
            )
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


def choose(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """`known[name]`, or a `UserError` that lists what is known."""
    if name not in known:
        raise UserError(f"{what} {name!r} is unknown; known: {', '.join(known)}")
    return known[name]


def check_ranges(config: Any) -> None:
    """Checks the numbers of a pre-training or fine-tuning config, before anything is written.

    Raises: UserError, naming the first that cannot be.
    """
    flat = {
        f"{section}.{name}" if section else name: value
        for section, part in [("", config), *config.items()]
        if hasattr(part, "items")
        for name, value in part.items()
    }
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} must lie between 0 and {2**32 - 1}")
    for name, least in _LEAST.items():
        if not flat.get(name, least) >= least:  # nor nan
            raise UserError(f"{name}={flat[name]} must be at least {least}")
    for name in _POSITIVE:
        if not 0 < flat.get(name, 1) < math.inf:
            raise UserError(f"{name}={flat[name]:g} must be above 0 and finite")
    for name in filter(flat.__contains__, _SHARES):
        if not 0 <= flat[name] <= 1:
            raise UserError(f"{name}={flat[name]} must lie between 0 and 1")
        if name.endswith(("dropout", "beta1", "beta2")) and flat[name] == 1:
            raise UserError(f"{name}=1 must be below 1")
    if "masking.rate" in flat:
        _check_pretraining(config)


def _check_pretraining(config: Any) -> None:
    if config.masking.mask_share + config.masking.random_share > 1:
        raise UserError("masking.mask_share and masking.random_share are over 1 together")
    if config.nsp and (config.model.causal or not config.pairs):
        raise UserError("nsp=true needs pairs=true and model.causal=false")
    if config.pairs and config.model.segment_types < 2:
        raise UserError("pairs=true needs model.segment_types=2")
    if config.eval_every < 1:
        raise UserError(f"eval_every={config.eval_every} must be at least 1")
    longest = config.seq_length
    if config.short_phase.share:
        longest = max(longest, config.short_phase.seq_length)
    if longest > config.model.max_positions:
        raise UserError(
            f"seq_length={longest} is over model.max_positions={config.model.max_positions}"
        )


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


def _check_names(model: Mapping[str, Any]) -> None:
    """Checks that a `model` section has the fields of an encoder, neither more nor fewer.

    A model of Hugging Face or of a TF1 release, and a run that was converted from one, has not
    those of which such a config says nothing; they are then as in BERT.
    """
    known = {field.name for field in dataclasses.fields(EncoderConfig)} - {"vocab_size", "dtype"}
    if missing := known - model.keys() - {"causal", "kernels", "norm_epsilon"}:
        raise UserError(f"the model section of the config lacks {', '.join(sorted(missing))}")
    if unknown := model.keys() - known:
        raise run_format.newer("config", f"setting model.{min(unknown)}")


def encoder_config(model: Mapping[str, Any], vocab_size: int, dtype: str) -> EncoderConfig:
    """The encoder of a config's `model` section; 0 as head or feed-forward width: D/N and 4·D.

    dtype: float32, bfloat16, or auto: bfloat16 where the accelerator computes in it.
    Raises: UserError: an unknown activation or dtype, or heads that do not divide the width; a
      name that is missing in the section, or that this version does not know.
    """
    _check_names(model)
    choose("model.activation", model["activation"], ACTIVATIONS)
    if dtype == "auto":
        dtype = "bfloat16" if _computes_in_bfloat16(jax.devices()[0]) else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is unknown; known: float32, bfloat16, auto")
    width, heads = model["width"], model["heads"]
    if not model["head_width"] and width % heads:
        raise UserError(f"model.width={width} does not divide by model.heads={heads}")
    sizes = {
        "head_width": model["head_width"] or width // heads,
        "feed_forward": model["feed_forward"] or 4 * width,
    }
    return EncoderConfig(**{**model, **sizes}, vocab_size=vocab_size, dtype=dtype)
