"""A small data set of each family of tasks in the grammar of the tiny corpus, and runs on it.

Its fixtures are there for every test (conftest.py).
"""

import csv
import json
import random
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_corpus

from bert_jax import finetune
from configs import finetune as config_file

TOPICS = ["ships", "gardens", "kitchens", "music"]
SMALL = {
    "batch_size": 16, "max_length": 48, "epochs": 6.0, "learning_rate": 1e-3, "log_every": 10,
}  # fmt: skip


def nouns(sentence: str) -> list[int]:
    known = {word for words, _ in tiny_corpus.TOPICS for word in words.split()}
    return [
        place for place, word in enumerate(sentence.split()) if re.sub("zz$", "", word) in known
    ]


def examples(count: int, seed: int) -> list[tuple[int, str]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        topic = rng.randrange(len(TOPICS))
        made.append((topic, tiny_corpus.sentence(rng, topic).replace(".", "")))
    return made


def write_classification(folder: Path, count: int, seed: int, split: str) -> None:
    lines = [f"{text}\t{TOPICS[topic]}" for topic, text in examples(count, seed)]
    (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")


def write_tagging(folder: Path, count: int, seed: int, split: str) -> None:
    """The noun of each half is an entity, with the article before it."""
    blocks = []
    for _, text in examples(count, seed):
        tags = ["O"] * len(text.split())
        for place in nouns(text):
            tags[place] = "I-THING"
            tags[place - 1] = "B-THING"
        lines = [f"{word} {tag}" for word, tag in zip(text.split(), tags, strict=True)]
        blocks.append("\n".join(lines))
    (folder / f"{split}.txt").write_text("\n\n".join(blocks) + "\n")


def write_answering(folder: Path, count: int, seed: int, split: str) -> None:
    """Who does it? The words before the verb; half of the questions are of another text."""
    rng = random.Random(seed)
    paragraphs = []
    for number, (topic, text) in enumerate(examples(count, seed)):
        words = text.split()
        end = nouns(text)[0] + 1
        impossible = rng.random() < 0.5
        verb = "plays" if impossible else words[end]
        if impossible and topic == 3:
            verb = "grows"
        answer = " ".join(words[:end])
        paragraphs.append(
            {
                "context": text,
                "qas": [
                    {
                        "id": f"{split}{number}",
                        "question": f"the captain {verb}",
                        "is_impossible": impossible,
                        "answers": [] if impossible else [{"text": answer, "answer_start": 0}],
                    }
                ],
            }
        )
    data = {"version": "v2.0", "data": [{"title": "tiny", "paragraphs": paragraphs}]}
    (folder / f"{split}.json").write_text(json.dumps(data))


def write_choice(folder: Path, count: int, seed: int, split: str) -> None:
    """Which end is of the topic of the beginning? The wrong ones are of other topics always."""
    rng = random.Random(seed)
    with (folder / f"{split}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "a", "b", "label"])
        for topic, text in examples(count, seed):
            right = tiny_corpus.sentence(rng, topic)
            wrong = tiny_corpus.sentence(rng, topic + 4)
            label = rng.randrange(2)
            table.writerow([text, *([right, wrong] if label == 0 else [wrong, right]), label])


FAMILIES = {
    "classification": (write_classification, {}),
    "tagging": (write_tagging, {}),
    "answering": (write_answering, {}),
    "choice": (write_choice, {"custom.endings": "a,b"}),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folder with a folder of each family; not to be changed."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, (write, _) in FAMILIES.items():
        (folder / name).mkdir()
        for split, count in (("train", 480), ("dev", 60)):
            write(folder / name, count, len(split), split)
    return folder


def make_config(start: Path, arg: str = "task=custom", **changes):
    config = config_file.get_config(arg)
    config.lock()
    names = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict({**SMALL, "init_from": str(start), **names})
    return config


@pytest.fixture
def on_first_device(monkeypatch):
    """Most of these runs are about bits and files; devices are tested apart."""
    monkeypatch.setattr(finetune.sharding, "make_mesh", lambda _: tiny_corpus.one_device())


def settings(data: Path, family: str) -> dict:
    values = {name.replace(".", "__"): value for name, value in FAMILIES[family][1].items()}
    return {"data": str(data / family), **values}


def run(trained: Path, data: Path, workdir: Path, family: str = "classification", **changes):
    config = make_config(
        trained, f"task=custom,family={family}", **settings(data, family), **changes
    )
    return finetune.finetune(config, workdir)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
