"""Metrics: means divided once, and a log that a restart continues as if nothing had happened."""

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import pytest

from bert_jax.common.errors import UserError
from bert_jax.objectives.base import Mean, prediction_rows
from bert_jax.training import events as events_lib
from bert_jax.training import metrics

METRICS = prediction_rows("mlm", "MLM", "unigram", perplexity=True)


def mean(total: float, count: float) -> Mean:
    return Mean(jnp.float32(total), jnp.float32(count))


def test_means_add_up_as_sums_and_counts():
    """1 of 1 and 0 of 3: a quarter, not a half."""
    assert metrics.values({"a": mean(1, 1) + mean(0, 3)}) == {"a": 0.25}


def test_a_mean_of_nothing_is_zero():
    assert metrics.values({"a": mean(0, 0)}) == {"a": 0.0}


def test_perplexity_is_the_exponential_of_the_mean_loss():
    means = {"mlm_loss": mean(6, 3), "nsp_loss": mean(1, 1), "loss": mean(3, 1)}
    values = metrics.values(means, METRICS)
    assert values["mlm_perplexity"] == pytest.approx(math.exp(2))
    assert values.keys() == {"mlm_loss", "mlm_perplexity", "nsp_loss", "loss"}


def write(workdir, begin: int, end: int, loss: float = 1.0, restart: int = 0):
    log = metrics.MetricsLog(workdir, restart)
    for step in range(begin, end):
        log.write(step, "train", {"loss": loss + step}, {"seconds": 1.0})
    log.close()


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_step_split_metrics_and_time_apart(tmp_path):
    write(tmp_path, 1, 2)
    assert lines(tmp_path) == [{"step": 1, "split": "train", "loss": 2.0, "time": {"seconds": 1.0}}]


def test_a_restart_drops_what_was_written_past_its_checkpoint(tmp_path):
    write(tmp_path, 1, 6)
    write(tmp_path, 4, 8, restart=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert metrics.read_metrics(tmp_path) == lines(tmp_path)


@pytest.mark.parametrize("torn", ['{"step": 3, "split": "tr', '{"step": 3, "split": "train"}', "{"])
def test_a_last_line_without_its_end_is_dropped(tmp_path, torn):
    """A kill in the middle of a write; even a line that lacks only its end is written again."""
    write(tmp_path, 1, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert [line["step"] for line in metrics.read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, 3, 4, restart=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_numbers_come_back_to_the_bit(tmp_path):
    value = float(jnp.float32(0.1)) / 3
    write(tmp_path, 0, 1, loss=value)
    assert metrics.read_metrics(tmp_path)[0]["loss"] == value


def test_no_metrics_yet(tmp_path):
    assert metrics.read_metrics(tmp_path) == []


def test_events_are_written_for_tensorboard(tmp_path):
    write(tmp_path, 1, 3)
    assert len(list((tmp_path / "events").glob("events.out.tfevents.*"))) == 1


def events(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of all events, of all files."""
    found = [e for path in sorted(folder.iterdir()) for e in events_lib._read(path)]
    return [(v.tag, e.step, v.simple_value) for e in found for v in e.summary.value]


def told(workdir: Path) -> list[tuple[str, int]]:
    """What metrics.jsonl says must be among the events."""
    return [
        (f"{line['split']}/{name}", line["step"])
        for line in metrics.read_metrics(workdir)
        for name in [*(line.keys() - {"step", "split", "time"}), *line["time"]]
    ]


@pytest.mark.parametrize("left", [0, 5, 60, 200, 10_000])
def test_events_that_a_kill_lost_are_written_again_and_none_twice(tmp_path, left):
    """left: bytes that reached the disk; of the rest metrics.jsonl knows."""
    write(tmp_path, 1, 9)
    folder = tmp_path / "events"
    (path,) = folder.iterdir()
    os.truncate(path, min(left, path.stat().st_size))
    write(tmp_path, 6, 12, restart=5)
    found = [(tag, step) for tag, step, _ in events(folder)]
    assert sorted(found) == sorted(told(tmp_path))
    assert len(set(found)) == len(found)


def test_events_are_there_as_soon_as_they_are_told(tmp_path):
    """Without an end of any kind, as after SIGKILL."""
    log = metrics.MetricsLog(tmp_path, 0)
    log.write(1, "train", {"loss": 1.5, "gone": math.nan}, {"seconds": 0.25})
    found = events(tmp_path / "events")
    assert [x[:2] for x in found] == [("train/loss", 1), ("train/gone", 1), ("train/seconds", 1)]
    assert found[0][2] == 1.5 and math.isnan(found[1][2])
    log.close()


def test_what_is_no_number_is_null_in_the_file_and_nan_when_it_is_read(tmp_path):
    log = metrics.MetricsLog(tmp_path, 0)
    log.write(1, "train", {"loss": math.nan, "most": math.inf}, {"seconds": 1.0})
    log.close()
    assert '"loss": null, "most": null' in (tmp_path / "metrics.jsonl").read_text()
    (line,) = metrics.read_metrics(tmp_path)
    assert math.isnan(line["loss"]) and math.isnan(line["most"])


def test_the_perplexity_of_a_run_that_diverged_is_a_number():
    assert 1e300 < metrics.values({"mlm_loss": mean(1e6, 1)}, METRICS)["mlm_perplexity"] < math.inf


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),  # how JAX calls a v5p
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
        ("TPU v99", None),
    ],
)
def test_peak_speed_of_known_chips(kind, peak):
    """Published dense bf16 figures; `TPU v5` is a part of the name `TPU v5 lite`."""
    assert metrics.peak_flops(types.SimpleNamespace(device_kind=kind)) == peak


def test_a_start_does_without(tmp_path):
    """Seconds of every start; PyTorch, where it is installed, would TensorBoard's writer import."""
    for module in ("torch", "matplotlib", "scipy"):
        (tmp_path / f"{module}.py").write_text(f"raise SystemExit('imported {module}')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import bert_jax.main, bert_jax.finetune"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parent.parent,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_broken_line_is_told(tmp_path):
    write(tmp_path, 1, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "split\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:3: a broken line .*; remove it"):
        metrics.read_metrics(tmp_path)


def test_a_finished_run_whose_metrics_are_gone_is_told(tmp_path):
    write(tmp_path, 1, 3)  # of training only
    with pytest.raises(UserError, match="trained to the end, but"):
        metrics.last_evaluation(tmp_path)
