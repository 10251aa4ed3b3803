"""The rows of all fields of all configs: what each may be, and when it has an effect.

They stand here and not in `configs/`, because a run must be able to check a config without
importing the file that made it. A test asserts that every field of every config has its row.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.fields import Acts, Field, number, one_of, path, switch, text, whole
from bert_jax.common.flag_parsing import from_home
from bert_jax.data.records import RECORDS
from bert_jax.experiments.grid import GRIDS
from bert_jax.experiments.paper import SIZES as SCALES
from bert_jax.experiments.paper import TASKS as TABLES
from bert_jax.models.body import FEATURES
from bert_jax.models.layers import ACTIVATIONS
from bert_jax.preparing.text import KINDS
from bert_jax.tasks import FAMILIES, TASKS, setting_acts

# When a field has an effect


def _masks(config: Any) -> str:
    return (
        "with model.causal=true (objective=ltr): nothing is masked" if config.model.causal else ""
    )


def _pairs(config: Any) -> str:
    return "" if config.pairs else "with pairs=false: text is contiguous"


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


def _has_layers(config: Any) -> str:
    return "with model.layers=1" if config.model.layers == 1 else ""


def _begins_anew(config: Any) -> str:
    return "with init_from, whose parameters the run takes" if config.init_from else ""


def _keeps_weights(config: Any) -> str:
    return "with from_scratch=true: all layers are new" if config.from_scratch else ""


def _trains_encoder(config: Any) -> str:
    return f"with features={config.features}: the encoder is frozen" if config.features else ""


def _has_bilstm(config: Any) -> str:
    return "" if config.bilstm else "without a BiLSTM (bilstm=2)"


def _holds_out(config: Any) -> str:
    return "with a dev file of its own" if config.dev else ""


def _reads(split: str) -> Acts:
    def acts(config: Any) -> str:
        known = config.task != "custom" and config.task in TASKS
        lacks = known and split not in TASKS[config.task].splits
        return f"on task={config.task}, which has no {split} split" if lacks else ""

    return acts


def _custom(setting: str) -> Acts:
    return lambda config: setting_acts(config.task, config.custom.family, setting)


def _separates(config: Any) -> str:
    return "" if config.custom.kind == "multi" else "without custom.kind=multi"


def _trains_vocabulary(config: Any) -> str:
    return "with vocab, which is taken as it is" if config.vocab else ""


def _reads_kind(*kinds: str) -> Acts:
    def acts(config: Any) -> str:
        parts = [part.strip().split(":")[0] for part in config.input.split(",")]
        found = {config.source, *parts}.intersection(kinds)
        return "" if found else f"on source={config.source}: it is for {', '.join(kinds)}"

    return acts


# The rows

_MESH = {f"mesh.{axis}": whole(-1) for axis in ("data", "fsdp", "tensor")}
_OPTIMIZER = {
    "learning_rate": number(above=0),
    "warmup_steps": number(least=0),
    "optimizer.name": one_of("adamw", "lamb"),
    "optimizer.beta1": number(least=0, below=1),
    "optimizer.beta2": number(least=0, below=1),
    "optimizer.epsilon": number(above=0),
    "optimizer.weight_decay": number(least=0),
    "optimizer.clip_norm": number(least=0),
    "optimizer.bias_correction": switch(),
    "optimizer.decay_all": switch(_decays),
    "optimizer.decay_from": one_of("start", "warmup", acts=_warms_up),
}
_COMMON = {
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
PRETRAIN: dict[str, Field] = {
    **_COMMON,
    "corpus": path(),
    "steps": whole(1),
    "seq_length": whole(1),
    "short_phase.seq_length": whole(1, acts=_has_short_phase),
    "short_phase.share": number(least=0, below=1),
    "short_phase.batch_size": whole(0, 10**7, acts=_has_short_phase),
    "short_phase.learning_rate": number(least=0, acts=_has_short_phase),
    "short_phase.warmup_steps": number(least=0, acts=(_has_short_phase, _has_short_schedule)),
    "nsp": switch(),
    "pairs": switch(),
    "nsp_exact_half": switch(_pairs),
    "short_seq_prob": number(least=0, most=1, acts=_pairs),
    "masking.rate": number(above=0, most=1, acts=_masks),
    "masking.mask_share": number(least=0, most=1, acts=_masks),
    "masking.random_share": number(least=0, most=1, acts=_masks),
    "masking.whole_word": switch(_masks),
    "masking.max_predictions": whole(0, acts=_masks),
    "masking.dupe_factor": whole(0),
    "model.layers": whole(1, 1_000),
    "model.width": whole(1),
    "model.heads": whole(1),
    "model.head_width": whole(0),
    "model.feed_forward": whole(0),
    "model.max_positions": whole(1),
    "model.segment_types": whole(1),
    "model.activation": one_of(*ACTIVATIONS),
    "model.norm_epsilon": number(above=0),
    "model.init_stddev": number(above=0, acts=_begins_anew),
    "model.causal": switch(),
    "model.hidden_dropout": number(least=0, below=1),
    "model.attention_dropout": number(least=0, below=1),
    "model.scan_layers": switch(_has_layers),
    "model.remat": switch(),
    "model.kernels": switch(),
    "workers": whole(0, 1_000),
    "log_instances": switch(),
    "eval_every": whole(1, cadence=True),
    "eval_instances": whole(1),
    "checkpoint_every": whole(1, cadence=True),
    "keep_every": whole(0, cadence=True),
}
FINETUNE: dict[str, Field] = {
    **_COMMON,
    "task": one_of(*TASKS, "custom", argument="configs/finetune.py:task=..."),
    "mode": one_of("train", "eval", "predict"),
    "from_scratch": switch(),
    "data": path(),
    "train": path(_reads("train")),
    "dev": path(_reads("dev")),
    "test": path(_reads("test")),
    "dev_share": number(least=0, below=1, acts=_holds_out),
    "train_examples": whole(0),
    **{
        f"custom.{name}": text(_custom(name))
        for name in ("text", "pair", "label", "prompt", "endings", "labels")
    },
    "custom.family": one_of(*FAMILIES, argument="configs/finetune.py:task=custom,family=..."),
    "custom.kind": one_of("single", "multi", "numbers", acts=_custom("kind")),
    "custom.separator": text((_custom("separator"), _separates)),
    "custom.unanswerable": switch(_custom("unanswerable")),
    "custom.joined": switch(_custom("joined")),
    "custom.document_context": switch(_custom("document_context")),
    "add_tokens": path(),
    "max_length": whole(4),
    "epochs": number(above=0),
    "dropout": number(least=0, below=1),
    "reinit_layers": whole(0, acts=_keeps_weights),
    "features": one_of("", *FEATURES),
    "bilstm": whole(0, 100),
    "bilstm_width": whole(2, acts=_has_bilstm),
    "remat": switch(_trains_encoder),
    "eval_every": whole(0, cadence=True),
}
PREPARE: dict[str, Field] = {
    "source": one_of("pydocs", "tfds", *KINDS),
    "input": Field("patterns"),
    "text_feature": text(_reads_kind("tfds", *RECORDS)),
    "vocab": path(),
    "vocab_size": whole(1, acts=_trains_vocabulary),
    "vocab_kind": one_of("wordpiece", "unigram", acts=_trains_vocabulary),
    "vocab_sample_mb": whole(1, acts=_trains_vocabulary),
    "lowercase": switch(),
    "split_sentences": switch(),
    "on_error": one_of("stop", "skip", acts=_reads_kind(*KINDS)),
    "held_out_input": Field("patterns"),
    "held_out": number(above=0, below=1),
    "workers": whole(0, 1_000),
}
_REPRODUCE: dict[str, Field] = {
    "table": one_of(*TABLES, argument="configs/reproduce.py:table=..."),
    "scale": one_of(*SCALES, argument="configs/reproduce.py:scale=..."),
    "grid": one_of(*GRIDS),
    "seeds": whole(1, 1_000),
    "checkpoint": path(),
    "glue": path(),
}


def fields_of(config: Any) -> dict[str, Field]:
    """The rows of a config's fields by dotted name, of a whole table those of all its parts."""
    if "masking" in config:
        return PRETRAIN
    if "custom" in config:
        return FINETUNE
    if "source" in config:
        return PREPARE
    rows = dict(_REPRODUCE)
    rows.update({f"pretraining.{name}": field for name, field in PRETRAIN.items()})
    for task in config.finetuning:
        rows.update({f"finetuning.{task}.{name}": field for name, field in FINETUNE.items()})
    return rows


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a config with their values, by dotted name."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def expand_paths(config: Any) -> None:
    """Replaces `~` at the beginning of every path in a config by the home folder."""
    rows = fields_of(config)
    for name, value in flat(config):
        if value and name in rows and rows[name].kind == "path":
            *sections, last = name.split(".")
            section = config
            for part in sections:
                section = section[part]
            section[last] = from_home(value)


def check_values(config: Any) -> None:
    """Raises UserError, naming the field: a value that it cannot have."""
    rows = fields_of(config)
    for name, value in flat(config):
        if name in rows and (wrong := rows[name].wrong(name, value)):
            raise UserError(wrong)


def check_effects(configs: Sequence[Any], chosen: Collection[str]) -> None:
    """Checks that what the user chose changes something.

    configs: of one kind; it is enough that a field has an effect in one of them.
    chosen: names of fields that the user set to another value than the config file has.
    Raises: UserError, naming the field and why it has no effect.
    """
    for name in chosen:
        field = fields_of(configs[0]).get(name)
        if field is None:
            continue
        if field.argument:
            raise UserError(f"{name} is given after the colon: --config={field.argument}")
        reasons = [_why_not(field, config) for config in configs]
        if all(reasons):
            raise UserError(f"{name} has no effect {reasons[0]}; leave it out")


def _why_not(field: Field, config: Any) -> str:
    return next(filter(None, (why(config) for why in field.acts)), "")


def never_reached(config: Any, steps: int, chosen: Collection[str]) -> list[str]:
    """A line for each chosen number of steps that a run of so many never reaches."""
    rows = fields_of(config)
    lines = [
        f"note: {name}={config[name]} is over the {steps:,} steps of this run: only its end counts"
        for name in chosen
        if name in rows and rows[name].cadence and config[name] > steps
    ]
    if "warmup_steps" in chosen and config.warmup_steps >= steps > 1:
        lines.append(
            f"note: warmup_steps={config.warmup_steps:g} of {steps:,} steps: the learning rate "
            "never comes to its peak"
        )
    return lines
