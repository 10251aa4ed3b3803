"""Random text to prepare a corpus from, with a config, and what a corpus holds.

Its fixture is there for every test (conftest.py).
"""

import hashlib
import random

import numpy as np
import pytest

from configs.prepare import get_config

WORDS = [
    *("the", "a", "cat", "dog", "house", "tree", "runs", "sleeps", "under", "over", "green", "old"),
    *("and", "then", "sea", "ship", "far", "quick", "brown", "fox", "jumps", "lazy", "very", "box"),
]


def _sentence(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 15))).capitalize() + "."


def random_text(documents=300, seed=0):
    rng = random.Random(seed)
    return "\n".join(
        "".join(_sentence(rng) + rng.choice(" \n") for _ in range(rng.randint(3, 20))) + "\n"
        for _ in range(documents)
    )


@pytest.fixture
def input_file(tmp_path):
    path = tmp_path / "in" / "a.txt"
    path.parent.mkdir()
    path.write_text(random_text())
    return path


def text_config(path, **changes):
    config = get_config("source=text")
    config.input, config.vocab_size, config.workers, config.held_out = str(path), 150, 1, 0.1
    for name, value in changes.items():
        config[name] = value
    return config


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sentences(corpus, name):
    """Sentences of a split by document, as text."""
    split = corpus.splits[name]
    numbers = np.arange(len(split))
    texts = [corpus.tokenizer.decode(ids.tolist()) for ids in split.tokens(numbers, numbers + 1)]
    return [
        texts[begin:end]
        for begin, end in zip([0, *split.document_ends[:-1]], split.document_ends, strict=True)
    ]
