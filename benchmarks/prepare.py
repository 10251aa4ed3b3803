"""Speed of preparing a corpus beside the bare tokenizer and the released script, in one run.

  python -m benchmarks.prepare --config=configs/prepare.py:source=wikiextractor \
      --config.input='enwiki/**' --config.vocab=vocab.txt

Rates are MB of input per CPU second:

  bare tokenizer  tokenizers.encode_batch_fast alone, one thread, on sentences that are there
  tokenise        everything a worker does: read, split, tokenise, write
  prepare         the whole command with all its processes
  ... and a pass  and the instances of 128 tokens of one pass, as training reads them
  released        the algorithms of create_pretraining_data.py, one pass: its tokenizer (as it is in
                  transformers, a WordPiece vocabulary) and the loop over sentences that tests hold
                  ours to. Neither its masks nor its records, which ours does not make either.

Without `vocab`, one is trained first. What is done unit by unit takes turns on each, so that a busy
machine slows all alike.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.models.bert import tokenization_bert_legacy as released

from benchmarks.cpu_time import cpu_seconds
from benchmarks.provenance import provenance
from bert_jax.common import entry, errors
from bert_jax.common.command_line import CONFIG
from bert_jax.data.corpus import Corpus, open_corpus
from bert_jax.data.instances import Instances
from bert_jax.data.loader import train_batches
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.preparing import units
from bert_jax.preparing.build import prepare
from bert_jax.preparing.text import Reader
from tests.reference_instances import FreeDraws, pass_instances

SEQ_LENGTH = 128
BATCH_SIZE = 256
SHORT_SEQ_PROB = 0.1


class ReleasedScript:
    """Text to instances as create_pretraining_data.py does it, in memory."""

    def __init__(self, tokenizer: Tokenizer, vocab: Path):
        if not vocab.exists():
            raise errors.UserError("the released script takes a WordPiece vocabulary")
        self.vocab = released.load_vocab(vocab)
        lowercase = tokenizer.backend.normalizer.normalize_str("A") == "a"
        self.words = released.BasicTokenizer(lowercase)
        self.pieces = released.WordpieceTokenizer(self.vocab, "[UNK]")

    def ids(self, sentence: str) -> list[int]:
        """Of a sentence."""
        words = self.words.tokenize(sentence)
        return [self.vocab[piece] for word in words for piece in self.pieces.tokenize(word)]

    def __call__(self, documents: list[list[str]]) -> None:
        """The instances of one pass."""
        tokens = [[ids for s in document if (ids := self.ids(s))] for document in documents]
        tokens = [document for document in tokens if document]
        pass_instances(tokens, SEQ_LENGTH, SHORT_SEQ_PROB, FreeDraws(0))


def read_documents(unit: list[units.Piece]) -> list[list[str]]:
    """The sentences of each document of a unit."""
    reader = Reader()
    return [
        [sentence for paragraph in document for sentence in reader.sentences(paragraph)]
        for piece in unit
        for document in reader.documents(piece.source, Path(piece.path), piece.begin, piece.end)
    ]


def tokenize_alone(documents: list[list[str]], tokenizer: Tokenizer) -> None:
    """The bare tokenizer's work."""
    sentences = [sentence for document in documents for sentence in document]
    for i in range(0, len(sentences), 1000):
        tokenizer.backend.encode_batch_fast(sentences[i : i + 1000], add_special_tokens=False)


def make_instances(corpus: Corpus) -> None:
    """Those of one pass, loaded as in training."""
    tokenizer = corpus.tokenizer
    split = corpus.splits["train"]
    instances = Instances(
        split, SEQ_LENGTH, 0, tokenizer.template, options={"short_seq_prob": SHORT_SEQ_PROB}
    )
    for _ in train_batches(instances, BATCH_SIZE, 0, -(-instances.per_pass // BATCH_SIZE)):
        pass


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """CPU seconds of a call."""
    begin = cpu_seconds()
    function(*arguments)
    return cpu_seconds() - begin


def main() -> None:
    """Measures and prints a table and one JSON line."""
    config = CONFIG.value
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    seconds = dict.fromkeys(("bare tokenizer", "tokenise"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        target, begin = Path(folder, "corpus"), time.perf_counter()
        seconds["prepare"] = timed(prepare, config, target)
        wall = time.perf_counter() - begin
        corpus = open_corpus(target)
        seconds["... and a pass"] = seconds["prepare"] + timed(make_instances, corpus)
        seconds["released"] = 0.0
        script = ReleasedScript(corpus.tokenizer, target / "tokenizer" / "vocab.txt")
        settings = {**config.to_dict(), "tokenizer": str(target / "tokenizer")}
        plan = units.plan_units(units.find_files(config.input, config.source), config.text_feature)
        megabytes = sum(piece.size for unit in plan for piece in unit) / 1e6
        for number, unit in enumerate(plan):
            documents = read_documents(unit)
            one = Path(folder, f"unit-{number}")
            seconds["bare tokenizer"] += timed(tokenize_alone, documents, corpus.tokenizer)
            seconds["tokenise"] += timed(units.tokenize_unit, unit, one, settings)
            seconds["released"] += timed(script, documents)
    print(f"\n{'':16}{'CPU s':>10}{'MB / CPU s':>12}{'of bare':>10}")
    for name, cpu in seconds.items():
        share = seconds["bare tokenizer"] / cpu
        print(f"{name:16}{cpu:10.1f}{megabytes / cpu:12.2f}{share:10.0%}")
    result = {"megabytes": megabytes, "cpu_seconds": seconds, "prepare_wall_seconds": wall}
    print(json.dumps(provenance("prepare") | result))


if __name__ == "__main__":
    entry.run(main)
