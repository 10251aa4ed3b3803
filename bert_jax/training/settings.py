"""What the fields of configs/pretrain.py may be that every family has; and of fine-tuning some."""

from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.fields import Field, Settings, number, one_of, path, switch, whole
from bert_jax.training.optim import DECAYS, OPTIMIZERS


def _has_short_phase(config: Any) -> str:
    if not config.short_phase.share:
        return "without a short phase (phases=true, or short_phase.share)"
    if not round(config.steps * config.short_phase.share):
        return f"as short_phase.share={config.short_phase.share:g} of steps={config.steps} is none"
    return ""


def _has_short_schedule(config: Any) -> str:
    return "" if config.short_phase.learning_rate else "without short_phase.learning_rate"


def _decays(config: Any) -> str:
    return "" if config.optimizer.weight_decay else "with optimizer.weight_decay=0"


def _warms_up(config: Any) -> str:
    warmups = [config.warmup_steps]
    if "short_phase" in config:
        warmups.append(config.short_phase.warmup_steps)
    return "" if any(warmups) else "with warmup_steps=0"


_MESH = {f"mesh.{axis}": whole(-1) for axis in ("data", "fsdp", "tensor")}
_OPTIMIZER = {
    "learning_rate": number(above=0),
    "warmup_steps": number(least=0),
    "optimizer.name": one_of(*OPTIMIZERS),
    "optimizer.beta1": number(least=0, below=1),
    "optimizer.beta2": number(least=0, below=1),
    "optimizer.epsilon": number(above=0),
    "optimizer.weight_decay": number(least=0),
    "optimizer.clip_norm": number(least=0),
    "optimizer.bias_correction": switch(),
    "optimizer.decay_all": switch(_decays),
    "optimizer.decay_from": one_of(*DECAYS, acts=_warms_up),
}
COMMON = {
    "init_from": path(),
    "seed": whole(0, 2**32 - 1),
    "batch_size": whole(1, 10**7),
    "accumulation": whole(1),
    **_OPTIMIZER,
    "dtype": one_of("auto", "float32", "bfloat16"),
    "log_every": whole(1, cadence=True),
    "checkpoint_minutes": number(least=0),
    "keep_checkpoints": whole(1),
    **_MESH,
}
_PRETRAIN: dict[str, Field] = {
    **COMMON,
    "corpus": path(),
    "steps": whole(1),
    "seq_length": whole(1),
    "short_phase.seq_length": whole(1, acts=_has_short_phase),
    "short_phase.share": number(least=0, below=1),
    "short_phase.batch_size": whole(0, 10**7, acts=_has_short_phase),
    "short_phase.learning_rate": number(least=0, acts=_has_short_phase),
    "short_phase.warmup_steps": number(least=0, acts=(_has_short_phase, _has_short_schedule)),
    "workers": whole(0, 1_000),
    "log_instances": switch(),
    "eval_every": whole(1, cadence=True),
    "eval_instances": whole(1),
    "checkpoint_every": whole(1, cadence=True),
    "keep_every": whole(0, cadence=True),
}


def check_warmup(config: Any) -> None:
    """Raises UserError: the warm-up is neither a share of the steps nor a whole number of them."""
    if config.warmup_steps > 1 and config.warmup_steps % 1:
        raise UserError(
            f"warmup_steps={config.warmup_steps:g} is a number of steps from 1 on, so whole; below "
            "1 it is a share of them"
        )


def check_pretraining(config: Any) -> None:
    """Raises UserError: what any pre-training has does not go together."""
    check_warmup(config)
    longest = config.seq_length
    if config.short_phase.share:
        longest = max(longest, config.short_phase.seq_length)
    if longest > config.model.max_positions:
        raise UserError(
            f"seq_length={longest} is over model.max_positions={config.model.max_positions}"
        )


PRETRAIN = Settings(_PRETRAIN, check_pretraining)
