"""The config of fine-tuning: the paper's settings, every field read, mistakes told at once."""

import dataclasses
import json
import math
import re
import shutil
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import programs
import pytest
from tiny_tasks import make_config, settings

from bert_jax import finetune, tasks
from bert_jax.common.errors import UserError
from bert_jax.common.fields import Settings
from bert_jax.families import encoder
from bert_jax.models.body import Body
from bert_jax.weights import finetune_start
from configs import finetune as config_file
from configs import pretrain

pytestmark = pytest.mark.usefixtures("on_first_device")


# The config file.


@pytest.mark.parametrize("preset", config_file.PRESETS)
@pytest.mark.parametrize("name", [*tasks.TASKS, "custom"])
def test_every_task_builds(name, preset):
    config = config_file.get_config(f"task={name},preset={preset}")
    assert finetune.build_task(config).name == name
    assert config.max_length <= 512 and config.epochs > 0
    assert config.optimizer.bias_correction == (preset != "paper")


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("mrpc", ""), ("stsb", ""), ("squad2", ""), ("swag", ""), ("conll2003", ""),
        ("conll2003", "concat_last_4"), ("mrpc", "weighted_all"),
    ],
)  # fmt: skip
def test_every_kind_of_task_at_full_scale(name, features):
    """Parameters, loss and outputs of BERT-Base at the task's own length, as shapes."""
    config = config_file.get_config(f"task={name}")
    task = finetune.build_task(config)
    if not getattr(task, "labels", True):  # found in training data
        task = dataclasses.replace(task, labels=("a", "b", "c"))
    model = pretrain.get_config("size=base,seq=512").model.to_dict()
    body = Body(encoder.backbone(model, 30522, "float32"), features, 2 if features else 0)
    objective = task.objective(body)
    rows, length = 2, config.max_length
    each = (rows, 4) if tasks.family(task) == "choice" else (rows,)
    ids = {"tokens": (*each, length), "segments": (*each, length), "lengths": each}
    ids |= {"label": (rows,), "start": (rows,), "end": (rows,), "token_labels": (rows, length)}
    classes = getattr(objective, "classes", 1)
    reals = {"weight": (rows,), "labels": (rows, classes), "numbers": (rows, classes)}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for shapes, dtype in ((ids, jnp.int32), (reals, jnp.float32))
        for name, shape in shapes.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = nn.meta.unbox(jax.eval_shape(objective.init, key, batch))
    loss, _ = jax.eval_shape(lambda *given: objective.loss(*given, True), params, batch, key)
    assert loss.sum.shape == ()
    outputs = jax.eval_shape(objective.predict, params, batch)
    assert all(x.shape[0] == rows and x.dtype == jnp.float32 for x in outputs.values())
    head = next(tree for part, tree in params.items() if part in finetune_start.HEADS)
    width = 768  # of BERT-Base, and of the paper's BiLSTM
    assert head["dense"]["kernel"].shape == (width, *head["dense"]["bias"].shape)
    assert ("bilstm" in params) == bool(features)


def test_paper_settings():
    """Section 4 and appendix A.3 (C5)."""
    found = {
        name: (c.batch_size, c.learning_rate, c.epochs)
        for name in ("squad1", "squad2", "swag")
        for c in [config_file.get_config(f"task={name}")]
    }
    assert found == {
        "squad1": (32, 5e-5, 3.0), "squad2": (48, 5e-5, 2.0), "swag": (16, 2e-5, 3.0),
    }  # fmt: skip
    glue = config_file.get_config("task=mrpc")
    assert (glue.batch_size, glue.epochs, glue.max_length, glue.dropout) == (32, 3.0, 128, 0.1)
    assert (glue.warmup_steps, glue.optimizer.weight_decay, glue.optimizer.epsilon) == (
        0.1, 0.01, 1e-6,
    )  # fmt: skip


@pytest.mark.usefixtures("on_first_device")
def test_every_field_is_read(trained, data, tmp_path, monkeypatch):
    from test_configs import Recorder, field_names

    for what in ("given", "changed"):
        monkeypatch.setattr(finetune, what, dict)  # there is no command line
    monkeypatch.setattr(Settings, "check", lambda *_: None)
    read: set[str] = set()
    folder = data / "classification"
    for mode in config_file.MODES:
        config = make_config(
            trained, f"task=custom,mode={mode}", data=str(folder), epochs=0.04,
            test=str(folder / "dev.tsv"),
        )  # fmt: skip
        recorder = Recorder(config, read)
        monkeypatch.setattr(finetune, "read_config", lambda *_, recorder=recorder: recorder)
        workdir = types.SimpleNamespace(value=str(tmp_path / "run"))
        monkeypatch.setattr(finetune, "WORKDIR", workdir)
        monkeypatch.setattr(finetune, "OUTPUT", types.SimpleNamespace(value=None))
        finetune.main()
    assert (tmp_path / "run" / "predict" / "results.json").exists()
    monkeypatch.undo()
    config = Recorder(make_config(trained, train=str(folder / "train.tsv")), read)
    finetune.sharding.make_mesh(config.mesh)
    with pytest.raises(UserError, match="dev_share"):
        finetune.read_splits(finetune.build_task(config), config)
    assert field_names(config._config) - read == set()


# Mistakes.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "--config.init_from=FOLDER is needed"),
        ({"init_from": "nowhere"}, "nowhere"),
        ({"data": ""}, "--config.data=FOLDER is needed"),
        ({"data": "nowhere"}, "nowhere is not a folder"),
        (
            {"data": "tests"},
            "tests has no train split of custom; --config.train=FILE (looked for train.tsv, "
            "train.csv, train.jsonl, train.json, train.parquet, train.txt)",
        ),
        ({"dev": "nowhere.tsv"}, "the dev file nowhere.tsv does not exist"),
        ({"max_length": 65}, "max_length=65 is over the 64 positions"),
        ({"batch_size": 15, "accumulation": 2}, "batch_size=15 must divide"),
        ({"custom.text": "sentence"}, "sentence"),
        ({"custom.family": "poetry"}, "custom.family is 'poetry'; known: classification"),
        ({"features": "weighted_last_4"}, "4"),
        ({"features": "first"}, "first"),
        ({"add_tokens": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"task": "sst"}, "task is 'sst'; known: cola, sst2"),
        ({"reinit_layers": 3}, "reinit_layers=3 is over the 2 layers"),
        ({"reinit_layers": 1, "features": "last"}, "reinit_layers must be 0"),
        ({"epochs": 0.0}, "epochs=0"),
        ({"epochs": math.nan}, "epochs=nan must be above 0 and finite"),
        ({"warmup_steps": math.nan}, "warmup_steps=nan must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate=-1"),
        ({"dropout": 1.0}, "dropout=1"),
        ({"dev_share": 1.5}, "dev_share=1.5"),
        ({"max_length": 4, "custom.pair": "text"}, ""),
    ],
)
def test_mistakes_are_told_before_anything_is_written(trained, data, tmp_path, changes, message):
    config = make_config(trained, data=str(data / "classification"))
    config.unlock()
    config.update_from_flattened_dict(changes)
    if message:
        with pytest.raises(UserError, match=re.escape(message)):
            finetune.finetune(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_settings_are_checked_before_texts_are_tokenised(trained, data, tmp_path, monkeypatch):
    """Of large data that takes minutes."""
    monkeypatch.setattr(finetune, "_featurise", lambda *_: pytest.fail("texts were tokenised"))
    config = make_config(trained, data=str(data / "classification"))
    config.optimizer.name = "adam"
    with pytest.raises(UserError, match=r"optimizer\.name is 'adam'; known: adamw, lamb"):
        finetune.finetune(config, tmp_path / "run")


@pytest.mark.usefixtures("on_first_device")
def test_a_missing_dev_split_says_what_to_do(trained, data, tmp_path):
    config = make_config(trained, train=str(data / "classification" / "train.tsv"), epochs=0.04)
    with pytest.raises(UserError, match=r"no dev split .*--config\.dev_share=0\.1"):
        finetune.finetune(config, tmp_path / "run")
    config.dev_share = 0.2
    results = finetune.finetune(config, tmp_path / "run")
    counts = results["examples"]
    assert counts["train"] + counts["dev"] == 480
    assert 60 < counts["dev"] < 140


def test_a_missing_test_split_names_the_files_looked_for(trained, tmp_path):
    config = make_config(trained, mode="predict", data=str(tmp_path))
    with pytest.raises(UserError, match=r"no split of custom to predict \(looked for test\.tsv, "):
        finetune.read_splits(finetune.build_task(config), config)


def test_a_label_that_training_never_saw_is_told(trained, data, tmp_path):
    dev = tmp_path / "dev.tsv"
    dev.write_text("text\tlabel\nthe ship sees\tships\nthe wolf leads\thorses\n")
    config = make_config(trained, data=str(data / "classification"), dev=str(dev))
    with pytest.raises(UserError, match=r"dev\.tsv:3: .*horses"):
        finetune.finetune(config, tmp_path / "run")


def test_dev_data_without_tags_is_told_before_training(trained, data, tmp_path):
    folder = shutil.copytree(data / "tagging", tmp_path / "data")
    lines = (folder / "dev.txt").read_text().split("\n")
    (folder / "dev.txt").write_text("\n".join(line.split()[0] if line else "" for line in lines))
    changes = settings(data, "tagging") | {"data": str(folder)}
    config = make_config(trained, "task=custom,family=tagging", **changes)
    with pytest.raises(UserError, match="without gold tags"):
        finetune.finetune(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_dev_set_does_not_continue_a_run(trained, data, tmp_path, monkeypatch):
    """Its checkpoints would be ranked by scores that cannot be compared."""

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune.loop, "run", stopped)
    folder = data / "classification"
    text = (folder / "dev.tsv").read_text()
    (tmp_path / "moved.tsv").write_text(text)
    (tmp_path / "other.tsv").write_text(text[: text.rstrip().rindex("\t")] + "\tmusic\n")
    for dev, error in (("", None), ("moved.tsv", None), ("other.tsv", "dev_examples was")):
        config = make_config(trained, data=str(folder), dev=str(tmp_path / dev) if dev else "")
        with pytest.raises(UserError if error else KeyboardInterrupt, match=error):
            finetune.finetune(config, tmp_path / "run")


def test_settings_without_an_effect_are_refused(tmp_path):
    """Evaluating takes the model as it is; what the run had, too, may be given."""
    (tmp_path / "task.json").write_text("{}")
    settings = {"max_length": 48, "custom": {"text": "text"}, "mesh": {"data": -1}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    given = {
        "data": "x", "batch_size": 8, "dtype": "float32", "dev": "y", "max_length": 48,
        "custom.text": "title", "mesh.data": 2, "test": "z",
    }  # fmt: skip
    done = programs.run(
        "-m", "bert_jax.finetune", f"--workdir={tmp_path}",
        "--config=configs/finetune.py:task=custom,mode=eval",
        *(f"--config.{name}={value}" for name, value in given.items()),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"error: {tmp_path} holds a run with another config (custom.text was text, is title; "
        "mesh.data was -1, is 2; test was None, is z); undo that, delete the folder, which has no "
        "checkpoint yet, or choose another --workdir"
    )
