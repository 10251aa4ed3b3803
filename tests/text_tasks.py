"""The tasks of texts and pairs by name, a tokenizer of letters, and files of lines."""

from pathlib import Path

from bert_jax.data.tokenizer import wordpiece_tokenizer
from bert_jax.tasks import glue, korean
from bert_jax.tasks.base import Source

ROWS = {task.name: task for task in (*glue.TASKS, *korean.TASKS)}
WORDS = [*"abcdefg", "좋", "##은", "영화"]
TOKENIZER = wordpiece_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"[]", *WORDS])


def write(path: Path, *lines: str) -> Source:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Source(files={path.stem: str(path)})
