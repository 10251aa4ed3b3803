"""Reproducing tables: what is run, that it is run once, and what the table says of it."""

import contextlib
import dataclasses
import json
import re
import shutil
import statistics

import programs
import pytest
from tiny_corpus import one_device, overrides

from bert_jax import reproduce
from bert_jax.common.errors import UserError
from bert_jax.experiments import disk, jobs
from bert_jax.experiments.paper import (
    BASE,
    SIZES,
    TASKS,
    Column,
    Row,
    Table,
    columns,
    get_table,
    size_name,
)
from bert_jax.experiments.table_report import Cell, Result, as_markdown, compare, summarise
from bert_jax.families import bert, encoder
from bert_jax.planning import tpu
from bert_jax.tasks import get_task
from bert_jax.training import sharding
from configs import pretrain
from configs import reproduce as config_file

SENTENCES = ["the ship sees the island", "the bread cuts the oven", "the wolf leads the hill"]


def make_config(arg: str, corpus_path="", **finetuning):
    config = config_file.get_config(arg)
    config.seeds = 2
    config.pretraining.update_from_flattened_dict(
        overrides(
            steps=10,
            corpus=str(corpus_path),
            short_phase__share=0.0,
            checkpoint_every=4,
            model__layers=1,
        )
    )
    for task in config.finetuning:
        values = {"epochs": 1.0, "batch_size": 8, "max_length": 24, "bilstm_width": 8}
        config.finetuning[task].update({**values, **finetuning})
    return config


@pytest.fixture(scope="module", autouse=True)
def one_mesh():
    """On one device: many programs are compiled here, and none is about devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_: one_device())
        patch.setattr(reproduce, "get_table", short_table)
        yield


def short_table(name, scale):
    """Without the pre-trainings that differ little in how they are run."""
    table = get_table(name, scale)
    rows = tuple(
        dataclasses.replace(row, reference="")
        for row in table.rows
        if not row.pretraining.startswith("no_nsp")
    )
    return dataclasses.replace(table, rows=rows)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A folder like GLUE's, with CoLA in it."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "CoLA").mkdir()
    for split, count in (("train", 24), ("dev", 12)):
        lines = [f"src\t{i % 2}\t\t{SENTENCES[i % 3]}." for i in range(count)]
        (folder / "CoLA" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def out(corpus_path, glue, tmp_path_factory):
    """Three rows of table 5 at a scale of seconds."""
    folder = tmp_path_factory.mktemp("out")
    config = make_config("table=5,tasks=cola+mrpc", corpus_path)
    config.glue = str(glue)
    reproduce.reproduce(config, folder)
    return folder / "laptop"


# What the tables are.


@pytest.mark.parametrize("scale", SIZES)
@pytest.mark.parametrize("table", TASKS)
def test_every_table_at_every_scale_is_of_valid_runs(table, scale):
    config = config_file.get_config(f"table={table},scale={scale}")
    rows = reproduce.get_table(table, scale).rows
    names = {column.name for task in config.finetuning for column in columns(table, task, True)}
    for row in rows:
        one = reproduce.pretraining_config(config, row.pretraining)
        bert.FAMILY.settings.check(one)
        encoder.backbone(one.model.to_dict(), 100, "float32")
        kept = reproduce.kept_steps(one, row.pretraining, scale)
        assert one.keep_every * 10 in (0, one.steps)
        assert {round(row.share * one.steps), one.steps} <= {*kept, one.steps}
    if scale == "paper":
        assert any(row.published for row in rows) or table == "figure5"
        assert {n for row in rows for n in row.published} - names <= {"perplexity"}


def test_the_longest_pretraining_is_first(tmp_path):
    """Processes that share the work would else wait for the one that began the largest last."""
    config = config_file.get_config("table=6,tasks=cola")
    found = reproduce.jobs(config, get_table("6", "laptop"), [], tmp_path)
    assert [job.folder.name for job in found] == [
        "L8_H192_A6", "L4_H192_A6", "BERT", "L2_H128_A1", "L2_H128_A4", "L1_H128_A4",
    ]  # fmt: skip


def test_the_variants_of_table_5():
    config = config_file.get_config("table=5,scale=paper")
    settings = {
        row.label: (one.nsp, one.pairs, one.model.causal, row.finetuning.get("bilstm", 0))
        for row in get_table("5", "paper").rows
        if (one := reproduce.pretraining_config(config, row.pretraining))
    }
    assert settings == {
        "BERT": (True, True, False, 0),
        "No NSP": (False, False, False, 0),
        "No NSP, pairs kept": (False, True, False, 0),
        "LTR & No NSP": (False, False, True, 0),
        "+ BiLSTM": (False, False, True, 2),
    }


def test_the_sizes_of_table_6_keep_the_papers_proportions():
    for sizes in SIZES.values():
        layers, width, heads = sizes[BASE]
        assert [size[0] for size in sizes] == [layers // 4, layers // 2, layers // 2, layers,
                                               layers, 2 * layers]  # fmt: skip
        assert [size[1] for size in sizes[:4]] == [width] * 4
        assert sizes[1][2] * 4 == heads
    assert size_name(SIZES["paper"][1]) == "L6_H768_A3"


def test_the_mixtures_of_table_8():
    config = config_file.get_config("table=8,scale=paper")
    shares = []
    for row in get_table("8", "paper").rows:
        masking = reproduce.pretraining_config(config, row.pretraining).masking
        mask, random = round(100 * masking.mask_share), round(100 * masking.random_share)
        shares.append((mask, 100 - mask - random, random))
        assert row.label == "{} MASK, {} SAME, {} RND".format(*shares[-1])
    assert shares == [(80, 10, 10), (100, 0, 0), (80, 0, 20), (80, 20, 0), (0, 20, 80), (0, 0, 100)]


# Running.


def test_the_table_is_made_of_its_runs(out):
    table = json.loads((out / "table5" / "table.json").read_text())
    assert [row["label"] for row in table["rows"]][-1] == "+ BiLSTM"
    for row in table["rows"]:
        (cell,) = row["cells"].values()
        assert len(cell["runs"]) == 2
        for folder, score in zip(cell["runs"], cell["scores"], strict=True):
            results = json.loads((out / folder / "results.json").read_text())
            assert 100 * results["scores"]["dev"][get_task("cola").metric] == score
            config = json.loads((out / folder / "config.json").read_text())
            assert config["init_from"] == str(out / "pretraining" / row["pretraining"])
            assert config["model"]["causal"] == (row["pretraining"] == "ltr")
            assert config["bilstm"] == (2 if row["label"] == "+ BiLSTM" else 0)
        assert cell["mean"] == statistics.fmean(cell["scores"])
    text = (out / "table5" / "table.md").read_text()
    assert "- mrpc is left out: " in text and "MRPC is not there" in text
    assert (out / "table5" / "table.png").stat().st_size > 0
    assert {path.name for path in (out / "pretraining").iterdir() if path.is_dir()} == {
        "BERT",
        "ltr",
    }


def test_what_is_there_is_not_run_again(out, corpus_path, glue, monkeypatch):
    """Another table takes the same pre-trainings; a run that is gone is run again, alone."""
    started = []
    monkeypatch.setattr(
        reproduce.pretraining, "pretrain", lambda config, folder: started.append(folder)
    )
    real = reproduce.finetune.finetune

    def counting(config, folder):
        started.append(folder)
        return real(config, folder)

    monkeypatch.setattr(reproduce.finetune, "finetune", counting)
    config = make_config("table=5,tasks=cola", corpus_path)
    config.glue = str(glue)
    lost = out / "finetuning" / "ltr" / "cola" / "default" / "seed1" / "results.json"
    lost.unlink()
    reproduce.reproduce(config, out.parent)
    assert started == [lost.parent]
    started.clear()
    config = make_config("table=figure5,tasks=cola", corpus_path)
    config.glue, config.seeds = str(glue), 1
    reproduce.reproduce(config, out.parent)
    # The last points are table 5's.
    assert [str(folder.relative_to(out / "finetuning")) for folder in started] == [
        f"ltr@{share}/cola/default/seed0" for share in (0.1, 0.3, 0.5, 0.7)
    ]
    start = json.loads((started[0] / "config.json").read_text())["init_from"]
    assert start == str(out / "pretraining" / "ltr" / "checkpoints" / "1")
    assert (out / "figure5" / "table.png").stat().st_size > 0


def test_finished_runs_on_other_data_are_not_taken(out, corpus_path, glue, tmp_path):
    shutil.copytree(glue, tmp_path / "other")
    config = make_config("table=5,tasks=cola", corpus_path)
    config.glue = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"seed0 holds .*\(data was .*, is .*/other/CoLA"):
        reproduce.reproduce(config, out.parent)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("pretraining", {"learning_rate": 1e-4}, r"pretraining/BERT holds .*learning_rate was"),
        (
            "finetuning",
            {"batch_size": 4},
            r"seed0 holds a run with another config \(batch_size was 8",
        ),
    ],
)
def test_finished_runs_of_other_settings_are_not_taken(
    section, change, message, out, corpus_path, glue
):
    config = make_config("table=5,tasks=cola", corpus_path)
    config.glue = str(glue)
    (config.pretraining if section == "pretraining" else config.finetuning.cola).update(change)
    with pytest.raises(UserError, match=message):
        reproduce.reproduce(config, out.parent)


def test_only_the_checkpoints_that_a_table_needs_stay(out):
    """Of ten along the way figure 5 takes four, of LTR and of MLM without NSP."""
    kept = {
        name: sorted(
            int(path.name) for path in (out / "pretraining" / name / "checkpoints").iterdir()
        )
        for name in ("BERT", "ltr")
    }
    assert kept == {"BERT": [10], "ltr": [1, 3, 5, 7, 10]}


def test_the_disk_that_checkpoints_take_is_told(corpus_path, glue, tmp_path, monkeypatch):
    """To within a tenth of what a checkpoint of the model takes."""
    config = make_config("table=5,tasks=cola", corpus_path)
    config.glue = str(glue)
    config.pretraining.update_from_flattened_dict({"model.width": 256, "model.heads": 4})
    model = pretrain.get_config("size=base").model
    assert disk.checkpoint_bytes(model, 30522) == pytest.approx(12 * 110.1e6, rel=0.01)
    said = []
    monkeypatch.setattr(reproduce.distributed, "say", said.append)
    monkeypatch.setattr(reproduce, "work", lambda todo: None)
    monkeypatch.setattr(reproduce, "write_table", lambda *_: None)
    monkeypatch.setattr(reproduce, "perplexities", lambda *_: {})
    with contextlib.suppress(FileNotFoundError):  # there is no table
        reproduce.reproduce(config, tmp_path / "out")
    (line,) = [line for line in said if line.startswith("checkpoints in")]
    assert re.search(r"take up to \d+ MB; [\d,.]+ [GM]B are free", line)


def test_what_another_process_is_at_is_left_to_it(tmp_path, monkeypatch):
    ran = []

    def job(name, needs=None):
        result = tmp_path / name / "result"

        def run():
            ran.append(name)
            result.parent.mkdir(parents=True)
            result.touch()

        return jobs.Job(tmp_path / name, result, run, needs)

    first, second = job("first"), job("second")
    third = job("third", needs=first.result)
    with jobs.claimed(tmp_path / "first.lock") as mine:
        assert mine

        def the_other_finishes(seconds):
            assert ran == ["second"]  # the third waits for the first
            first.run()

        monkeypatch.setattr(jobs.time, "sleep", the_other_finishes)
        jobs.work([first, second, third])
    assert ran == ["second", "first", "third"]


# Mistakes.


@pytest.mark.parametrize(
    ("arg", "changes", "message"),
    [
        ("table=5,tasks=cola", {}, "no task has data: cola is left out: no data"),
        ("table=1,tasks=cola", {"glue": True}, "table 1 is fine-tuned from --config.checkpoint"),
        ("table=7,tasks=cola", {"glue": True}, "--config.pretraining.corpus=FOLDER is needed"),
        ("table=5,tasks=cola", {"glue": True, "checkpoint": "x"}, "pre-trains its own models"),
        ("table=5,tasks=cola", {"glue": True, "epochs": 0.0}, "epochs=0 must be above 0"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(arg, changes, message, glue, tmp_path):
    config = make_config(arg, **{n: v for n, v in changes.items() if n == "epochs"})
    config.glue = str(glue) if changes else ""
    config.checkpoint = changes.get("checkpoint", "")
    with pytest.raises(UserError, match=message):
        reproduce.reproduce(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_glue_lacks_is_left_out_what_was_named_must_be_there(glue, tmp_path):
    config = make_config("table=5,tasks=cola+rte", tmp_path)
    config.glue = str(glue)
    (glue / "RTE").mkdir(exist_ok=True)  # without its files
    _, columns_, left_out = reproduce.layout(config)
    assert [column.name for column in columns_] == ["cola"]
    assert len(left_out) == 1 and "rte is left out" in left_out[0]
    config.finetuning.rte.data = str(glue / "RTE")
    with pytest.raises(UserError, match=r"RTE has no train split of rte"):
        reproduce.layout(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 9999}, "max_length=9999 is over the 64 positions of {}/pretraining/BERT"),
        ({"reinit_layers": 99}, "reinit_layers=99 is over the 1 layers of {}/pretraining/BERT"),
        ({"accumulation": 7}, "batch_size=8 must divide by accumulation=7 times the 1 devices"),
        ({"optimizer.name": "nonsense"}, "optimizer.name is 'nonsense'; known: adamw, lamb"),
        ({"optimizer.decay_from": "x"}, "optimizer.decay_from is 'x'; known: start, warmup"),
        ({"dtype": "float99"}, "dtype is 'float99'; known: auto, float32, bfloat16"),
        ({"features": "nonsense"}, "features is 'nonsense'; known: embeddings,"),
        ({"features": "concat_last_4"}, "features=concat_last_4 reads the last 4 layers, but"),
        ({"add_tokens": "x.txt"}, "the file of new tokens x.txt does not exist"),
    ],
)
def test_settings_of_fine_tunings_are_checked_before_the_pretraining(
    changes, message, corpus_path, glue, tmp_path
):
    config = make_config("table=5,tasks=cola", corpus_path)
    config.glue = str(glue)
    config.finetuning.cola.update_from_flattened_dict(changes)
    message = re.escape(message.format(tmp_path / "out" / "laptop"))
    with pytest.raises(UserError, match=rf"^finetuning\.cola(: |\.){message}"):
        reproduce.reproduce(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_of_every_task_are_checked_before_the_first_is_fine_tuned(trained, glue, tmp_path):
    config = make_config("table=1,tasks=cola+sst2")
    config.glue, config.checkpoint = str(glue), str(trained)
    config.finetuning.sst2.data = str(tmp_path / "SST-2")
    config.finetuning.sst2.max_length = 65
    (tmp_path / "SST-2").mkdir()
    for split in ("train", "dev"):
        lines = [f"{sentence}\t{place % 2}" for place, sentence in enumerate(SENTENCES)]
        text = "\n".join(["sentence\tlabel", *lines]) + "\n"
        (tmp_path / "SST-2" / f"{split}.tsv").write_text(text)
    message = f"finetuning.sst2: max_length=65 is over the 64 positions of {trained}"
    with pytest.raises(UserError, match=re.escape(message)):
        reproduce.reproduce(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_no_seeds_is_refused(glue):
    config = make_config("table=5,tasks=cola")
    config.glue, config.seeds = str(glue), 0
    with pytest.raises(UserError, match="seeds=0 must be at least 1"):
        reproduce.layout(config)


@pytest.mark.parametrize(
    ("arg", "name", "value", "message"),
    [
        (
            "table=1,tasks=rte,grid=paper_a3", "rte.batch_size", 8,
            "finetuning.rte: grid=paper_a3 tries batch_size=16, 32, but the config has 8; "
            "grid=none keeps it",
        ),
        # The value that the config has anyway, but given.
        (
            "table=1,tasks=rte,grid=small", "rte.epochs", 3.0,
            "finetuning.rte: grid=small tries epochs=4, but the config has 3",
        ),
        ("table=5,tasks=rte", "rte.seed", 7, "finetuning.rte.seed has no effect: --config.seeds=N"),
        ("table=1,tasks=rte", "rte.init_from", "x", "finetuning.rte.init_from has no effect: "),
        ("table=1,tasks=rte", "rte.mode", "eval", "finetuning.rte.mode has no effect: "),
        ("table=1,tasks=rte", "rte.custom.label", "x", "custom.label has no effect on task=rte"),
        ("table=1,tasks=rte,grid=paper", "rte.learning_rate", 3e-5, ""),  # is tried
        ("table=2,tasks=squad1,grid=paper", "squad1.learning_rate", 1e-3, ""),  # has no grid
        ("table=1,tasks=rte,grid=none", "rte.learning_rate", 1e-3, ""),
    ],
)  # fmt: skip
def test_what_the_user_set_is_kept_or_refused(arg, name, value, message):
    config = config_file.get_config(arg)
    config.finetuning.update_from_flattened_dict({name: value})
    chosen = [f"finetuning.{name}"]
    if not message:
        reproduce.check_chosen(config, chosen)
        return
    with pytest.raises(UserError, match=re.escape(message)):
        reproduce.check_chosen(config, chosen)


@pytest.mark.parametrize(("name", "value"), [("scale", "paper"), ("table", "1")])
def test_what_much_else_comes_with_is_given_after_the_colon(name, value):
    config = config_file.get_config("table=5,tasks=rte")
    config[name] = value
    with pytest.raises(UserError, match=f"{name} is given after the colon"):
        reproduce.check_chosen(config, [name])


@pytest.mark.parametrize(
    ("arg", "grid"),
    [
        ("table=1", "none"), ("table=1,scale=accelerator", "paper"),
        ("table=5,scale=accelerator", "none"), ("table=5,scale=paper", "paper"),
        ("table=5,grid=small", "small"),
    ],
)  # fmt: skip
def test_the_grid_suits_the_models(arg, grid):
    assert config_file.get_config(arg).grid == grid


def test_the_command_line_is_what_the_user_set(tmp_path):
    done = programs.run(
        "-m", "bert_jax.reproduce", "--config=configs/reproduce.py:table=1,tasks=rte,grid=paper",
        "--config.finetuning.rte.learning_rate=1e-3", f"--workdir={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr == (
        "error: finetuning.rte: grid=paper tries learning_rate=5e-05, 4e-05, 3e-05, 2e-05, but "
        "the config has 0.001; grid=none keeps it, and tries seeds alone\n"
    )


def test_a_file_without_splits_is_divided_and_settings_are_named_as_here(trained, tmp_path):
    """CODAH is one file, of which the README holds out a fifth."""
    lines = [f"o\tship {place}\tsees\tcuts\tleads\tplays\t{place % 4}" for place in range(40)]
    (tmp_path / "full_data.tsv").write_text("\n".join(lines) + "\n")
    config = make_config("table=4,tasks=codah")
    config.checkpoint = str(trained)
    config.finetuning.codah.data = str(tmp_path)
    assert config.finetuning.codah.dev_share == 0.2
    _, columns_, _ = reproduce.layout(config)
    assert [column.name for column in columns_] == ["codah"]
    config.finetuning.codah.dev_share = 0.0
    message = (
        f"finetuning.codah: {tmp_path} has no dev split of codah: give "
        "--config.finetuning.codah.dev=FILE, or --config.finetuning.codah.dev_share=0.1 to hold"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        reproduce.layout(config)


def test_unknown_tables_tasks_and_grids():
    for arg, message in (
        ("table=9", "table '9' is unknown; known: 1, 2"),
        ("table=5,tasks=colla", "task 'colla' is unknown"),
        ("table=5,tasks=custom", "task 'custom' is unknown"),
        ("table=5,grid=big", "grid 'big' is unknown"),
        ("table=5,scale=moon", "scale 'moon' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            config_file.get_config(arg)
    config = config_file.get_config("table=5")
    config.grid = "big"
    with pytest.raises(UserError, match="grid 'big' is unknown"):
        reproduce.check_chosen(config, ())


# What the table says.


def test_differences_within_the_noise_are_told_from_others():
    """Welch: for 3 + 3 values of deviation 1, means 2 apart have p = 0.07 and 5 apart p = 0.004."""
    assert compare([10, 11, 12], [12, 13, 14]) == "noise"
    assert compare([10, 11, 12], [15, 16, 17]) == "below"
    assert compare([15, 16, 17], [10, 11, 12]) == "above"
    assert compare([5, 5, 5], [6, 6, 6]) == "below"
    assert compare([5, 5, 5], [5, 5, 5]) == "noise"
    assert compare([90], [10, 11]) == "noise"  # one run tells nothing


def test_of_a_grid_the_setting_with_the_best_mean_counts(tmp_path):
    config = make_config("table=1,tasks=rte,grid=paper")
    table = get_table("1", "laptop")
    (column,) = columns("1", "rte", False)
    runs = reproduce.runs(config, table.rows[0], column, tmp_path)
    assert len(runs) == 4
    for place, results in enumerate(runs.values()):
        for result in results:
            result.folder.mkdir(parents=True)
            accuracy = 0.5 + 0.1 * (place == 2) + 0.01 * result.seed
            scores = {"dev": {"accuracy": accuracy}}
            line = {"task": "rte", "metric": "accuracy", "scores": scores, "collapsed": False}
            line["baselines"] = scores
            result.path.write_text(json.dumps(line))
    (row,) = summarise(table, [Cell(table.rows[0], column, runs)], {}, tmp_path)
    cell = row["cells"]["rte"]
    assert cell["setting"] == "learning_rate=3e-05,batch_size=32,epochs=3"
    assert cell["mean"] == pytest.approx(60.5) and len(cell["runs"]) == 8


def test_only_glue_is_tuned_over_the_grid():
    """Table 3 has settings of its own in the paper: batches of 48, two epochs."""
    config = config_file.get_config("table=3,scale=paper")
    (column,) = columns("3", "squad2", False)
    assert reproduce.points(config, get_table("3", "paper").rows[0], column) == [{}]
    assert (config.finetuning.squad2.batch_size, config.finetuning.squad2.epochs) == (48, 2.0)


def test_the_text_of_a_table(tmp_path):
    """Perplexities, collapsed runs, percent, n, and references."""
    rows = (
        Row("small", "a", published={"squad1": 80.0, "perplexity": 5.84}),
        Row("large", "b", published={"squad1": 81.0, "perplexity": 4.68}),
        Row("large again", "b", reference="large"),
    )
    table = Table("Table 6", rows, "A note.", perplexity=True)
    tasks = (("squad1", "f1"), ("rte", "accuracy"))
    cells = []
    for row, score in zip(rows, (50.0, 60.0, 60.1), strict=True):
        for task, metric in tasks:
            folder = tmp_path / row.label / task
            runs = [Result(folder / str(seed), seed, "dev", metric) for seed in range(3)]
            for run in runs:
                run.folder.mkdir(parents=True)
                scores = {"dev": {metric: (score + run.seed) / 100}}
                line = {"task": task, "metric": metric, "scores": scores, "baselines": scores}
                line["collapsed"] = row.label == "small"
                run.path.write_text(json.dumps(line))
            cells.append(Cell(row, Column(task, task), {"default": runs}))
    summary = summarise(table, cells, {"a": 9.5, "b": 7.25}, tmp_path)
    lines = as_markdown(table, summary, ["mnli is left out"]).splitlines()
    assert lines[2] == "| | held-out perplexity | squad1 | rte |".replace("| |", "|  |", 1)
    assert lines[4] == (
        "| small | 9.50 [5.84] | 51.0 ± 1.0, n=3 (3 collapsed) [80] "
        "| 51.0 ± 1.0, n=3 (3 collapsed) |"
    )
    assert lines[5] == "| large | 7.25 [4.68] | 61.0 ± 1.0, n=3 ↑ [81] | 61.0 ± 1.0, n=3 ↑ |"
    assert lines[6] == "| large again | 7.25 | 61.1 ± 1.0, n=3 ≈ | 61.1 ± 1.0, n=3 ≈ |"
    assert "- small, rte: default, small/rte" in lines  # in the work directory, wherever that is
    assert "A note." in lines and "- mnli is left out" in lines


def test_planning_adds_up_the_pretrainings(monkeypatch, capsys):
    compiled = []

    def fake(config, objective, target):
        compiled.append((config.nsp, config.pairs, objective.metrics[0].name))
        return {"fits": True, "chip_hours": 1000.0}

    monkeypatch.setattr(reproduce.plan, "plan", fake)
    monkeypatch.setattr(reproduce, "get_table", get_table)
    config = config_file.get_config("table=5,scale=paper")
    target = tpu.Slice("v5e:16x16", 1, tpu.CHIPS["v5e"], ())
    reproduce.plan_pretrainings(config, target)
    assert compiled == [
        (True, True, "mlm_loss"), (False, False, "mlm_loss"), (False, True, "mlm_loss"),
        (False, False, "lm_loss"),
    ]  # fmt: skip
    assert "all: ~4,000 chip-hours of v5e:16x16" in capsys.readouterr().out
