"""The notebooks: run as they are with small settings, and fit to be committed."""

import ast
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from tiny_corpus import documents
from tiny_tasks import TOPICS, write_classification

import bert_jax
from bert_jax.training.metrics import read_metrics
from configs import finetune, prepare, pretrain

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONFIGS = {"prepare": prepare, "main": pretrain, "finetune": finetune}


def tagged(notebook: Any, tag: str) -> list[Any]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def execute(name: str, folder: Path, monkeypatch, **settings: Any) -> dict[str, str]:
    """Runs a notebook without its `colab` cells; what each cell printed, by the cell's id.

    The working directory is `folder`, which has nothing of the repository but its code.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (parameters,) = tagged(notebook, "parameters")
    for setting, value in settings.items():
        parameters.source, count = re.subn(
            rf"^{setting} = .*$", lambda _, line=f"{setting} = {value!r}": line, parameters.source,
            flags=re.MULTILINE,
        )  # fmt: skip
        assert count == 1, f"{name}.ipynb has no setting {setting}"
    colab = tagged(notebook, "colab")
    notebook.cells = [cell for cell in notebook.cells if cell not in colab]
    for code in ("bert_jax", "configs"):
        if not (folder / code).exists():
            (folder / code).symlink_to(ROOT / code)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(folder / ".jupyter"))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:  # `!` does not stop at a command that fails
        text = "".join(output.get("text", "") for output in cell.outputs)
        assert "error: " not in text and "Traceback" not in text, f"{cell.id}: {text}"
    return {  # without stderr, where slow work shows a progress bar
        cell.id: "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        for cell in cells
    }


def test_pre_training(tmp_path, monkeypatch):
    texts = ["\n".join(sentences) for sentences in documents()]
    (tmp_path / "texts").mkdir()
    for number in range(2):
        (tmp_path / "texts" / f"{number}.txt").write_text("\n\n".join(texts[number::2]))
    settings = {
        "SOURCE": "text", "INPUT": "texts/*.txt", "VOCAB_SIZE": 180, "FOLDER": "my runs",
        "CONFIG": "size=tiny,seq=32,preset=laptop", "STEPS": 200, "BATCH_SIZE": 16,
        "SAVE_EVERY": 100, "PROMPTS": ["[MASK] old ship sees [MASK] wave."],
        "MORE": "--config.log_every=20 --config.eval_instances=64 --config.model.width=32 "
        "--config.learning_rate=5e-3",
    }  # fmt: skip
    printed = execute("pretrain", tmp_path, monkeypatch, **settings)
    run = tmp_path / "my runs" / "pretrained"
    train = [line["mlm_loss"] for line in read_metrics(run) if line["split"] == "train"]
    assert len(train) == 10 and train[-1] < train[0] - 0.5
    report = json.loads((run / "report.json").read_text())
    assert report["steps"] == 200
    assert report["held_out"]["mlm_loss"] < report["baseline"]["mlm_loss"]
    prompt, *guesses = printed["fill-mask"].splitlines()
    assert prompt == settings["PROMPTS"][0]
    assert [line.split()[0] for line in guesses] == ["the", "the"]
    # A second start of a finished run trains nothing and makes no corpus.
    again = execute("pretrain", tmp_path, monkeypatch, **settings)
    assert again["corpus"] == "" and "nothing left to train" in again["train"]
    assert again["fill-mask"] == printed["fill-mask"]


def test_fine_tuning(trained, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    write_classification(data, 160, 1, "train")
    texts = ["the old ship crosses the wave", "the cook eats the bread"]
    printed = execute(
        "finetune", tmp_path, monkeypatch, INIT_FROM=str(trained), DATA="data", TEXTS=texts,
        MORE="--config.dev_share=0.2 --config.max_length=48 --config.batch_size=16 "
        "--config.epochs=20 --config.log_every=8 --config.learning_rate=1e-3",
    )  # fmt: skip
    run = tmp_path / "runs" / "finetuned"
    train = [line["loss"] for line in read_metrics(run) if line["split"] == "train"]
    assert train[-1] < train[0] / 2
    results = json.loads((run / "results.json").read_text())
    assert sum(results["examples"].values()) == 160 and results["examples"]["dev"] > 16
    assert results["scores"]["dev"]["accuracy"] > results["baselines"]["dev"]["accuracy"] + 0.3
    lines = printed["predict"].splitlines()
    assert lines[::2] == texts
    found = [answer.label for answer in bert_jax.load(run).classify(texts)]
    assert [line.split()[0] for line in lines[1::2]] == found
    probabilities = ast.literal_eval(lines[1].split(maxsplit=1)[1])
    assert sorted(probabilities) == sorted(TOPICS)
    assert sum(probabilities.values()) == pytest.approx(1, abs=0.02)
    assert (tmp_path / "runs" / "finetuned-hf" / "model.safetensors").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
        if "colab" not in cell.metadata.get("tags", ()):
            assert not re.search(r"/(home|root|tmp|work|Users)\b", cell.source), cell.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_shipped_settings_are_those_of_the_commands(path):
    """Every command line, with the settings that are committed, fits its config."""
    notebook = nbformat.read(path, as_version=4)
    settings: dict[str, Any] = {}
    exec(tagged(notebook, "parameters")[0].source, settings)
    found: Counter[str] = Counter()
    for cell in notebook.cells:
        source = cell.source.replace("\\\n", " ")
        for command in re.findall(r"python -m bert_jax\.(\w+)(.*--config=.*)", source):
            line = re.sub(r"{(\w+)}", lambda name: str(settings.get(name[1])), command[1])
            arg = re.search(r"--config=configs/\w+\.py:?(\S*)", line)[1]
            config = CONFIGS[command[0]].get_config(arg or None)
            for name in re.findall(r"--config\.([\w.]+)=", line):
                assert name in config, name
            found[command[0]] += 1
    wanted = {"pretrain": ["prepare", "main"], "finetune": ["prepare", "finetune", "finetune"]}
    assert found == Counter(wanted[path.stem])
