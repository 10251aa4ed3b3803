"""What may change on a run that is continued, and what is said of it."""

import json

import earlier_runs
import pytest
import tiny_corpus
from test_earlier_runs import folder  # noqa: F401  a fixture

from bert_jax import finetune, main
from bert_jax.common.errors import UserError
from bert_jax.training.workdir import check_same


def changed(**changes) -> dict:
    return tiny_corpus.small_config(**changes).to_dict()


@pytest.fixture
def workdir(tmp_path):
    """As a run of 12 steps with a checkpoint leaves it."""
    (tmp_path / "config.json").write_text(json.dumps(changed()))
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 13}, {"accumulation": 2}, {"model__remat": True}, {"model__scan_layers": True},
        {"workers": 2}, {"checkpoint_minutes": 1.0}, {"mesh__fsdp": 2}, {"log_every": 1},
    ],
)  # fmt: skip
def test_what_only_adds_may_change(workdir, changes):
    check_same(workdir, changed(**changes), main.MAY_CHANGE, main.MAY_GROW)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 11}, "steps was 12, is 11"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"model__width": 32}, "model.width was 16, is 32"),
        ({"batch_size": 8}, "batch_size was 16, is 8"),
    ],
)
def test_the_rest_is_a_new_run_and_the_way_to_it_is_named(workdir, changes, said):
    with pytest.raises(UserError) as error:
        check_same(workdir, changed(**changes), main.MAY_CHANGE, main.MAY_GROW)
    way = f"--config.init_from={workdir} --workdir=NEW"
    assert said in str(error.value) and way in str(error.value)


def test_a_row_of_a_table_has_the_steps_of_the_table(workdir):
    """Reproductions take finished runs as they are: one of fewer steps is another."""
    with pytest.raises(UserError, match="steps was 12, is 13"):
        check_same(workdir, changed(steps=13), main.MAY_CHANGE, whole=False)


def test_more_steps_go_on_and_report_anew(folder, capfd):  # noqa: F811
    """From the middle, and when the run is finished; with other means of saving memory, too."""
    workdir = folder / "pretraining"
    for steps, changes in ((9, {}), (11, {"accumulation": 2, "model__remat": True})):
        stored = json.loads((workdir / "config.json").read_text())
        stored["steps"] = min(stored["steps"], 8 if steps == 9 else 9)
        (workdir / "config.json").write_text(json.dumps(stored))
        earlier_runs.pretrain(folder, workdir, steps=steps, **changes)
        said = capfd.readouterr().err
        assert f"goes on to {steps}: from step {7 if steps == 9 else 9} the learning rate" in said
        assert json.loads((workdir / "report.json").read_text())["steps"] == steps
        config = json.loads((workdir / "config.json").read_text())
        assert (config["steps"], config["format"]) == (steps, 1)
    steps = [line["step"] for line in earlier_runs.metrics(workdir) if line["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 11


def test_more_epochs_go_on_and_report_anew(folder, capfd):  # noqa: F811
    workdir = folder / "finetuning"
    earlier_runs.tune(folder, workdir)
    assert json.loads((workdir / "results.json").read_text())["steps"] == 12
    earlier_runs.tune(folder, workdir, epochs=2.5)
    assert "goes on to 15: from step 12 the learning rate" in capfd.readouterr().err
    assert json.loads((workdir / "results.json").read_text())["steps"] == 15
    with pytest.raises(UserError, match=r"epochs was 2.5, is 2.0"):
        earlier_runs.tune(folder, workdir)
    assert "epochs" in finetune.MAY_GROW
