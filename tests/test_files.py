"""Files are there whole or not at all, whoever else writes them and whenever a writer ends."""

import errno
import json
import math
import os
import threading
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bert_jax.common import figures
from bert_jax.common.files import (
    UNFINISHED,
    folder_written_whole,
    read_json,
    write_json,
    write_json_lines,
    write_whole,
    written_whole,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_several_writers_of_one_file_do_not_meet(tmp_path):
    """Of the contents one is there, never a mixture; no writer fails, and nothing is left."""
    path = tmp_path / "table.json"
    errors: list[Exception] = []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                write_json(path, [number] * 5000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(set(json.loads(path.read_text()))) == 1
    assert not errors
    assert names(tmp_path) == {"table.json"}


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Else a power cut leaves an empty file of the right name."""
    done = []
    fsync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).suffix)
        fsync(number)

    def replaced(self, target):
        done.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(tmp_path / "text.txt", "words")
    assert done == [UNFINISHED, "renamed", ""]
    assert (tmp_path / "text.txt").read_text() == "words"
    with folder_written_whole(tmp_path / "folder") as made:
        (made / "part.bin").write_bytes(b"part")
    assert done[3:] == [".bin", UNFINISHED, "renamed", ""]


def test_what_goes_wrong_leaves_what_was_there(tmp_path):
    write_whole(tmp_path / "text", "before")
    with pytest.raises(RuntimeError), written_whole(tmp_path / "text") as made:
        made.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), folder_written_whole(tmp_path / "folder") as made:
        (made / "part").write_text("half")
        raise RuntimeError
    assert (tmp_path / "text").read_text() == "before"
    assert names(tmp_path) == {"text"}


def test_a_full_disk_is_told_of_the_file_that_was_meant(tmp_path, monkeypatch):
    def full(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "report.md", "words")
    assert caught.value.filename == str(tmp_path / "report.md")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["ü" * 127, "a" * 255, "%s {} [1]* ?.json", "-rf", "a\nb", "'\""])
def test_names_that_a_disk_takes(tmp_path, name):
    write_whole(tmp_path / name, "words")
    assert names(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "words"


def test_a_figure_is_written_the_same_way(tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    (tmp_path / "curve.png.tmp").write_text("mine")  # no name of ours
    assert figures.save(figure, tmp_path / "curve.png") == tmp_path / "curve.png"
    assert names(tmp_path) == {"curve.png", "curve.png.tmp"}
    assert (tmp_path / "curve.png.tmp").read_text() == "mine"


def test_json_holds_no_numbers_that_json_has_not(tmp_path):
    values = {"a": math.inf, "b": [math.nan, 1.5, (-math.inf,)], "c": {"d": math.nan}, "e": True}

    def refuse(name):
        raise AssertionError(name)

    write_json(tmp_path / "one.json", values)
    write_json_lines(tmp_path / "many.jsonl", [values])
    expected = {"a": None, "b": [None, 1.5, [None]], "c": {"d": None}, "e": True}
    for path in ("one.json", "many.jsonl"):
        text = (tmp_path / path).read_text()
        assert json.loads(text, parse_constant=refuse) == expected
    assert read_json(tmp_path / "one.json") == expected
