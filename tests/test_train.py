"""The loop: it learns, and the layout, the batch's pieces and the speed-ups change nothing."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from taken_steps import difference, gradients, means, steps
from tiny_corpus import make_schedule, make_trainer, one_device, small_config

from bert_jax import main
from bert_jax.common.errors import UserError
from bert_jax.families import build_objective
from bert_jax.training import loop, sharding
from bert_jax.training.checkpoint import Checkpoints, load_params

ROOT = Path(__file__).resolve().parents[1]
NO_DROPOUT = {"model__hidden_dropout": 0.0, "model__attention_dropout": 0.0}


def mesh_of(data: int, fsdp: int, tensor: int):
    return sharding.make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})


def run(config, corpus, workdir, initial=None):
    trainer, phases = make_trainer(config, corpus)
    workdir.mkdir(parents=True, exist_ok=True)
    return loop.run(trainer, phases, make_schedule(config), workdir, initial)


def lines(workdir, split: str) -> list[dict]:
    everything = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in everything if line["split"] == split]


def test_it_learns_the_grammar_of_the_tiny_corpus(corpus, trained):
    """Far above the most frequent token (`the`, a quarter of all) and the unigram loss."""
    losses = [line["mlm_loss"] for line in lines(trained, "train")]
    (held_out,) = lines(trained, "held_out")
    share = corpus.token_counts / corpus.token_counts.sum()
    unigram = -(share[share > 0] * np.log(share[share > 0])).sum()
    print(f"train {losses[0]:.3f} to {losses[-1]:.3f}, unigram {unigram:.3f}; held out {held_out}")
    assert losses[-1] < losses[0] - 0.8
    assert held_out["mlm_loss"] < unigram - 0.4
    assert held_out["mlm_accuracy"] > share.max() + 0.08


# The pieces of a batch.


def test_accumulated_micro_batches_are_the_large_batch(corpus):
    """Also where they hold unequal numbers of predictions: the mean is over the whole batch."""
    config = small_config(**NO_DROPOUT, masking__rate=0.3)
    trainer, phases = make_trainer(config, corpus)
    config.accumulation = 4
    pieces, _ = make_trainer(config, corpus)
    batch = next(phases[0].batches(0, 1))
    batch["weight"] = np.ones(16, np.float32)
    batch["weight"][[0, 4, 8, 1]] = 0  # micro-batch 0 (rows 0, 4, 8, 12) keeps a single row
    seen = trainer.objective.corrupted(jax.tree.map(jnp.asarray, batch), True)
    predictions = [float(seen["weights"][piece::4].sum()) for piece in range(4)]
    assert len(set(predictions)) > 2, predictions
    assert max(predictions) > 3 * min(predictions)
    one, other = (t.step(t.init(), t.put(batch, config.batch_size))[0] for t in (trainer, pieces))
    assert difference(gradients(one), gradients(other)) < 1e-6
    assert difference(one["params"], other["params"]) < 1e-6
    for name, mean in one["window"].items():
        np.testing.assert_allclose(mean.count, other["window"][name].count, rtol=1e-6)
        np.testing.assert_allclose(mean.value(), other["window"][name].value(), rtol=1e-5)


def test_the_loss_is_the_mean_over_predictions_plus_the_mean_over_pairs(corpus):
    trainer, phases = make_trainer(small_config(), corpus)
    window = means(steps(trainer, phases, 1)["window"])
    np.testing.assert_allclose(window["loss"], window["mlm_loss"] + window["nsp_loss"], rtol=1e-6)


# Precision.


def test_a_run_in_bfloat16_follows_that_in_float32(corpus, tmp_path):
    """Parameters and optimiser stay in float32; the rest is rounded to eight bits."""
    grads, losses = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = small_config(dtype=dtype)
        trainer, phases = make_trainer(config, corpus)
        grads[dtype] = gradients(steps(trainer, phases, 1))
        state, held_out = run(config, corpus, tmp_path / dtype)
        kept = jax.tree.leaves((state["params"], state["opt_state"], state["window"]))
        assert {str(leaf.dtype) for leaf in kept} == {"float32", "int32"}  # int32: counters
        losses[dtype] = [line["loss"] for line in lines(tmp_path / dtype, "train")]
        losses[dtype].append(held_out["mlm_loss"])
    ours, exact = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads[dtype])])
        for dtype in ("bfloat16", "float32")
    )
    off = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    print(f"\nbfloat16: gradients off by {off:.1e}, losses {losses}")
    assert 1e-4 < off < 0.03  # rounded, and no more than that
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=5e-3)


def test_a_step_as_it_is_compiled_for_users_is_that_of_the_tests(corpus, corpus_path):
    """The tests compile without optimisation (conftest.py); what users run is optimised."""
    program = (
        "import sys, numpy as np, jax, tiny_corpus, test_train\n"
        "from bert_jax.data.corpus import open_corpus\n"
        "corpus = open_corpus(sys.argv[1])\n"
        "np.save(sys.argv[2], test_train.first_steps(corpus))\n"
    )
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        command = [sys.executable, "-c", program, str(corpus_path), file.name]
        subprocess.run(command, env=environment, check=True)
        optimised = np.load(file.name)
    np.testing.assert_allclose(optimised, first_steps(corpus), rtol=0, atol=2e-5)


def first_steps(corpus) -> np.ndarray:
    """Of two steps, dropout on: the loss of each, the gradients of the first, the parameters."""
    trainer, phases = make_trainer(small_config(), corpus)
    first = steps(trainer, phases, 1)
    figures = [float(first["window"]["loss"].sum), *jax.tree.leaves(gradients(first))]
    second = steps(trainer, phases, 2, first)
    figures += [second["window"]["loss"].sum, *jax.tree.leaves(second["params"])]
    return np.concatenate([np.ravel(x) for x in figures])


# Evaluation.


def test_evaluation_is_the_same_twice_and_for_every_batch_size(corpus):
    """40 instances: three batches of 16, the last with filler rows, or one."""
    results = []
    params = make_trainer(small_config(), corpus)[0].init()["params"]
    for rows in (16, 16, 40):
        trainer, phases = make_trainer(small_config(batch_size=rows), corpus)
        results.append(loop.held_out_means(trainer, params, phases[0]))
    assert results[0] == results[1]
    assert results[2].keys() == results[0].keys()
    for name, value in results[0].items():
        np.testing.assert_allclose(results[2][name], value, rtol=1e-5, err_msg=name)


def test_evaluation_does_not_depend_on_the_seed_or_dropout(corpus):
    trainer, phases = make_trainer(small_config(), corpus)
    params = trainer.init()["params"]
    other, other_phases = make_trainer(small_config(seed=5, **NO_DROPOUT), corpus)
    expected = loop.held_out_means(trainer, params, phases[0])
    assert loop.held_out_means(other, params, other_phases[0]) == expected
    assert {"mlm_loss", "mlm_perplexity", "mlm_accuracy", "nsp_accuracy"} <= expected.keys()
    np.testing.assert_allclose(expected["mlm_perplexity"], np.exp(expected["mlm_loss"]))


# Metrics.


def test_logged_means_are_over_the_steps_since_the_last_log(corpus, tmp_path):
    """Also where a checkpoint falls between two logs, and over the rest at the end."""
    config = small_config(log_every=5, checkpoint_every=2, eval_every=7)
    run(config, corpus, tmp_path)
    logged = lines(tmp_path, "train")
    assert [line["step"] for line in logged] == [5, 10, 12]
    assert [line["step"] for line in lines(tmp_path, "held_out")] == [7, 12]
    run(small_config(log_every=1, checkpoint_every=12), corpus, tmp_path / "every")
    every = lines(tmp_path / "every", "train")
    assert [line["step"] for line in every] == list(range(1, 13))
    rate = make_trainer(config, corpus)[0].learning_rate
    assert [line["learning_rate"] for line in every] == [float(rate(step)) for step in range(12)]
    for line, (begin, end) in zip(logged, [(0, 5), (5, 10), (10, 12)], strict=True):
        for name in ("loss", "grad_norm", "nsp_loss"):  # of one count a step: plain means
            expected = np.mean([every[step][name] for step in range(begin, end)])
            np.testing.assert_allclose(line[name], expected, rtol=1e-5)
        assert line["learning_rate"] == every[end - 1]["learning_rate"]


def test_the_checkpoint_of_the_best_held_out_loss_stays(corpus, tmp_path, monkeypatch):
    """That of the last phase: losses of shorter sequences say something else."""
    losses = iter([1.0, 5.0, 3.0, 4.0])
    monkeypatch.setattr(loop, "held_out_means", lambda *_: {"mlm_loss": next(losses)})
    config = small_config(
        steps=8, eval_every=2, checkpoint_every=1, keep_checkpoints=1,
        short_phase__share=0.5, short_phase__seq_length=16,
    )  # fmt: skip
    trainer, phases = make_trainer(config, corpus)
    loop.run(trainer, phases, main.build_schedule(config, trainer.objective), tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert (checkpoints.steps, checkpoints.by_score()[-1]) == ([6, 8], 6)
    checkpoints.close()
    newest = load_params(tmp_path)
    assert difference(newest, load_params(tmp_path, step=8)) == 0
    assert difference(newest, load_params(tmp_path, best=True)) > 0


# Phases and starting points.


def test_two_phases_change_the_shape_where_the_config_says(corpus):
    config = small_config(
        "size=tiny,phases=true", short_phase__seq_length=16, short_phase__share=0.75
    )
    objective = build_objective(config, corpus.tokenizer.vocabulary)
    phases = main.build_phases(config, corpus, objective, one_device())
    assert [(p.start, p.stop, p.seq_length) for p in phases] == [(0, 9, 16), (9, 12, 32)]
    shapes = [batch["tokens"].shape for p in phases for batch in p.batches(p.start, p.stop)]
    assert shapes == [(16, 16)] * 9 + [(16, 32)] * 3


def test_a_short_phase_may_have_larger_batches(corpus):
    config = small_config(
        "size=tiny,phases=true", steps=4, short_phase__seq_length=16, short_phase__share=0.5,
        short_phase__batch_size=24, short_phase__learning_rate=1e-2,
    )  # fmt: skip
    objective = build_objective(config, corpus.tokenizer.vocabulary)
    first, second = main.build_phases(config, corpus, objective, mesh_of(8, 1, 1))
    shapes = [b["tokens"].shape for p in (first, second) for b in p.batches(p.start, p.stop)]
    assert shapes == [(24, 16)] * 2 + [(16, 32)] * 2
    ids = [i for batch in first.batches(0, 2) for i in batch["instance"].tolist()]
    assert len({tuple(i) for i in ids}) == 48  # each instance once
    trainer, _ = make_trainer(config, corpus, mesh_of(8, 1, 1))
    assert trainer.put(next(first.batches(0, 1)), 24)["tokens"].shape == (24, 16)
    with pytest.raises(UserError, match="batch_size=12 must divide"):
        config.short_phase.batch_size = 12
        main.build_phases(config, corpus, objective, mesh_of(8, 1, 1))


def test_phases_of_the_paper():
    config = small_config("size=tiny,seq=512,phases=true")
    assert (config.short_phase.seq_length, config.short_phase.share) == (128, 0.9)


@pytest.fixture
def saved(corpus, tmp_path):
    """Saves the state after two steps of a config as a run would."""

    def save(arg: str = "size=tiny"):
        trainer, phases = make_trainer(small_config(arg), corpus)
        state = steps(trainer, phases, 2) if arg == "size=tiny" else trainer.init()
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(2, state)
        checkpoints.wait()
        checkpoints.close()
        return state

    return save


def test_init_from_starts_with_the_parameters_and_nothing_else(corpus, saved, tmp_path):
    state = saved()
    trainer, _ = make_trainer(small_config(), corpus)
    fresh = trainer.init(load_params(tmp_path, trainer.abstract_state["params"]))
    assert difference(fresh["params"], state["params"]) == 0
    assert difference(fresh["params"], trainer.init()["params"]) > 0
    assert int(fresh["step"]) == 0
    moments = jax.tree.leaves(fresh["opt_state"])
    assert max(float(jnp.abs(leaf).max()) for leaf in moments) == 0


def test_init_from_another_model_lists_the_differences(corpus, saved, tmp_path):
    saved("size=tiny,nsp=false")
    trainer, _ = make_trainer(small_config(), corpus)
    with pytest.raises(UserError, match="nsp_head/dense/kernel: absent there"):
        load_params(tmp_path, trainer.abstract_state["params"])


def test_init_from_nothing_is_a_user_error(corpus, tmp_path):
    trainer, _ = make_trainer(small_config(), corpus)
    with pytest.raises(UserError, match="no checkpoint"):
        load_params(tmp_path / "none", trainer.abstract_state["params"])
    assert list(tmp_path.iterdir()) == []
