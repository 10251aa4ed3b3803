"""Speed of preparing a corpus beside the bare tokenizer on the same sentences, in one run.

  python -m benchmarks.prepare --config=configs/prepare.py:source=wikiextractor \
      --config.input='enwiki/**' --config.vocab=vocab.txt

Rates are MB of input per CPU second of one process: `tokenizer` is tokenizers.encode_batch_fast
alone, one thread; `tokenise` is everything a worker does (read, split, tokenise, write); `command`
is the whole of prepare with all its processes. Without `vocab`, one is trained first. The bare
tokenizer and the worker take turns on each unit, so that a busy machine slows both.
"""

import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.provenance import provenance
from bert_jax import errors
from bert_jax.command_line import CONFIG
from bert_jax.data import units
from bert_jax.data.build import prepare
from bert_jax.data.text import Reader


def _bare(unit, tokenizer) -> float:
    """CPU seconds of the bare tokenizer for the sentences of a unit."""
    reader = Reader()
    sentences = [
        sentence
        for piece in unit
        for document in reader.documents(piece.source, Path(piece.path), piece.begin, piece.end)
        for paragraph in document
        for sentence in reader.sentences(paragraph)
    ]
    begin = time.process_time()
    for i in range(0, len(sentences), 1000):
        tokenizer.backend.encode_batch_fast(sentences[i : i + 1000], add_special_tokens=False)
    return time.process_time() - begin


def _cpu_seconds() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def main() -> None:
    """Measures and prints a table and one JSON line."""
    config = CONFIG.value
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        begin, cpu = time.perf_counter(), _cpu_seconds()
        corpus = prepare(config, Path(folder, "corpus"))
        wall, command = time.perf_counter() - begin, _cpu_seconds() - cpu
        settings = {**config.to_dict(), "tokenizer": str(corpus.path / "tokenizer")}
        plan = units.plan_units(units.find_files(config.input, config.source), config.text_feature)
        megabytes = sum(piece.size for unit in plan for piece in unit) / 1e6
        bare = tokenise = 0.0
        for unit in plan:
            bare += _bare(unit, corpus.tokenizer)
            begin = time.process_time()
            units.tokenize_unit(unit, Path(folder, "unit"), settings)
            tokenise += time.process_time() - begin
            shutil.rmtree(Path(folder, "unit"))
    rates = {"tokenizer": bare, "tokenise": tokenise, "command": command}
    print(f"\n{'':12}{'CPU s':>10}{'MB / CPU s':>12}{'of bare':>10}")
    for name, seconds in rates.items():
        print(f"{name:12}{seconds:10.1f}{megabytes / seconds:12.2f}{bare / seconds:10.0%}")
    result = {f"{name}_mb_per_cpu_s": round(megabytes / s, 3) for name, s in rates.items()}
    result |= {"megabytes": round(megabytes, 1), "command_wall_s": round(wall, 1)}
    print(json.dumps(provenance("prepare") | result))


if __name__ == "__main__":
    errors.run(main)
