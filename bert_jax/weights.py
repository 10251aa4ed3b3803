"""A trained model as one thing, wherever it comes from: a run, Hugging Face, a TF1 release."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.checkpoint import load_params
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Everything needed to use a model or to go on training it.

    model: the `model` section of a config. params: tree of float32 arrays with `encoder` and
    whichever of pooler, mlm_head, nsp_head, classifier, span_head, tag_head, choice_head there are.
    task: of a fine-tuned model, the row of its task (`tasks.to_dict`).
    """

    model: Mapping[str, Any]
    params: Mapping[str, Any]
    tokenizer: Tokenizer
    task: Mapping[str, Any] | None = None


def open_model(path: str | Path) -> Pretrained:
    """Opens the work directory of a run, a Hugging Face folder, or a TF1 release.

    Raises:
      UserError: it is none of these, or something in it does not fit.
    """
    path = Path(path)
    if not (path / "config.json").exists():
        raise UserError(f"{path} is not the work directory of a run (it has no config.json)")
    config = json.loads((path / "config.json").read_text())
    task = path / "task.json"
    return Pretrained(
        config["model"],
        load_params(path),
        load_tokenizer(path / "tokenizer"),
        json.loads(task.read_text(encoding="utf-8")) if task.exists() else None,
    )
