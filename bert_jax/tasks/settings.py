"""What the fields of configs/finetune.py may be."""

from typing import Any

from bert_jax.common.fields import Acts, Field, Settings, number, one_of, path, switch, text, whole
from bert_jax.models.body import FEATURES
from bert_jax.tasks import FAMILIES, TASKS, setting_acts
from bert_jax.training.settings import COMMON, check_warmup


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


_FINETUNE: dict[str, Field] = {
    **COMMON,
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
FINETUNE = Settings(_FINETUNE, check_warmup)
