"""Opens a trained model, wherever it comes from: a run, Hugging Face, a TF1 release."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np

from bert_jax import tasks
from bert_jax.common import run_format, schemas
from bert_jax.common.errors import UserError
from bert_jax.common.files import check, read_json
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.training.checkpoint import load_params
from bert_jax.weights import hugging_face, tf1
from bert_jax.weights.store import HUB, Pretrained, check_params, some

_TUNING = ("features", "bilstm", "bilstm_width", "max_length")


def open_model(path: str | Path) -> Pretrained:
    """Opens the work directory of a run, a Hugging Face folder, or a TF1 release.

    What can be opened in the folder decides which it is (`_kind_of`).
    Of a pre-training it is the newest checkpoint, of a fine-tuning that with the best score;
    RUN/checkpoints/STEP is that of a step.

    Raises:
      UserError: it is none of these, or something in it does not fit.
    """
    path, step = Path(path).expanduser(), -1
    if path.name.isdigit() and path.parent.name == "checkpoints":
        path, step = path.parents[1], int(path.name)
    kind = _kind_of(path)
    if kind != "run":
        model = {"hf": hugging_face.read, "tf1": tf1.read}[kind](path)
        if kind == "hf" and any(path.glob("*.index")):
            model = dataclasses.replace(
                model, notes=(*model.notes, "not used: the TF1 checkpoint in the same folder")
            )
        return model
    file = path / "config.json"
    config = run_format.filled(read_json(file), file)
    check(config["model"], schemas.ModelSection, f"{file}: model")
    check(config, schemas.Tuning, str(file))
    task, row = None, path / "task.json"
    if row.exists():
        task = tasks.to_dict(tasks.from_dict(read_json(row), str(row)))
    # On the host: arrays of one device cannot be put on a mesh that other processes share.
    params = jax.tree.map(np.asarray, load_params(path, step=step, best=task is not None))
    tuning = {name: config[name] for name in _TUNING if task is not None and name in config}
    tokenizer = load_tokenizer(path / "tokenizer")
    model = Pretrained(
        config["model"], params, tokenizer, task, tuning=tuning, family=config["family"]
    )
    check_params(model, path)
    return model


def _kind_of(folder: Path) -> str:
    """Finds what a folder is to be opened as: "run", "hf" or "tf1".

    Files of several kinds may stand side by side. Those of which a config and the weights are there
    can be opened: a run goes first, then Hugging Face. Where none can be, the config that is there
    tells whose weights to ask for.

    Raises: UserError, listing what is in the folder: nothing tells what it is.
    """
    configs = [name for name in ("config.json", "bert_config.json") if (folder / name).exists()]
    if not configs:
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        has = f"it holds {some(found)}" if found else "it is no folder with files in it"
        raise UserError(
            f"{folder} is not a model: it has neither the config.json of a run or of Hugging Face "
            f"nor the bert_config.json of a TF1 release; {has} ({HUB})"
        )
    variables = any(folder.glob("*.index"))
    if configs[0] == "config.json":
        with contextlib.suppress(UserError):  # told below, if nothing else can be opened
            config = read_json(folder / "config.json")
            if "model" in config and "model_type" not in config:
                return "run"
    if any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json")):
        return "hf"
    return "tf1" if variables or configs == ["bert_config.json"] else "hf"
