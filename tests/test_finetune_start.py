"""Where fine-tuning starts: which weights are taken, new or frozen, and what the batches hold."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny_tasks import bits, examples, make_config, run

from bert_jax import finetune, tasks
from bert_jax.tasks.classification import Classification
from bert_jax.training.checkpoint import Checkpoints, load_params
from bert_jax.weights import finetune_start, opening

pytestmark = pytest.mark.usefixtures("on_first_device")


# Weights.


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


def test_a_head_is_kept_where_its_outputs_mean_the_same():
    def numbers(label):
        return Classification.custom(label=label, kind="numbers")

    before = json.loads(json.dumps(tasks.to_dict(numbers("ease,length"))))
    assert finetune_start.same_labels(before, numbers("ease,length"))
    assert not finetune_start.same_labels(before, numbers("length,ease"))
    assert not finetune_start.same_labels(before, numbers("ease"))
    named = dataclasses.replace(Classification.custom(label="topic"), labels=("a", "b"))
    before = json.loads(json.dumps(tasks.to_dict(named)))
    assert finetune_start.same_labels(before, dataclasses.replace(named, label=(("subject",),)))
    assert not finetune_start.same_labels(before, dataclasses.replace(named, labels=("b", "a")))
    assert finetune_start.same_labels(tasks.to_dict(named), named)  # as of a Hugging Face folder


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


def test_a_frozen_encoder_stays_and_has_no_optimiser_state(trained, data, tmp_path):
    results = run(
        trained, data, tmp_path / "run", "tagging", features="last", bilstm=1, bilstm_width=32,
        epochs=2.0,
    )  # fmt: skip
    assert results["scores"]["dev"]["f1"] > 0.8
    before, after = load_params(trained), load_params(tmp_path / "run")
    assert bits(before["encoder"]) == bits(after["encoder"])
    assert set(after) == {"encoder", "bilstm", "tag_head"}
    folder = tmp_path / "run" / "checkpoints"
    newest = folder / str(Checkpoints(folder, read_only=True).steps[-1])
    stored = ocp.metadata(newest, checkpointable_name="state").metadata["state"]
    leaves = jax.tree.leaves_with_path(stored["opt_state"])
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert any("tag_head" in name for name in names)
    assert not any("encoder" in name for name in names)


@pytest.mark.parametrize(
    "settings", [{"bilstm": 1, "bilstm_width": 32}, {"features": "second_to_last", "bilstm": 1}]
)
def test_the_pooler_of_other_vectors_is_made_new(trained, data, tmp_path, capsys, settings):
    """Whether its shape would fit or not."""
    width = load_params(trained)["pooler"]["dense"]["bias"].shape[0]
    tuning = {"bilstm_width": width, "epochs": 0.04, **settings}
    config = make_config(trained, data=str(data / "classification"), **tuning)
    finetune.finetune(config, tmp_path / "run")
    assert "new, from random: bilstm, classifier, pooler;" in capsys.readouterr().err


def test_new_tokens_are_learnt_and_stay_with_the_model(trained, data, tmp_path):
    tokens = tmp_path / "new.txt"
    tokens.write_text("shipzz\nsongzz\n")
    run(trained, data, tmp_path / "run", add_tokens=str(tokens), epochs=1.0)
    before, after = opening.open_model(trained), opening.open_model(tmp_path / "run")
    assert after.tokenizer.vocab_size == before.tokenizer.vocab_size + 2
    assert after.tokenizer.encode("the shipzz")[-1] == before.tokenizer.vocab_size
    table = after.params["encoder"]["embeddings"]["token"]
    assert table.shape[0] == after.tokenizer.vocab_size


# Batches.


def test_what_is_cut_is_counted(trained, data, tmp_path, capsys):
    run(trained, data, tmp_path / "run", epochs=0.04, max_length=9)
    said = capsys.readouterr().err
    tokenizer = opening.open_model(trained).tokenizer
    for split, count in (("train", 480), ("dev", 60)):
        texts = [text for _, text in examples(count, len(split))]
        cut = sum(len(ids) > 7 for ids in tokenizer.encode_batch(texts))
        assert 0 < cut < count
        line = (
            f"{split}: {cut} of {count} examples are over max_length=9 and were cut; "
            "--config.max_length can be up to 64\n"
        )
        assert said.count(line) == 1


def test_as_many_programs_are_compiled_as_there_are_widths(trained, data, tmp_path, monkeypatch):
    sizes = []
    real = finetune.loop.run

    def spying(trainer, *arguments):
        result = real(trainer, *arguments)
        sizes.append(trainer._compiled_step._cache_size())
        return result

    monkeypatch.setattr(finetune.loop, "run", spying)
    results = run(trained, data, tmp_path / "run", epochs=1.0)
    padding = results["padding"]
    assert sizes == [padding["widths"]]
    lengths = [len(text.split()) + 2 for _, text in examples(480, 5)]
    assert min(lengths) * 480 < padding["text_tokens"] < padding["computed_tokens"]
    assert padding["computed_without_buckets"] == 30 * 16 * 48
    assert padding["computed_tokens"] <= 480 * 48


def test_another_seed_or_schedule_needs_no_other_program(trained, data, tmp_path, monkeypatch):
    """Else each run of a sweep would compile its own."""
    batches, programs = [], set()

    def lowering(trainer, phases, *rest):
        batches.append(trainer.put(next(phases[0].batches(0, 1)), phases[0].batch_size))
        programs.add(trainer.lower(batches[0]).as_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune.loop, "run", lowering)
    for seed, rate, epochs in ((0, 1e-3, 6.0), (1, 1e-3, 6.0), (0, 1e-4, 3.0)):
        changes = {"seed": seed, "learning_rate": rate, "epochs": epochs}
        config = make_config(trained, data=str(data / "classification"), **changes)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(config, tmp_path / str(len(batches)))
    assert len(batches) == 3
    assert len(programs) == 1
