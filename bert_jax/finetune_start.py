"""What a fine-tuning starts from: the model of `init_from`, with a new head where it needs one."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import distributed, errors, tasks, train, weights
from bert_jax.tasks.base import Task

HEADS = {"classifier", "span_head", "tag_head", "choice_head"}


def open_initial(config: Any) -> weights.Pretrained:
    """The model to start from, with the config's dropout and new tokens.

    Raises: UserError: there is none.
    """
    if not config.init_from:
        raise errors.UserError(
            "--config.init_from=FOLDER is needed: a pre-trained model (with "
            "--config.from_scratch=true only its sizes and vocabulary are used)"
        )
    model = weights.open_model(config.init_from)
    if config.add_tokens:
        tokens = weights.read_tokens(Path(config.add_tokens))
        model = weights.add_tokens(model, tokens, config.seed)
    for note in model.notes:
        distributed.say(note)
    rates = {"hidden_dropout": config.dropout, "attention_dropout": config.dropout}
    remat = config.remat or model.model.get("remat", False)
    return dataclasses.replace(model, model={**model.model, **rates, "remat": remat})


def initial_params(
    config: Any, model: weights.Pretrained, task: Task, trainer: train.Trainer
) -> Any:
    """The parameters to start from, on the mesh; says what of them is new."""
    fresh = trainer.init()["params"]
    if config.from_scratch:
        distributed.say("from scratch: all parameters are new, from random")
        return fresh
    given = dict(model.params)
    if not same_labels(model.task, task):  # the head of another task
        for head in HEADS & given.keys():
            del given[head]
    if _reads_others(fresh, given):
        del given["pooler"]
    params, new, unused = weights.merge(fresh, given, config.init_from)
    layers = model.model["layers"]
    for layer in range(layers - config.reinit_layers, layers):
        params["encoder"][f"layer_{layer}"] = fresh["encoder"][f"layer_{layer}"]
        new = [*new, f"encoder/layer_{layer}"]
    if config.reinit_layers and "pooler" in params and "pooler" not in new:
        params["pooler"], new = fresh["pooler"], [*new, "pooler"]
    distributed.say(
        f"from {config.init_from}; new, from random: {', '.join(new) or 'nothing'}; "
        f"not used: {', '.join(unused) or 'nothing'}"
    )
    shardings = jax.tree.map(lambda x: x.sharding, trainer.abstract_state["params"])
    return jax.device_put(params, shardings)


def _reads_others(fresh: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the given pooler is of other vectors than the new one: not of a BiLSTM's, say."""
    if "pooler" not in fresh or "pooler" not in given:
        return False
    shapes = [jax.tree.map(np.shape, tree["pooler"]) for tree in (fresh, given)]
    return "bilstm" in fresh.keys() - given.keys() or shapes[0] != shapes[1]


def same_labels(before: Mapping[str, Any] | None, task: Task) -> bool:
    # As JSON, so that lists and tuples are the same.
    before, now = json.loads(json.dumps([before, tasks.to_dict(task)]))
    names = ["family", "labels", "kind"]
    if now.get("kind") == "numbers":
        names.append("label")  # the columns are what the outputs mean
    return before is not None and all(before.get(name) == now.get(name) for name in names)
