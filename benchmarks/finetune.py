"""An epoch of fine-tuning, bucketed by length, beside PyTorch with dynamic padding, in one run.

  pip install -r benchmarks/requirements.txt
  python -m benchmarks.finetune --task=mrpc --data=glue_data/MRPC --size=mini --vocab=vocab.txt

Both train one fresh model (dropout 0.1, AdamW, clipping) on the same features, which are made
beforehand: forward, backward, update, batching and padding are measured; evaluation and compiling
are not, but for the first turn. PyTorch shuffles and pads each batch to its longest. Tasks with one
label of a text or pair, and answering (squad1, squad2). A table, and one JSON line, with the tokens
that each computes on.
"""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.contest import Result, Turn, as_json, contest, show
from benchmarks.fresh_model import write_model
from bert_jax import finetune
from bert_jax.common import entry
from bert_jax.common.flag_parsing import path_flag
from bert_jax.models.body import Body
from bert_jax.training import memory, sharding
from bert_jax.training.trainer import build_trainer
from configs import finetune as configs

_TASK = flags.DEFINE_string("task", "mrpc", "Task, as in configs/finetune.py.")
_DATA = path_flag("data", "Its folder, or tfds:NAME.", required=True)
_SIZE = flags.DEFINE_string("size", "base", "Size of the models, as in configs/pretrain.py.")
_VOCAB = path_flag("vocab", "vocab.txt of a WordPiece tokenizer.", required=True)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Tokens of a text; 0: the task's.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows of a step.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Of the training set; 0: all.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Precisions.")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained on what."""

    task: str
    data: str
    model: str
    size: str
    max_length: int
    batch_size: int
    examples: int
    dtype: str

    def config(self) -> Any:
        config = configs.get_config(f"task={self.task}")
        config.data, config.init_from, config.dtype = self.data, self.model, self.dtype
        config.max_length = self.max_length or config.max_length
        config.batch_size, config.epochs = self.batch_size, 1.0
        config.train_examples = self.examples
        return config


def ours(job: Job) -> Turn:
    """The trainer's own step on the batches of `finetune`, in a process like its own."""
    memory.keep_freed_memory()
    config = job.config()
    made = finetune.read_inputs(config)
    phase, mesh = made.phase, sharding.make_mesh(config.mesh)
    objective = made.task.objective(Body(made.backbone))
    trainer = build_trainer(config, mesh, phase.stop, objective, next(phase.batches(0, 1)))
    state = trainer.init()

    def turn(times: int) -> int:
        nonlocal state
        tokens = 0
        for batch in itertools.chain(*(phase.batches(0, phase.stop) for _ in range(times))):
            state, loss = trainer.step(state, trainer.put(batch, job.batch_size))
            tokens += batch["tokens"].size
        jax.block_until_ready((state, loss))
        return tokens

    return turn


def pytorch(job: Job) -> Turn:
    """`transformers`, shuffled, each batch padded to its longest."""
    import torch

    from benchmarks import torch_peer as peer

    config = job.config()
    made = finetune.read_inputs(config)
    train_features = [feature.arrays for feature in made.features["train"]]
    answers = "start" in train_features[0]
    kind = "BertForQuestionAnswering" if answers else "BertForSequenceClassification"
    labels = {} if answers else {"num_labels": made.task.objective(Body(made.backbone)).classes}
    model = peer.build(kind, job.size, **labels)
    optimizer = peer.adamw(model, config.learning_rate)
    draw = np.random.default_rng(0)
    names = {"label": "labels", "start": "start_positions", "end": "end_positions"}

    def batch_of(rows: Sequence[int]) -> dict[str, Any]:
        features = [train_features[row] for row in rows]
        width = max(len(feature["tokens"]) for feature in features)
        padded = {
            "input_ids": np.full((len(rows), width), made.model.tokenizer.pad_id),
            "token_type_ids": np.zeros((len(rows), width), np.int64),
            "attention_mask": np.zeros((len(rows), width), np.int64),
        }
        for row, feature in enumerate(features):
            length = len(feature["tokens"])
            padded["input_ids"][row, :length] = feature["tokens"]
            padded["token_type_ids"][row, :length] = feature["segments"]
            padded["attention_mask"][row, :length] = 1
        for name in names.keys() & features[0].keys():
            padded[names[name]] = np.array([feature[name] for feature in features], np.int64)
        return {name: torch.from_numpy(x).to(peer.DEVICE) for name, x in padded.items()}

    def epoch() -> int:
        order, tokens = draw.permutation(len(train_features)), 0
        for step in range(made.phase.stop):
            batch = batch_of(order[step * job.batch_size : (step + 1) * job.batch_size])
            tokens += batch["input_ids"].numel()
            with peer.precision(job.dtype):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peer.wait()
        return tokens

    return lambda times: sum(epoch() for _ in range(times))


def main() -> None:
    """Measures all contenders."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        write_model(model, _SIZE.value, _VOCAB.value, "embed")
        job = Job(
            _TASK.value, _DATA.value, str(model), _SIZE.value, _MAX_LENGTH.value,
            _BATCH_SIZE.value, _EXAMPLES.value, "",
        )  # fmt: skip
        contenders = {}
        for dtype in _DTYPES.value:
            one = dataclasses.replace(job, dtype=dtype)
            contenders[f"ours, {dtype}"] = functools.partial(ours, one)
            contenders[f"PyTorch, {dtype}"] = functools.partial(pytorch, one)
        results = contest(contenders, uncounted=0)  # of an epoch's steps one is slow

    def tokens(result: Result) -> str:
        return f"{result.value:,}"

    show(results, {"tokens computed": tokens})
    computed = {name: result.value for name, result in results.items()}
    print(as_json("finetune", results, tokens_computed=computed))


if __name__ == "__main__":
    entry.run(main)
