"""Texts of mixed lengths to vectors or to labels, beside PyTorch's, in one run.

  pip install -r benchmarks/requirements.txt
  python -m benchmarks.inference --size=mini --vocab=vocab.txt --texts=FILE --task=embed

From strings to numbers, tokenising included. Both load one fresh model from one folder of
`transformers`, and take lines of FILE cut at 512 tokens. embed: the mean of the last layer
over a text's tokens. classify: one of two labels. Ours is `bert_jax.load`; PyTorch sorts the texts
by length and pads each batch to its longest, as sentence-transformers does; both compute 32 texts
at a time. What they find is compared as well. A table, and one JSON line.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.contest import Result, Turn, as_json, contest, show
from benchmarks.fresh_model import write_model
from bert_jax.common import entry, errors
from bert_jax.common.flag_parsing import path_flag
from bert_jax.inference import loading
from bert_jax.training import memory

_SIZE = flags.DEFINE_string("size", "base", "Size of the models, as in configs/pretrain.py.")
_VOCAB = path_flag("vocab", "vocab.txt of a WordPiece tokenizer.", required=True)
_TEXTS = path_flag("texts", "File of texts, one a line.", required=True)
_COUNT = flags.DEFINE_integer("count", 1000, "Texts taken, from all over the file.", lower_bound=1)
_TASK = flags.DEFINE_enum("task", "embed", ["embed", "classify"], "What is made of a text.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Precisions.")

BATCH_SIZE, LONGEST = 32, 512  # as `embed` and `classify` of a model of 512 positions have them


@dataclasses.dataclass(frozen=True)
class Job:
    """A folder of `transformers`, and what is to be made of which texts."""

    folder: str
    texts: tuple[str, ...]
    task: str
    dtype: str


def ours(job: Job) -> Turn:
    """`bert_jax.load`, in a process like that of bert_jax.features."""
    memory.keep_freed_memory()
    model = loading.load(job.folder, job.dtype)
    if job.task == "embed":
        return lambda times: [model.embed(job.texts) for _ in range(times)][-1]

    def classify() -> np.ndarray:
        return np.array([label.probabilities["1"] for label in model.classify(job.texts)])

    return lambda times: [classify() for _ in range(times)][-1]


def pytorch(job: Job) -> Turn:
    """`transformers`, batches of similar length."""
    import torch
    import transformers

    from benchmarks import torch_peer as peer

    kinds = {
        "embed": transformers.BertModel,
        "classify": transformers.BertForSequenceClassification,
    }
    model = kinds[job.task].from_pretrained(job.folder, attn_implementation="sdpa")
    model = model.to(peer.DEVICE).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.folder)

    def once() -> np.ndarray:
        ids = tokenizer(list(job.texts), truncation=True, max_length=LONGEST)["input_ids"]
        order = np.argsort([-len(one) for one in ids], kind="stable")
        found: list = [None] * len(ids)
        with torch.inference_mode(), peer.precision(job.dtype):
            for begin in range(0, len(order), BATCH_SIZE):
                rows = order[begin : begin + BATCH_SIZE]
                batch = tokenizer.pad(
                    {"input_ids": [ids[row] for row in rows]}, return_tensors="pt"
                )
                batch = batch.to(peer.DEVICE)
                output = model(**batch)
                if job.task == "embed":
                    mask = batch["attention_mask"][..., None]
                    hidden = output.last_hidden_state.float() * mask
                    values = hidden.sum(1) / mask.sum(1)
                else:
                    values = output.logits.float().softmax(-1)[:, 1]
                for row, value in zip(rows, values.cpu().numpy(), strict=True):
                    found[row] = value
        return np.stack(found)

    return lambda times: [once() for _ in range(times)][-1]


def take(file: str, count: int) -> tuple[str, ...]:
    """So many lines from all over the file.

    Raises: UserError: it has none.
    """
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise errors.UserError(f"{file} has no text")
    places = np.linspace(0, len(lines) - 1, min(count, len(lines))).astype(int)
    return tuple(lines[place] for place in places)


def main() -> None:
    """Measures all contenders."""
    texts = take(_TEXTS.value, _COUNT.value)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        write_model(model, _SIZE.value, _VOCAB.value, _TASK.value)
        contenders = {}
        for dtype in _DTYPES.value:
            job = Job(str(model), texts, _TASK.value, dtype)
            contenders[f"ours, {dtype}"] = functools.partial(ours, job)
            contenders[f"PyTorch, {dtype}"] = functools.partial(pytorch, job)
        results = contest(contenders)
    expected = next(iter(results.values())).value

    def difference(result: Result) -> str:
        return f"{np.abs(result.value - expected).max():.1e}"

    rate = {"texts/s": lambda r: f"{len(texts) / r.seconds:,.1f}", "largest difference": difference}
    show(results, rate)
    print(as_json("inference", results, texts=len(texts)))


if __name__ == "__main__":
    entry.run(main)
