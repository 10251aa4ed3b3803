"""A model that has learnt nothing, in the form that both contenders read."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.objectives.finetuning import Classify
from bert_jax.tasks import get_task, to_dict
from bert_jax.weights import hugging_face
from bert_jax.weights.store import Pretrained
from configs import pretrain


def write_model(folder: Path, size: str, vocab: str, task: str) -> None:
    """Writes a folder of `transformers`: for task "classify" with a head of two labels, else none.

    size: as in configs/pretrain.py. vocab: a vocab.txt.
    """
    tokenizer = load_tokenizer(vocab)
    config = pretrain.get_config(f"size={size}")
    section = config.model.to_dict()
    fitted = dataclasses.replace(get_task("sst2"), labels=("0", "1"))
    pretrained = Pretrained(section, {}, tokenizer, to_dict(fitted) if task == "classify" else None)
    body = pretrained.body("float32")
    ids = np.zeros((1, 8), np.int32)
    batch = {"tokens": ids, "segments": ids, "lengths": np.array([8], np.int32)}
    objective = Classify(body, 2)
    params = jax.device_get(nn.meta.unbox(objective.init(jax.random.key(0), batch)))
    if task == "embed":
        del params["classifier"], params["pooler"]
    hugging_face.write(folder, dataclasses.replace(pretrained, params=params))
