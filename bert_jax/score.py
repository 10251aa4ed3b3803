"""The official metrics of a prediction file, as JSON.

  python -m bert_jax.score --task=squad2 --gold=dev-v2.0.json --predictions=predictions.json

Prediction files are those that fine-tuning writes, or the official scorers read.
"""

import json
from pathlib import Path

from bert_jax import tasks
from bert_jax.common import entry, errors
from bert_jax.common.files import plain, read_json
from bert_jax.common.flag_parsing import path_flag
from bert_jax.tasks.base import Source

_TASK = path_flag("task", "A task's name, or the task.json of a fine-tuned model.")
_GOLD = path_flag("gold", "The official file with the right answers.")
_PREDICTIONS = path_flag("predictions", "The file with the predictions.")


def main() -> None:
    if not (_TASK.value and _GOLD.value and _PREDICTIONS.value):
        raise errors.UserError("--task=NAME, --gold=FILE and --predictions=FILE are needed")
    if _TASK.value.endswith(".json"):
        task = tasks.from_dict(read_json(Path(_TASK.value)), _TASK.value)
    else:
        task = tasks.get_task(_TASK.value)
    examples = task.read(Source(files={"dev": _GOLD.value}), "dev")
    path = Path(_PREDICTIONS.value)
    if not path.is_file():
        raise errors.UserError(f"--predictions={path} does not exist")
    predictions = task.read_predictions(path, examples or [])
    print(json.dumps(plain(task.score(examples or [], predictions)), indent=2))


if __name__ == "__main__":
    entry.run(main)
