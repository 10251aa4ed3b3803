"""The task of the quickstart: which library a passage is from."""

import json
from collections import Counter

import pytest
from tiny_corpus import documents

from bert_jax import pydocs_task
from bert_jax.common.errors import UserError
from bert_jax.preparing import pydocs
from bert_jax.tasks import get_task
from bert_jax.tasks.base import Source

NAMES = pydocs_task.LIBRARIES[:4]


def modules() -> list[tuple[str, list[str]]]:
    """The documents of the tiny corpus; every tenth one is held out there."""
    return [(NAMES[number % 4], sentences) for number, sentences in enumerate(documents())]


def texts(rows: list[dict[str, str]]) -> list[str]:
    return [row["text"] for row in rows]


def test_dev_is_of_held_out_modules_alone(corpus):
    splits = pydocs_task.make_splits(modules(), corpus)
    sentences = {"train": set(), "dev": set()}
    for number, document in enumerate(documents()):
        sentences["train" if number % 10 else "dev"].update(document)
    held_out = sentences["dev"]
    for split, rows in splits.items():
        parts = [s + "." for text in texts(rows) for s in text.rstrip(".").split(". ")]
        assert len(parts) == pydocs_task.SENTENCES * len(rows) > 0
        assert set(parts) <= sentences[split]
        assert all((part in held_out) == (split == "dev") for part in parts)
        assert len(set(parts)) == len(parts)
    owner = {s: NAMES[n % 4] for n, d in reversed(list(enumerate(documents()))) for s in d}
    for row in splits["dev"]:
        assert row["label"] == owner[row["text"].split(". ")[0] + "."]


def test_a_module_that_the_corpus_has_in_part_is_split_by_its_greater_part(corpus):
    held_out, train = documents()[10], documents()[11]
    others = [("numpy", document) for document in (documents()[20], documents()[21])]
    splits = pydocs_task.make_splits([("jax", [*held_out, train[0]]), *others], corpus)
    assert not any(train[0] in text for text in texts(splits["train"] + splits["dev"]))
    splits = pydocs_task.make_splits([("jax", [held_out[0], *train]), *others], corpus)
    assert not any(held_out[0] in text for text in texts(splits["train"] + splits["dev"]))


def test_no_passage_names_a_library(corpus):
    told = [(name, [f"the {name.upper()} ship sees the sea.", *s]) for name, s in modules()]
    splits = pydocs_task.make_splits(told, corpus)
    assert splits == pydocs_task.make_splits(modules(), corpus)


def test_limits_of_a_module_and_of_a_library(corpus, monkeypatch):
    monkeypatch.setattr(pydocs_task, "PER_MODULE", 1)
    few = pydocs_task.make_splits(modules(), corpus)
    assert len(few["dev"]) == 24
    monkeypatch.setattr(pydocs_task, "PER_LIBRARY", {"train": 7, "dev": 3})
    fewer = pydocs_task.make_splits(modules(), corpus)
    counts = Counter(row["label"] for row in fewer["train"])
    assert counts == dict.fromkeys(NAMES, 7)
    assert texts(fewer["dev"]) == [t for t in texts(few["dev"]) if t in texts(fewer["dev"])]


def test_what_is_written_is_a_task_to_fine_tune_on(corpus_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pydocs_task, "read_modules", modules)
    out = tmp_path / "new" / "task"
    pydocs_task.write_task(corpus_path, out)
    assert sorted(path.name for path in out.iterdir()) == ["dev.jsonl", "train.jsonl"]
    assert [path.name for path in out.parent.iterdir()] == ["task"]
    rows = [json.loads(line) for line in (out / "dev.jsonl").read_text().splitlines()]
    examples = get_task("custom").read(Source(str(out)), "dev")
    assert [(e.texts[0], e.label) for e in examples] == [
        (row["text"], row["label"]) for row in rows
    ]
    assert f"dev.jsonl: {len(rows)} passages" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already; remove it or choose another --out"):
        pydocs_task.write_task(corpus_path, out)


def test_a_corpus_of_something_else(corpus_path, tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs_task, "read_modules", lambda: [("jax", ["a b.", "c d."])])
    with pytest.raises(UserError, match=r"no passage for the dev split.*source=pydocs"):
        pydocs_task.write_task(corpus_path, tmp_path / "task")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="does not exist"):
        pydocs_task.write_task(tmp_path / "nowhere", tmp_path / "task")


def test_modules_of_the_libraries_alone(tmp_path, monkeypatch):
    names = ["site-packages/jax/a.py", "site-packages/torch/a.py", "stdlib/ast.py"]
    files = []
    for number, name in enumerate(names):
        path = tmp_path / f"{number}.py"
        path.write_text(
            f'"""This is the sentence {number} of all. Another one comes after it."""\n'
        )
        files.append((name, path))
    monkeypatch.setattr(pydocs, "python_files", lambda: files)
    second = "Another one comes after it."
    assert pydocs_task.read_modules() == [
        ("jax", ["This is the sentence 0 of all.", second]),
        ("stdlib", ["This is the sentence 2 of all.", second]),
    ]
