"""Sweeps, the scoring entry and GLUE submissions, as commands."""

import importlib.util
import io
import json
import re
import zipfile
from pathlib import Path

import programs
import pytest
from tiny_tasks import FAMILIES, make_config, write_classification

from bert_jax import finetune
from bert_jax.common.errors import UserError
from bert_jax.tasks import get_task
from bert_jax.tasks.base import Source
from configs.finetune import get_config

ROOT = Path(__file__).resolve().parents[1]


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sweep():
    return load_script("sweep")


# Sweeps.


def test_grids_are_the_published_ones(sweep):
    """Section 4.1 and appendix A.3 differ; both are there (C5)."""
    paper, a3 = sweep.GRIDS["paper"], sweep.GRIDS["paper_a3"]
    assert sorted(paper["learning_rate"]) == [2e-5, 3e-5, 4e-5, 5e-5]
    assert (paper["batch_size"], paper["epochs"]) == ([32], [3.0])
    assert sorted(a3["learning_rate"]) == [2e-5, 3e-5, 5e-5]
    assert (sorted(a3["batch_size"]), sorted(a3["epochs"])) == ([16, 32], [2.0, 3.0, 4.0])


@pytest.mark.usefixtures("on_first_device")
def test_a_sweep_goes_on_where_it_was_and_keeps_the_best(sweep, trained, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 64), ("dev", 32)):
        write_classification(data, count, len(split), split)
    config = make_config(trained, data=str(data), epochs=1.0)
    calls = []
    real = finetune.finetune

    def counting(config, workdir):
        calls.append((config.learning_rate, config.seed))
        return real(config, workdir)

    monkeypatch.setattr(sweep.finetune, "finetune", counting)
    folder = tmp_path / "sweep"
    points = [{"learning_rate": 1e-3}, {"learning_rate": 1e-9}]
    todo = [sweep.job_of(config, point, seed, folder) for point in points for seed in (0, 1)]
    left = []

    def after():
        sweep._drop_checkpoints(todo)
        left.append(len(list(folder.glob("*/*/checkpoints"))))

    sweep.work(todo, after)
    assert calls == [(1e-3, 0), (1e-3, 1), (1e-9, 0), (1e-9, 1)] and left == [1, 1, 1, 1]
    done = [sweep.result_of(job) for job in todo]
    sweep.work(todo)
    assert len(calls) == 4
    kept = [
        result["workdir"] for result in done if (Path(result["workdir"]) / "checkpoints").exists()
    ]
    table = sweep.summarise(done)
    assert kept == [table["best_run"]]
    text = sweep.as_markdown(table)
    assert "learning_rate=0.001" in text and "learning_rate=1e-09" in text
    sweep.plot(done, table, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0

    (folder / "learning_rate=1e-09" / "seed1" / "results.json").unlink()  # as if it was killed
    for name, value in (("epochs", 2.0), ("init_from", "x"), ("data", "x"), ("dev", "x.tsv")):
        other = config.copy_and_resolve_references()
        other[name] = value
        for point, seed in ((points[0], 0), (points[1], 1)):
            with pytest.raises(UserError, match=f"run with another config .{name} was .*, is x?"):
                sweep.job_of(other, point, seed, folder).check()
    assert len(calls) == 4
    config.log_every += 1
    sweep.job_of(config, points[0], 0, folder).check()


def test_a_sweep_that_does_not_train_is_refused(tmp_path):
    done = programs.run(
        "launch/sweep.py", "--config=configs/finetune.py:task=rte,mode=eval",
        f"--workdir={tmp_path / 'sweep'}",
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "sweep").exists()
    assert done.stderr == "error: a sweep trains: mode=eval is for bert_jax.finetune\n"


def test_a_grid_overrides_no_chosen_setting(sweep, tmp_path):
    for arg, grid in (
        ("task=rte", "paper"), ("task=rte", "paper_a3"), ("task=rte", "small"),
        ("task=squad2", "paper"), ("task=custom,family=choice", "paper"),
        ("task=rte,preset=stable", "none"), ("task=rte,preset=small", "small"),
    ):  # fmt: skip
        sweep.check_chosen(get_config(arg), (), grid)
    config = get_config("task=rte")
    config.learning_rate = 3e-5  # one of the paper's
    sweep.check_chosen(config, ["learning_rate"], "paper")
    config.batch_size = 8
    with pytest.raises(UserError, match="--grid=paper tries batch_size=32, but the config has 8;"):
        sweep.check_chosen(config, (), "paper")
    stable = "--config=configs/finetune.py:task=rte,preset=stable"
    done = programs.run("launch/sweep.py", stable, f"--workdir={tmp_path / 'sweep'}")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --grid=paper tries epochs=3, but the config has 20; --grid=none keeps it, and "
        "tries seeds alone\n"
    )


@pytest.mark.parametrize(
    ("task", "option", "value", "message"),
    [
        # The paper's own value is a choice where it is given.
        ("rte", "epochs", 3.0, "--grid=small tries epochs=4, but the config has 3; --grid=none"),
        ("rte", "seed", 7, "--config.seed has no effect: --seeds=N tries the seeds 0 to N-1"),
        ("rte", "custom.label", "gold", "custom.label has no effect on task=rte"),
        ("custom", "custom.endings", "a,b", "custom.endings has no effect on a custom task of the"),
    ],
)
def test_what_a_sweep_would_ignore_is_refused(sweep, task, option, value, message):
    config = get_config(f"task={task}")
    config.update_from_flattened_dict({option: value})
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        sweep.check_chosen(config, {option: value}, "small")


def test_a_grid_of_ones_own(sweep, tmp_path):
    config = get_config("task=rte,preset=small")

    def points(text):
        sweep.check_chosen(config, (), text)  # it goes before the preset's rate
        return sweep.settings(sweep.read_grid(text, config))

    text = "learning_rate=1e-5,3e-5; batch_size=16,32"
    expected = [
        {"learning_rate": rate, "batch_size": rows} for rate in (1e-5, 3e-5) for rows in (16, 32)
    ]
    assert points(text) == expected
    file = tmp_path / "grid.json"
    file.write_text('{"learning_rate": [1e-5, 3e-5], "batch_size": [16, 32]}')
    assert points(str(file)) == expected
    text = "optimizer.bias_correction=true,false;features=last;epochs=3,2.5;reinit_layers=1"
    made = points(text)
    assert len(made) == 4 and made[0] == {
        "optimizer.bias_correction": True, "features": "last", "epochs": 3.0, "reinit_layers": 1,
    }  # fmt: skip
    one = sweep.with_point(config, made[2])
    assert one.optimizer.bias_correction is False and one.features == "last"
    names = [sweep.name_of(point) for point in made]
    assert len(set(names)) == 4 and all("/" not in name for name in names)
    # As many digits as tell two points apart, for each has a folder; and none leads elsewhere.
    assert sweep.name_of({"learning_rate": 1.2345678e-5}) == "learning_rate=1.2345678e-05"
    assert sweep.name_of({"init_from": "../x"}) == "init_from=..%2Fx"
    with pytest.raises(UserError, match=r"tries learning_rate=1e-05, but the config has 0.0003"):
        sweep.check_chosen(config, ["learning_rate"], "learning_rate=1e-5")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("papers", "none of none, paper, paper_a3, small, nor NAME=VALUE"),
        ("learning_rates=1", "the config has no field 'learning_rates'"),
        ("optimizer=1", "no field 'optimizer'"),
        ("optimizer.beta3=1", "no field 'optimizer.beta3'"),
        ("batch_size=16.5", "batch_size=16.5 must be of the type int"),
        ("learning_rate=fast", "learning_rate=fast must be of the type float"),
        ("learning_rate=", "learning_rate= must be of the type float"),
        ("optimizer.bias_correction=maybe", "must be of the type bool"),
        ("learning_rate=1e-5,0.00001", "learning_rate=0.00001 is there twice"),
        ("epochs=1;epochs=2", "epochs is there twice"),
        ("seed=1,2", "seed cannot be one of its fields; --seeds=N"),
        ("task=rte", "task cannot be one of its fields"),
        (";=", "no field ''"),
        ("nowhere.json", "nor a JSON file that there is"),
    ],
)
def test_grids_that_cannot_be(sweep, grid, message):
    with pytest.raises(UserError, match=message):
        sweep.read_grid(grid, get_config("task=rte"))


def test_the_summary_of_a_sweep(sweep):
    def result(point, seed, score):
        return {
            "point": point, "seed": seed, "workdir": f"{point}/{seed}", "metric": "f1",
            "score": score, "baseline": 0.5, "collapsed": score <= 0.5,
        }  # fmt: skip

    scores = {"a": [0.6, 0.5, 0.9], "b": [0.7, 0.71, 0.72]}
    results = [result(p, seed, score) for p in scores for seed, score in enumerate(scores[p])]
    table = sweep.summarise(results)
    first, second = table["settings"]
    assert (first["best"], first["median"], first["worst"], first["collapsed"]) == (
        0.9,
        0.6,
        0.5,
        1,
    )
    assert first["deviation"] == pytest.approx(0.2081666, abs=1e-6)
    assert (second["median"], second["collapsed"], second["n"]) == (0.71, 0, 3)
    assert table["best_run"] == "a/2"
    assert "| a | 3 | 0.9000 | 0.6000 | 0.5000 | 0.2082 | **1** |" in sweep.as_markdown(table)


# Scores.


def test_score_prints_the_official_metrics_as_json(tmp_path):
    FAMILIES["answering"][0](tmp_path, 20, 3, "dev")
    task = get_task("custom", {"family": "answering", "unanswerable": True})
    examples = task.read(Source(files={"dev": str(tmp_path / "dev.json")}), "dev")
    right = {e.id: "" if e.impossible else e.answers[0][0] for e in examples}
    (tmp_path / "right.json").write_text(json.dumps(right))
    flags = ["--task=squad2", f"--gold={tmp_path / 'dev.json'}"]
    done = programs.run("-m", "bert_jax.score", *flags, f"--predictions={tmp_path / 'right.json'}")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["exact"] == scores["f1"] == 1.0
    assert scores["HasAns_total"] + scores["NoAns_total"] == scores["total"] == 20
    done = programs.run(
        "-m", "bert_jax.score", *flags, f"--predictions={tmp_path / 'nothing.json'}"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "nothing.json does not exist" in done.stderr


# Submissions.


def test_a_submission_is_one_zip_and_says_what_is_missing(tmp_path):
    folder = tmp_path / "rte" / "predictions"
    folder.mkdir(parents=True)
    lines = ["index\tprediction", *(f"{i}\tentailment" for i in range(3000))]
    (folder / "RTE.tsv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "glue.zip"
    done = programs.run("launch/glue_submission.py", f"--out={out}", str(tmp_path / "rte"))
    assert done.returncode == 0, done.stderr
    assert "also wants" in done.stdout and "MNLI-mm.tsv" in done.stdout
    with zipfile.ZipFile(io.BytesIO(out.read_bytes())) as archive:
        assert archive.namelist() == ["RTE.tsv"]
    done = programs.run("launch/glue_submission.py", f"--out={out}", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and done.stderr.startswith("error: not a folder")
