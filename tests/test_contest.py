"""Contenders of a benchmark wait for their turns; what they do first after that does not count."""

import functools
import json
from pathlib import Path

from absl import flags

from benchmarks import contest


def writer(path: Path):
    """Writes how often it is to work in a call."""

    def turn(times: int) -> str:
        with path.open("a") as file:
            file.write(json.dumps(times) + "\n")
        return "done"

    return turn


def test_a_turn_begins_with_work_that_does_not_count(tmp_path):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    path = tmp_path / "calls"
    results = contest.contest({"one": functools.partial(writer, path)}, times=4)
    calls = [json.loads(line) for line in path.read_text().splitlines()]
    assert calls == [1] + [1, 4] * 5  # the first turn, then a step before the four that count
    assert results["one"].value == "done" and len(results["one"].wall) == 5
