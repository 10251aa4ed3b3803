"""A task from the documentation of the installed packages: which library is a passage from?

  python -m bert_jax.pydocs_task --corpus=CORPUS --out=FOLDER

Writes train.jsonl and dev.jsonl for `task=custom`, lines of {"text": ..., "label": ...}; the same
ones for the same packages and corpus. The dev passages are from the modules that CORPUS, made of
`source=pydocs`, holds out: neither pre-training nor fine-tuning has seen a sentence of them.
"""

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bert_jax.common import entry
from bert_jax.common.command_line import OUT
from bert_jax.common.errors import UserError
from bert_jax.common.files import folder_written_whole, write_json_lines
from bert_jax.common.flag_parsing import path_flag
from bert_jax.data.corpus import Corpus, open_corpus
from bert_jax.data.sentences import split_sentences
from bert_jax.preparing import pydocs

# What bert_jax needs, in many modules each, and Python's own library.
LIBRARIES = ("jax", "matplotlib", "numpy", "orbax", "scipy", "stdlib")
SENTENCES = 2  # a passage
PER_MODULE = 20  # passages at most, so that no large module makes up a library
PER_LIBRARY = {"train": 400, "dev": 100}  # passages at most

_CORPUS = path_flag("corpus", "Corpus of source=pydocs.")

Rows = list[dict[str, str]]


def main() -> None:
    if not _CORPUS.value or not OUT.value:
        raise UserError("give --corpus=CORPUS and --out=FOLDER")
    write_task(Path(_CORPUS.value), Path(OUT.value))


def write_task(corpus: Path, out: Path) -> None:
    """Makes the folder `out`, whole or not at all.

    Raises: UserError: there is no such corpus, nothing in it is held out, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another --out")
    splits = make_splits(read_modules(), open_corpus(corpus))
    with folder_written_whole(out) as made:
        for split, rows in splits.items():
            write_json_lines(made / f"{split}.jsonl", rows)
            counts = Counter(row["label"] for row in rows)
            numbers = ", ".join(f"{name} {counts[name]}" for name in LIBRARIES)
            print(f"{out / split}.jsonl: {len(rows):,} passages ({numbers})")


def read_modules() -> list[tuple[str, list[str]]]:
    """(library, sentences) of every module of LIBRARIES, in the order of the names."""
    files = []
    for name, path in pydocs.python_files():
        top, rest = name.split("/", 1)
        library = top if top == "stdlib" else rest.split("/")[0]
        if library in LIBRARIES:
            files.append((library, path))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        prose = pool.map(pydocs.module_prose, [path for _, path in files], chunksize=50)
        return [
            (library, [s for paragraph in document for s in split_sentences(paragraph)])
            for (library, _), document in zip(files, prose, strict=True)
        ]


def make_splits(modules: Iterable[tuple[str, Sequence[str]]], corpus: Corpus) -> dict[str, Rows]:
    """The rows of "train" and "dev", about as many of each library.

    Sentences that name one of the libraries are left out, and repeated ones, as the corpus leaves
    them out. A module that has lost sentences in this way is still known by those that the corpus
    holds out: they only are taken, or, if they are not its greater part, the others only.

    Args:
      modules: (library, sentences) of each.
    Raises: UserError: a split has nothing in it.
    """
    held_out = _held_out_sentences(corpus)
    seen: set[str] = set()
    passages: dict[str, list[tuple[str, str]]] = {"train": [], "dev": []}
    for library, sentences in modules:
        own = []
        for sentence in sentences:
            if sentence not in seen and not any(name in sentence.lower() for name in LIBRARIES):
                own.append(sentence)
            seen.add(sentence)
        held = [tuple(ids) in held_out for ids in corpus.tokenizer.encode_batch(own)]
        dev = 2 * sum(held) > len(held)
        own = [sentence for sentence, is_held in zip(own, held, strict=True) if is_held == dev]
        starts = range(0, len(own) - SENTENCES + 1, SENTENCES)
        texts = sorted((" ".join(own[i : i + SENTENCES]) for i in starts), key=_draw)
        passages["dev" if dev else "train"] += [(library, text) for text in texts[:PER_MODULE]]
    splits: dict[str, Rows] = {}
    for split, found in passages.items():
        if not found:
            raise UserError(
                f"no passage for the {split} split: {corpus.path} holds none of the installed "
                f"{', '.join(LIBRARIES)}; make it with bert_jax.prepare, source=pydocs"
            )
        counts: Counter[str] = Counter()
        splits[split] = []
        for library, text in sorted(found, key=lambda passage: _draw(passage[1])):
            counts[library] += 1
            if counts[library] <= PER_LIBRARY[split]:
                splits[split].append({"text": text, "label": library})
    return splits


def _held_out_sentences(corpus: Corpus) -> set[tuple[int, ...]]:
    split = corpus.splits["held_out"]
    starts = np.arange(len(split))
    return {tuple(tokens.tolist()) for tokens in split.tokens(starts, starts + 1)}


def _draw(text: str) -> bytes:
    """Sort key for a random order, the same on every machine."""
    return hashlib.blake2b(text.encode()).digest()


if __name__ == "__main__":
    entry.run(main)
