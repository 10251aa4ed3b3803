"""Where the time of a run went: every second is booked once, over all its starts."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from bert_jax.training import goodput


def ledger_in(workdir, step=0):
    ledger = goodput.Ledger()
    ledger.open(workdir, step)
    return ledger


def line(start, began, from_step, step, **seconds):
    kinds = dict.fromkeys(("starting", "compiling", "input", "checkpoints", "evaluating"), 0.0)
    return {"start": start, "began": began, "from_step": from_step, "step": step,
            "seconds": {**kinds, "steps": 0.0, **seconds}}  # fmt: skip


def write(workdir, *lines):
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    (workdir / "goodput.jsonl").write_text(text)


def test_what_is_compiled_inside_is_booked_as_compiling(tmp_path):
    ledger = ledger_in(tmp_path)
    with ledger.spending("evaluating"):
        jax.jit(lambda x: jnp.sin(x) + time.monotonic())(jnp.ones(3)).block_until_ready()
    ledger.write(1)
    (entry,) = map(json.loads, (tmp_path / "goodput.jsonl").read_text().splitlines())
    assert entry["seconds"]["compiling"] > 0
    assert entry["seconds"]["evaluating"] < entry["seconds"]["compiling"]


def test_the_kinds_add_up_to_the_wall_time(tmp_path):
    begin = time.perf_counter()
    ledger = ledger_in(tmp_path)
    assert list(ledger.waiting(iter("abc"))) == ["a", "b", "c"]
    with ledger.spending("checkpoints"):
        time.sleep(0.05)
    ledger.write(3)
    wall = time.perf_counter() - begin
    found = goodput.shares(tmp_path)
    assert found["wall_seconds"] == pytest.approx(wall, abs=0.02)
    assert sum(found.values()) - found["wall_seconds"] == pytest.approx(1)
    assert found["checkpoints"] * found["wall_seconds"] >= 0.05


def test_repeated_steps_and_the_time_between_are_lost(tmp_path):
    """100 steps in 50 s, going on from step 80: a fifth again, 8 s of nothing, 2 s of starting."""
    write(
        tmp_path,
        line(0, 1000.0, 0, 60, steps=30.0),
        line(0, 1000.0, 0, 100, steps=50.0),
        line(1, 1058.0, 80, 120, starting=2.0, steps=20.0, evaluating=20.0),
    )
    found = goodput.shares(tmp_path)
    assert found["wall_seconds"] == pytest.approx(100)
    assert found["lost_to_restarts"] == pytest.approx((10 + 8 + 2) / 100)
    assert found["steps"] == pytest.approx((40 + 20) / 100)
    assert found["evaluating"] == pytest.approx(0.2)


def test_a_clock_that_was_set_back_gives_no_negative_time(tmp_path):
    write(tmp_path, line(0, 5000.0, 0, 10, steps=10.0), line(1, 100.0, 10, 20, steps=10.0))
    found = goodput.shares(tmp_path)
    assert found["wall_seconds"] == pytest.approx(20) and found["lost_to_restarts"] == 0


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    write(tmp_path, line(0, 0.0, 0, 10, steps=10.0))
    with (tmp_path / "goodput.jsonl").open("a") as file:
        file.write('{"start": 1, "beg')
    assert goodput.shares(tmp_path)["wall_seconds"] == pytest.approx(10)
    ledger_in(tmp_path, 10).write(11)
    last = (tmp_path / "goodput.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["start"] == 1


def test_a_run_that_was_killed_at_once_has_no_shares_to_speak_of(tmp_path):
    write(tmp_path)
    assert goodput.shares(tmp_path) == {"wall_seconds": 0, "lost_to_restarts": 0.0}
