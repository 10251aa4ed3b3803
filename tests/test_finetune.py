"""Fine-tuning: every family learns, the best is kept, a stopped run goes on to the same bits."""

import json
from pathlib import Path

import pytest
import tiny_corpus
from tiny_tasks import FAMILIES, bits, make_config, run, settings, write_classification

from bert_jax import finetune, tasks
from bert_jax.common.errors import UserError
from bert_jax.training.checkpoint import load_params

pytestmark = pytest.mark.usefixtures("on_first_device")


@pytest.fixture(scope="module")
def tuned(trained, data, tmp_path_factory):
    """Work directories of a fine-tuned model of each family; not to be changed."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.sharding, "make_mesh", lambda _: tiny_corpus.one_device())
        for family in FAMILIES:
            made[family] = tmp_path_factory.mktemp("tuned") / family
            run(trained, data, made[family], family)
    return made


def metrics(workdir: Path) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


# What comes out.


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_and_leaves_its_files(family, tuned):
    workdir = tuned[family]
    results = json.loads((workdir / "results.json").read_text())
    metric = results["metric"]
    assert results["scores"]["dev"][metric] > results["baselines"]["dev"][metric] + 0.1
    assert results["scores"]["dev"][metric] > 0.8
    assert not results["collapsed"]
    for name in ("report.md", "curves.png", "task.json", "tokenizer/tokenizer.json", "config.json"):
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "predictions").iterdir())
    task = tasks.from_dict(json.loads((workdir / "task.json").read_text()))
    assert tasks.family(task) == family


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluating_the_finished_model_gives_its_results_again(family, tuned, data):
    workdir = tuned[family]
    config = make_config(
        Path(""), f"task=custom,family={family},mode=eval", **settings(data, family)
    )
    again = finetune.apply_model(config, workdir)
    before = json.loads((workdir / "results.json").read_text())
    assert again["scores"]["dev"] == pytest.approx(before["scores"]["dev"])
    assert (workdir / "eval" / "results.json").exists()


def test_the_prediction_file_scores_as_the_results_say(tuned, data):
    for family, gold in (("answering", "dev.json"), ("tagging", "dev.txt")):
        workdir = tuned[family]
        task = tasks.from_dict(json.loads((workdir / "task.json").read_text()))
        found = task.read(tasks.base.Source(files={"dev": str(data / family / gold)}), "dev")
        results = json.loads((workdir / "results.json").read_text())
        names = {"answering": "predictions.json", "tagging": "dev_predictions.conll"}
        made = task.read_predictions(workdir / "predictions" / names[family], found)
        metric = results["metric"]
        assert task.score(found, made)[metric] == pytest.approx(results["scores"]["dev"][metric])


def test_a_finished_run_is_done_at_once(trained, data, tuned, capsys):
    before = bits(load_params(tuned["classification"]))
    results = run(trained, data, tuned["classification"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert "nothing left to train; its scores are of the data given then (mode=eval" in last
    assert results["task"] == "custom"
    assert bits(load_params(tuned["classification"])) == before


def test_evaluating_needs_a_fine_tuned_model(trained, tuned, data):
    config = make_config(trained, "task=custom,mode=eval", data=str(data / "classification"))
    with pytest.raises(UserError, match="no fine-tuned model"):
        finetune.apply_model(config, trained)
    config = make_config(trained, "task=rte,mode=eval", data=str(data / "classification"))
    with pytest.raises(UserError, match="was fine-tuned on custom, not on rte"):
        finetune.apply_model(config, tuned["classification"])
    config = make_config(trained, "task=custom,mode=predict", data=str(data / "classification"))
    with pytest.raises(UserError, match="no split of custom to predict"):
        finetune.apply_model(config, tuned["classification"])


def test_the_head_of_another_task_is_not_taken_over(tuned, data, tmp_path, capsys):
    """Even where its shape would fit: the labels mean something else."""
    folder = tmp_path / "renamed"
    folder.mkdir()
    for split in ("train", "dev"):
        text = (data / "classification" / f"{split}.tsv").read_text()
        (folder / f"{split}.tsv").write_text(text.replace("\tships", "\tboats"))
    config = make_config(tuned["classification"], data=str(folder), epochs=0.04)
    finetune.finetune(config, tmp_path / "renamed_run")
    assert "new, from random: classifier;" in capsys.readouterr().err
    config.data = str(data / "classification")
    finetune.finetune(config, tmp_path / "same_run")
    assert "new, from random: nothing;" in capsys.readouterr().err


# Determinism and resumption.


def test_the_same_seed_gives_the_same_bits_and_another_does_not(trained, data, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(trained, data, tmp_path / name, seed=seed, epochs=0.5)
    one, again, other = (metrics(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again != other
    assert bits(load_params(tmp_path / "one")) == bits(load_params(tmp_path / "again"))


def test_a_run_on_other_training_data_is_not_continued(trained, data, tuned, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_classification(other, 480, 77, "train")
    write_classification(other, 60, 78, "dev")
    config = make_config(trained, data=str(other))
    with pytest.raises(UserError, match=r"holds a run with another config .*train_features"):
        finetune.finetune(config, tuned["classification"])
