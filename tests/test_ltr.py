"""Left to right: nothing of the right is seen, in pre-training, fine-tuning and use."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_corpus import make_trainer, one_device, small_config

from bert_jax import main
from bert_jax.common.errors import UserError
from bert_jax.families import bert, build_objective
from bert_jax.inference.loading import Model
from bert_jax.models.body import Body
from bert_jax.models.encoder import Encoder, EncoderBackbone, attention_mask
from bert_jax.models.heads import MlmHead
from bert_jax.models.layers import apply
from bert_jax.objectives.finetuning import Classify
from bert_jax.objectives.ltr import LeftToRight
from bert_jax.reports.pretraining import write_report
from bert_jax.training import loop
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.weights.opening import open_model

CONFIG = EncoderBackbone(
    vocab_size=37, layers=2, width=16, heads=2, head_width=8, feed_forward=32, max_positions=12,
    causal=True,
)  # fmt: skip
OBJECTIVE = LeftToRight(CONFIG, never=(2, 3))
LENGTHS = np.array([12, 7, 4], np.int32)
KEY = jax.random.key(3)


def some_batch(seed: int = 0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, CONFIG.vocab_size, (3, 12))
    tokens[:, 0] = 2
    tokens[np.arange(3), LENGTHS - 1] = 3
    tokens[np.arange(12)[None] >= LENGTHS[:, None]] = 0
    ids = {"tokens": tokens, "segments": np.zeros_like(tokens), "lengths": LENGTHS}
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in ids.items()}
    return batch | {"weight": jnp.array([1.0, 1.0, 0.0])}


def larger(init, *arguments):
    """Parameters larger than `init` makes them, so that predictions differ."""
    shapes = nn.unbox(jax.eval_shape(init, KEY, *arguments))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


def hidden(params, batch):
    mask = attention_mask(CONFIG, batch["lengths"], 12)
    return apply(Encoder(CONFIG), params["encoder"], batch["tokens"], batch["segments"], mask)


def test_a_position_sees_what_is_before_it_and_nothing_after():
    params, batch = larger(OBJECTIVE.init, some_batch()), some_batch()
    before = hidden(params, batch)
    for place in (1, 5, 10):
        changed = batch | {"tokens": batch["tokens"].at[0, place].add(1)}
        after = hidden(params, changed)
        np.testing.assert_array_equal(after[0, :place], before[0, :place])
        moved = jnp.abs(after[0, place:] - before[0, place:]).max(axis=-1)
        assert float(moved.min()) > 1e-4


def test_the_loss_is_that_of_every_next_token_but_the_last_sep():
    """Against a loop over prefixes, which hold nothing of what is to be predicted."""
    batch = some_batch()
    params = larger(OBJECTIVE.init, batch)
    table = params["encoder"]["embeddings"]["token"]
    losses, hits = [], []
    for row in range(2):  # the third weighs nothing
        for place in range(1, LENGTHS[row] - 1):
            prefix = batch["tokens"][row : row + 1, :place]
            mask = attention_mask(CONFIG, jnp.array([place]), place)
            inputs = prefix, jnp.zeros_like(prefix), mask
            last = apply(Encoder(CONFIG), params["encoder"], *inputs)[:, -1:]
            logits = apply(MlmHead(CONFIG), params["mlm_head"], last, table)[0, 0]
            token = int(batch["tokens"][row, place])
            losses.append(-float(jax.nn.log_softmax(logits)[token]))
            hits.append(float(jnp.argmax(logits) == token))
    mean, metrics = jax.jit(OBJECTIVE.loss, static_argnums=3)(params, batch, KEY, False)
    assert len(losses) == float(mean.count) == (12 - 2) + (7 - 2)
    assert float(mean.value()) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics["lm_accuracy"].value()) == pytest.approx(np.mean(hits), abs=1e-6)


def test_fine_tuning_is_causal_and_reads_the_last_token():
    """The paper: the left-only mask stays in fine-tuning."""
    objective, batch = Classify(Body(CONFIG), 2), some_batch()
    params = larger(objective.init, batch)
    logits = objective.predict(params, batch)["logits"]
    for row, length in enumerate(LENGTHS):
        for place in (1, length - 1):
            changed = batch | {"tokens": batch["tokens"].at[row, place].add(1)}
            found = objective.predict(params, changed)["logits"][row]
            assert not np.array_equal(found, logits[row])
        if length < 12:
            padding = batch | {"tokens": batch["tokens"].at[row, length].add(1)}
            np.testing.assert_array_equal(
                objective.predict(params, padding)["logits"][row], logits[row]
            )


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """(work directory, final parameters) of a short run that keeps every fourth step."""
    config = small_config(
        "size=tiny,objective=ltr", steps=12, checkpoint_every=5, keep_checkpoints=1, keep_every=4
    )
    workdir = tmp_path_factory.mktemp("ltr")
    corpus.tokenizer.save(workdir / "tokenizer")
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    trainer, phases = make_trainer(config, corpus)
    schedule = loop.Schedule(12, 4, 12, 5, config.keep_checkpoints, config.keep_every)
    state, held_out = loop.run(trainer, phases, schedule, workdir)
    batches = main.held_out_batches(config, corpus, trainer.objective, 32, 16)
    write_report(workdir, corpus, trainer.objective, state["params"], 12, held_out, batches)
    return workdir, state["params"]


def test_a_run_on_contiguous_text_and_its_report(run, corpus):
    workdir, _ = run
    config = small_config("size=tiny,objective=ltr")
    assert not config.nsp and not config.pairs
    _, (phase,) = make_trainer(config, corpus)
    assert "pair_label" not in next(phase.batches(0, 1))
    report = json.loads((workdir / "report.json").read_text())
    assert report["held_out"].keys() == {"lm_loss", "lm_accuracy", "lm_perplexity"}
    # Of its 201 tokens, untrained.
    assert report["baseline"]["lm_loss"] < report["held_out"]["lm_loss"] < 1.1 * np.log(201)
    assert "| LM perplexity |" in (workdir / "report.md").read_text()


def test_every_so_many_steps_a_checkpoint_stays(run):
    """Figure 5 fine-tunes from steps along the way; RUN/checkpoints/STEP names one."""
    workdir, final = run
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    assert checkpoints.steps == [4, 8, 12]
    checkpoints.close()
    one, last, newest = (
        open_model(path)
        for path in (workdir / "checkpoints/4", workdir / "checkpoints/12", workdir)
    )
    for found in (last, newest):
        jax.tree.map(np.testing.assert_array_equal, found.params, jax.device_get(final))
    kernels = [model.params["mlm_head"]["dense"]["kernel"] for model in (one, last)]
    assert not np.array_equal(*kernels)
    with pytest.raises(UserError, match=r"has no checkpoint 5, only 4, 8, 12"):
        open_model(workdir / "checkpoints/5")


def test_what_such_a_model_is_not_for_is_said(run, tmp_path):
    from bert_jax.weights import hugging_face

    model = open_model(run[0])
    assert model.body("float32").backbone.pool == "last"
    with pytest.raises(UserError, match="left to right: it was not trained to fill masks"):
        Model(model.body("float32").backbone, model.params, model.tokenizer).fill_mask("the [MASK]")
    with pytest.raises(UserError, match="looks both ways"):
        hugging_face.write(tmp_path / "hf", model)


def test_models_that_look_both_ways_and_others_do_not_continue_one_another(run, corpus, tmp_path):
    """Their parameters have the same names and shapes."""
    config = small_config("size=tiny,nsp=false", init_from=str(run[0]))
    trainer, _ = make_trainer(config, corpus)
    with pytest.raises(UserError, match=r"has True as its model\.causal"):
        main._initial_params(config, corpus, trainer)


def test_the_two_readings_of_no_nsp(corpus):
    """Pairs without the loss, or contiguous text; neither has parameters for NSP."""
    for changes, pairs in (({"nsp": False}, True), ({"nsp": False, "pairs": False}, False)):
        config = small_config(**changes)
        bert.FAMILY.settings.check(config)
        objective = build_objective(config, corpus.tokenizer.vocabulary)
        (phase,) = main.build_phases(config, corpus, objective, one_device())
        batch = next(phase.batches(0, 1))
        assert ("pair_label" in batch) == bool(np.any(batch["segments"])) == pairs
        params = nn.unbox(jax.eval_shape(objective.init, KEY, batch))
        assert params.keys() == {"encoder", "mlm_head"}
    for changes in ({"pairs": False}, {"model__causal": True}):
        with pytest.raises(UserError, match=r"nsp=true needs pairs=true and model.causal=false"):
            bert.FAMILY.settings.check(small_config(**changes))
