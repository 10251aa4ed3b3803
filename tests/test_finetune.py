"""Fine-tuning: every family learns, the best is kept, a stopped run goes on to the same bits."""

import csv
import json
import random
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_corpus

from bert_jax import finetune, tasks, weights
from bert_jax.checkpoint import Checkpoints, load_params
from bert_jax.data import buckets
from bert_jax.errors import UserError
from configs import finetune as config_file

TOPICS = ["ships", "gardens", "kitchens", "music"]
SMALL = {
    "batch_size": 16, "max_length": 48, "epochs": 6.0, "learning_rate": 1e-3, "log_every": 10,
}  # fmt: skip


def nouns(sentence: str) -> list[int]:
    known = {word for words, _ in tiny_corpus.TOPICS for word in words.split()}
    return [
        place for place, word in enumerate(sentence.split()) if re.sub("zz$", "", word) in known
    ]


def examples(count: int, seed: int) -> list[tuple[int, str]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        topic = rng.randrange(len(TOPICS))
        made.append((topic, tiny_corpus.sentence(rng, topic).replace(".", "")))
    return made


def write_classification(folder: Path, count: int, seed: int, split: str) -> None:
    lines = [f"{text}\t{TOPICS[topic]}" for topic, text in examples(count, seed)]
    (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")


def write_tagging(folder: Path, count: int, seed: int, split: str) -> None:
    """The noun of each half is an entity, with the article before it."""
    blocks = []
    for _, text in examples(count, seed):
        tags = ["O"] * len(text.split())
        for place in nouns(text):
            tags[place] = "I-THING"
            tags[place - 1] = "B-THING"
        lines = [f"{word} {tag}" for word, tag in zip(text.split(), tags, strict=True)]
        blocks.append("\n".join(lines))
    (folder / f"{split}.txt").write_text("\n\n".join(blocks) + "\n")


def write_answering(folder: Path, count: int, seed: int, split: str) -> None:
    """Who does it? The words before the verb; half of the questions are of another text."""
    rng = random.Random(seed)
    paragraphs = []
    for number, (topic, text) in enumerate(examples(count, seed)):
        words = text.split()
        end = nouns(text)[0] + 1
        impossible = rng.random() < 0.5
        verb = "plays" if impossible else words[end]
        if impossible and topic == 3:
            verb = "grows"
        answer = " ".join(words[:end])
        paragraphs.append(
            {
                "context": text,
                "qas": [
                    {
                        "id": f"{split}{number}",
                        "question": f"the captain {verb}",
                        "is_impossible": impossible,
                        "answers": [] if impossible else [{"text": answer, "answer_start": 0}],
                    }
                ],
            }
        )
    data = {"version": "v2.0", "data": [{"title": "tiny", "paragraphs": paragraphs}]}
    (folder / f"{split}.json").write_text(json.dumps(data))


def write_choice(folder: Path, count: int, seed: int, split: str) -> None:
    """Which end is of the topic of the beginning? The wrong ones are of other topics always."""
    rng = random.Random(seed)
    with (folder / f"{split}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "a", "b", "label"])
        for topic, text in examples(count, seed):
            right = tiny_corpus.sentence(rng, topic)
            wrong = tiny_corpus.sentence(rng, topic + 4)
            label = rng.randrange(2)
            table.writerow([text, *([right, wrong] if label == 0 else [wrong, right]), label])


FAMILIES = {
    "classification": (write_classification, {}),
    "tagging": (write_tagging, {}),
    "answering": (write_answering, {}),
    "choice": (write_choice, {"custom.endings": "a,b"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, (write, _) in FAMILIES.items():
        (folder / name).mkdir()
        for split, count in (("train", 480), ("dev", 60)):
            write(folder / name, count, len(split), split)
    return folder


def make_config(start: Path, arg: str = "task=custom", **changes):
    config = config_file.get_config(arg)
    config.lock()
    names = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict({**SMALL, "init_from": str(start), **names})
    return config


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Most of these runs are about bits and files; devices are tested apart."""
    monkeypatch.setattr(finetune.train.sharding, "make_mesh", lambda _: tiny_corpus.one_device())


def settings(data: Path, family: str) -> dict:
    values = {name.replace(".", "__"): value for name, value in FAMILIES[family][1].items()}
    return {"data": str(data / family), **values}


def run(trained: Path, data: Path, workdir: Path, family: str = "classification", **changes):
    config = make_config(
        trained, f"task=custom,family={family}", **settings(data, family), **changes
    )
    return finetune.finetune(config, workdir)


@pytest.fixture(scope="module")
def tuned(trained, data, tmp_path_factory):
    """Work directories of a fine-tuned model of each family; not to be changed."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.train.sharding, "make_mesh", lambda _: tiny_corpus.one_device())
        for family in FAMILIES:
            made[family] = tmp_path_factory.mktemp("tuned") / family
            run(trained, data, made[family], family)
    return made


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


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


# Determinism and resumption.


def test_the_same_seed_gives_the_same_bits_and_another_does_not(trained, data, tuned, tmp_path):
    run(trained, data, tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(tuned["classification"])
    assert bits(load_params(tmp_path / "again")) == bits(load_params(tuned["classification"]))
    run(trained, data, tmp_path / "other", seed=1)
    assert metrics(tmp_path / "other") != metrics(tuned["classification"])


def test_a_stopped_run_goes_on_to_the_same_bits(trained, data, tuned, tmp_path, monkeypatch):
    """Stopped in its second evaluation, after the first checkpoint."""
    calls = []
    real = finetune.run_features

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(finetune, "run_features", failing)
    workdir = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(trained, data, workdir)
    assert Checkpoints(workdir / "checkpoints", read_only=True).steps == [30]
    assert not (workdir / "results.json").exists()
    run(trained, data, workdir)
    assert metrics(workdir) == metrics(tuned["classification"])
    assert bits(load_params(workdir)) == bits(load_params(tuned["classification"]))
    results = [
        json.loads((d / "results.json").read_text()) for d in (workdir, tuned["classification"])
    ]
    for result in results:
        del result["seconds"], result["goodput"]
    assert results[0] == results[1]


def test_a_run_on_other_training_data_is_not_continued(trained, data, tuned, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_classification(other, 480, 77, "train")
    write_classification(other, 60, 78, "dev")
    config = make_config(trained, data=str(other))
    with pytest.raises(UserError, match=r"holds a run with another config .*train_features"):
        finetune.finetune(config, tuned["classification"])


# Where it starts.


def test_the_encoder_is_that_of_init_from_and_the_head_is_new(trained, data, tmp_path, capsys):
    config = make_config(trained, data=str(data / "classification"), epochs=0.04, warmup_steps=1.0)
    finetune.finetune(config, tmp_path / "run")  # one step, of rate 0
    said = capsys.readouterr().err
    assert "new, from random: classifier; not used: mlm_head, nsp_head" in said
    assert "were cut" not in said
    before, after = load_params(trained), load_params(tmp_path / "run")
    assert bits(before["encoder"]) == bits(after["encoder"])
    assert bits(before["pooler"]) == bits(after["pooler"])
    assert set(after) == {"encoder", "pooler", "classifier"}


def test_what_is_cut_is_counted(trained, data, tmp_path, capsys):
    run(trained, data, tmp_path / "run", epochs=0.04, max_length=9)
    said = capsys.readouterr().err
    tokenizer = weights.open_model(trained).tokenizer
    for split, count in (("train", 480), ("dev", 60)):
        texts = [text for _, text in examples(count, len(split))]
        cut = sum(len(ids) > 7 for ids in tokenizer.encode_batch(texts))
        assert 0 < cut < count
        line = (
            f"{split}: {cut} of {count} examples are over max_length=9 and were cut; "
            "--config.max_length can be up to 64\n"
        )
        assert said.count(line) == 1


def test_from_scratch_takes_no_weights(trained, data, tmp_path):
    config = make_config(
        trained, data=str(data / "classification"), epochs=0.04, warmup_steps=1.0, from_scratch=True
    )
    finetune.finetune(config, tmp_path / "run")
    before, after = load_params(trained), load_params(tmp_path / "run")
    kernels = [p["encoder"]["layer_0"]["feed_forward"]["inner"]["kernel"] for p in (before, after)]
    assert np.mean(np.asarray(kernels[0]) == np.asarray(kernels[1])) < 0.01


def test_top_layers_are_made_new_on_request(trained, data, tmp_path, capsys):
    config = make_config(
        trained, data=str(data / "classification"), epochs=0.04, warmup_steps=1.0, reinit_layers=1
    )
    finetune.finetune(config, tmp_path / "run")
    assert "new, from random: classifier, encoder/layer_1, pooler" in capsys.readouterr().err
    before, after = load_params(trained)["encoder"], load_params(tmp_path / "run")["encoder"]
    for name in ("embeddings", "layer_0"):
        assert bits(before[name]) == bits(after[name])
    assert bits(before["layer_1"]) != bits(after["layer_1"])


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


def test_a_frozen_encoder_stays_and_has_no_optimiser_state(trained, data, tmp_path):
    results = run(
        trained, data, tmp_path / "run", "tagging", features="last", bilstm=1, bilstm_width=32,
        epochs=2.0,
    )  # fmt: skip
    assert results["scores"]["dev"]["f1"] > 0.8
    before, after = load_params(trained), load_params(tmp_path / "run")
    assert bits(before["encoder"]) == bits(after["encoder"])
    assert set(after) == {"encoder", "bilstm", "tag_head"}
    stored = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    description = stored._orbax.metadata(stored.steps[-1]).metadata["state"]["opt_state"]
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(description)]
    assert any("tag_head" in name for name in names)
    assert not any("encoder" in name for name in names)


def test_new_tokens_are_learnt_and_stay_with_the_model(trained, data, tmp_path):
    tokens = tmp_path / "new.txt"
    tokens.write_text("shipzz\nsongzz\n")
    run(trained, data, tmp_path / "run", add_tokens=str(tokens), epochs=1.0)
    before, after = weights.open_model(trained), weights.open_model(tmp_path / "run")
    assert after.tokenizer.vocab_size == before.tokenizer.vocab_size + 2
    assert after.tokenizer.encode("the shipzz")[-1] == before.tokenizer.vocab_size
    table = after.params["encoder"]["embeddings"]["token"]
    assert table.shape[0] == after.tokenizer.vocab_size


# Batches.


def test_as_many_programs_are_compiled_as_there_are_widths(trained, data, tmp_path, monkeypatch):
    sizes = []
    real = finetune.train.run

    def spying(trainer, *arguments):
        result = real(trainer, *arguments)
        sizes.append(trainer.step._cache_size())
        return result

    monkeypatch.setattr(finetune.train, "run", spying)
    results = run(trained, data, tmp_path / "run", epochs=1.0)
    padding = results["padding"]
    assert sizes == [padding["widths"]]
    lengths = [len(text.split()) + 2 for _, text in examples(480, 5)]
    assert min(lengths) * 480 < padding["text_tokens"] < padding["computed_tokens"]
    assert padding["computed_without_buckets"] == 30 * 16 * 48
    assert padding["computed_tokens"] <= 480 * buckets.bucket_width(max(lengths) + 6, 48)


def test_eight_devices_give_the_same_result(trained, data, tuned, tmp_path, monkeypatch):
    monkeypatch.undo()
    config = make_config(trained, data=str(data / "classification"))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    results = finetune.finetune(config, tmp_path / "run")
    one = json.loads((tuned["classification"] / "results.json").read_text())
    assert results["scores"]["dev"]["accuracy"] == pytest.approx(
        one["scores"]["dev"]["accuracy"], abs=0.02
    )
    for ours, theirs in zip(
        metrics(tmp_path / "run"), metrics(tuned["classification"]), strict=True
    ):
        if ours["step"] <= 10 and "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


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
            "train.csv, train.jsonl, train.json, train.txt)",
        ),
        ({"dev": "nowhere.tsv"}, "the dev file nowhere.tsv does not exist"),
        ({"max_length": 65}, "max_length=65 is over the 64 positions"),
        ({"batch_size": 15, "accumulation": 2}, "batch_size=15 must divide"),
        ({"custom.text": "sentence"}, "sentence"),
        ({"custom.family": "poetry"}, "custom.family='poetry' is unknown"),
        ({"features": "weighted_last_4"}, "4"),
        ({"features": "first"}, "first"),
        ({"add_tokens": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"task": "sst"}, "task 'sst' is unknown; known: cola, sst2"),
        ({"epochs": 0.0}, "epochs=0"),
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


def test_a_missing_dev_split_says_what_to_do(trained, data, tmp_path):
    config = make_config(trained, train=str(data / "classification" / "train.tsv"))
    with pytest.raises(UserError, match=r"no dev split .*--config\.dev_share=0\.1"):
        finetune.finetune(config, tmp_path / "run")
    config.dev_share = 0.2
    results = finetune.finetune(config, tmp_path / "run")
    counts = results["examples"]
    assert counts["train"] + counts["dev"] == 480
    assert 60 < counts["dev"] < 140


def test_a_label_that_training_never_saw_is_told(trained, data, tmp_path):
    dev = tmp_path / "dev.tsv"
    dev.write_text("text\tlabel\nthe ship sees\tships\nthe wolf leads\thorses\n")
    config = make_config(trained, data=str(data / "classification"), dev=str(dev))
    with pytest.raises(UserError, match=r"dev\.tsv:3: .*horses"):
        finetune.finetune(config, tmp_path / "run")


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


# The config file.


@pytest.mark.parametrize("preset", config_file.PRESETS)
@pytest.mark.parametrize("name", [*tasks.TASKS, "custom"])
def test_every_task_builds(name, preset):
    config = config_file.get_config(f"task={name},preset={preset}")
    assert finetune.build_task(config).name == name
    assert config.max_length <= 512 and config.epochs > 0
    assert config.optimizer.bias_correction == (preset != "paper")


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


def test_every_field_is_read(trained, data, tmp_path, monkeypatch):
    from test_configs import Recorder, field_names

    read: set[str] = set()
    folder = data / "classification"
    for mode in config_file.MODES:
        config = make_config(
            trained, f"task=custom,mode={mode}", data=str(folder), epochs=0.04,
            test=str(folder / "dev.tsv"),
        )  # fmt: skip
        recorder = Recorder(config, read)
        monkeypatch.setattr(finetune, "CONFIG", types.SimpleNamespace(value=recorder))
        workdir = types.SimpleNamespace(value=str(tmp_path / "run"))
        monkeypatch.setattr(finetune, "WORKDIR", workdir)
        finetune.main([])
    assert (tmp_path / "run" / "predict" / "results.json").exists()
    monkeypatch.undo()
    config = Recorder(make_config(trained, train=str(folder / "train.tsv")), read)
    finetune.train.sharding.make_mesh(config.mesh)
    with pytest.raises(UserError, match="dev_share"):
        finetune.read_splits(finetune.build_task(config), config)
    assert field_names(config._config) - read == set()
