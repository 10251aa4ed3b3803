"""Progress: a bar on a terminal, lines with the values in a file."""

import io
import re
import sys

import pytest

from bert_jax.common import progress
from bert_jax.common.progress import Progress, follow


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_lines_with_the_values_at_intervals(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(10_000, "step", done=1000) as shown:
        for step in range(1001, 1101):
            clock[0] += 1
            shown.show(loss=f"{9 - step / 1000:.3f}", rate="1e-4")
            shown.update()
        shown.say("step 1100 held out: mlm_loss 3")
    lines = sys.stderr.getvalue().splitlines()
    assert lines[0] == ("step 1,030/10,000 (10%)  loss 7.970  rate 1e-4  1.00 step/s  ETA 2:29:30")
    assert [line.split()[1] for line in lines] == [
        "1,030/10,000", "1,060/10,000", "1,090/10,000", "1100", "1,100/10,000",
    ]  # fmt: skip
    assert "\r" not in sys.stderr.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(4, "step") as shown:
        shown.update(4)
    assert re.search(r"\r.*4/4 \[", sys.stderr.getvalue())


def test_brief_work_is_silent_and_long_work_is_not(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(follow(range(3), "tokenising", 3, "text")) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""
    for _ in follow(range(3), "tokenising", 3, "text"):
        clock[0] += 20
    assert [line.split("  ")[0] for line in sys.stderr.getvalue().splitlines()] == [
        "tokenising 2/3 (67%)", "tokenising 3/3 (100%)",
    ]  # fmt: skip
    list(follow(range(3), "tokenising", 3, "text", quiet=True))
    assert sys.stderr.getvalue().count("\n") == 2
