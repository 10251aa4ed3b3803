"""The shipped config: it builds in every variant, at full size, and every field of it is read."""

import itertools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import tiny_corpus
from ml_collections import ConfigDict

from bert_jax import main
from bert_jax.common.errors import UserError
from bert_jax.common.fields import Settings
from bert_jax.data.template import Vocabulary
from bert_jax.families import bert, build_objective, encoder
from bert_jax.families.bert import SIZES
from bert_jax.objectives.base import Metric
from bert_jax.reports import pretraining
from bert_jax.training import optim
from bert_jax.training.config import parse_arg, stretches
from configs import pretrain

VOCABULARY = Vocabulary(  # of bert-base-uncased
    30522, {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}, np.zeros(30522, bool)
)


LOSS = Metric("mlm_loss", "MLM loss", "lower")


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes(arg: str, seq_length: int, rows: int = 2):
    """Parameters, loss and metrics of the real objective, as shapes; nothing is computed."""
    objective = build_objective(pretrain.get_config(arg), VOCABULARY)
    rowwise = {"tokens": (seq_length,), "segments": (seq_length,), "lengths": (), "instance": (2,)}
    rowwise |= {"pair_label": ()}
    batch = {n: jax.ShapeDtypeStruct((rows, *s), jnp.int32) for n, s in rowwise.items()}
    batch["weight"] = jax.ShapeDtypeStruct((rows,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = nn.meta.unbox(jax.eval_shape(objective.init, key, batch))
    return params, *jax.eval_shape(
        lambda *arguments: objective.loss(*arguments, True), params, batch, key
    )


@pytest.mark.parametrize("nsp", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_at_full_scale(size, nsp, golden):
    """Parameters as many as `BertForPreTraining` has, whose count is stored with the goldens."""
    params, loss, metrics = shapes(f"size={size},nsp={nsp},seq=512", 512)
    layers, width, heads = SIZES[size].values()
    head = (width * width + width) + (2 * width + 2) if nsp else 0  # pooler and classifier
    expected = int(golden("bert_counts")[size]) - (0 if nsp else width * width + 3 * width + 2)
    assert count(params) == expected
    assert head == (width * width + 3 * width + 2 if nsp else 0)
    assert len([name for name in params["encoder"] if name.startswith("layer_")]) == layers
    kernel = params["encoder"]["layer_0"]["attention"]["query"]["kernel"]
    assert kernel.shape == (width, heads, width // heads)
    assert loss.sum.shape == ((2,) if nsp else (1,))
    names = {"mlm_loss", "mlm_accuracy"} | ({"nsp_loss", "nsp_accuracy"} if nsp else set())
    assert metrics.keys() == names


def test_published_sizes():
    """Parameters of the released checkpoints, in millions (encoder and pooler 109.5, 335.1)."""
    for size, millions in {"base": 110.1, "large": 336.2}.items():
        assert count(shapes(f"size={size}", 128)[0]) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("preset", bert.PRESETS)
def test_the_state_of_every_preset(preset):
    """Both moments of every parameter, of Adam and of LAMB."""
    config = pretrain.get_config(f"size=base,preset={preset}")
    params = shapes("size=base", 128)[0]
    transform = optim.optimizer(config.optimizer, optim.schedule(config, config.steps))
    state = jax.eval_shape(transform.init, params)
    assert count(jax.tree.leaves(state)) - 2 * count(params) in (1, 2)  # counts of steps


def test_left_to_right_at_full_scale():
    params, loss, metrics = shapes("size=base,objective=ltr,nsp=false", 512)
    assert params.keys() == {"encoder", "mlm_head"} and loss.sum.shape == ()
    assert metrics.keys() == {"lm_loss", "lm_accuracy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.clip_norm": -1.0}, "optimizer.clip_norm=-1 must be at least 0"),
        ({"optimizer.beta1": 1.0}, "optimizer.beta1=1 must be below 1"),
        ({"optimizer.weight_decay": -0.01}, "optimizer.weight_decay=-0.01 must be at least 0"),
        ({"model.init_stddev": 0.0}, "model.init_stddev=0 must be above 0"),
        ({"model.hidden_dropout": 1.0}, "model.hidden_dropout=1 must be below 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes, message):
    config = pretrain.get_config("size=tiny")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        bert.FAMILY.settings.check(config)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ({"platform": "cpu"}, "float32"),
        ({"platform": "tpu"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "9.0"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "7.5"}, "float32"),  # T4
        ({"platform": "gpu", "compute_capability": "gfx942"}, "bfloat16"),
    ],
)
def test_the_precision_is_what_the_device_has_units_for(device, dtype, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(**device)])
    model = pretrain.get_config("size=tiny").model
    assert encoder.backbone(model.to_dict(), 100, "auto").dtype == dtype


@pytest.mark.parametrize("phases", [True, False])
@pytest.mark.parametrize("preset", bert.PRESETS)
def test_every_preset_builds(preset, phases, corpus):
    mesh = tiny_corpus.one_device()
    for size, nsp in itertools.product(SIZES, (True, False)):
        config = pretrain.get_config(
            f"size={size},preset={preset},nsp={nsp},phases={phases},seq=256"
        )
        bert.FAMILY.settings.check(config)
        objective = build_objective(config, corpus.tokenizer.vocabulary)
        plan = [(p.start, p.stop, p.seq_length)
                for p in main.build_phases(config, corpus, objective, mesh)]  # fmt: skip
        switch = 7038 if preset == "lamb" else round(0.9 * config.steps)
        both = [(0, switch, 128), (switch, config.steps, 256)]
        assert plan == (both if phases else [(0, config.steps, 256)])
        assert objective.nsp == nsp
        assert 1 <= config.checkpoint_every <= config.steps


def test_lamb_preset_is_the_large_batch_recipe():
    """64k sequences of 128 tokens, then 32k of 512, each with a schedule of its own."""
    config = pretrain.get_config("size=large,seq=512,phases=true,preset=lamb")
    assert stretches(config) == [(0, 7038, 128, 65_536), (7038, 8601, 512, 32_768)]
    assert config.optimizer.name == "lamb"
    rate = optim.schedule(config, config.steps)
    warm = round(0.2843 * 7038), 7038 + round(0.128 * 1563)
    assert rate(0) == 0 and rate(7038) == 0
    assert float(rate(warm[0])) == pytest.approx(6e-3) and rate(warm[0] - 1) < 6e-3
    assert float(rate(warm[1])) == pytest.approx(4e-3) and rate(warm[1] - 1) < 4e-3
    assert float(rate(7037)) == pytest.approx(6e-3 / (7038 - warm[0]))
    assert rate(8601) == 0


def test_paper_preset_is_the_paper():
    """Appendix A.2 and the released code (C4, C5)."""
    config = pretrain.get_config("phases=true,seq=512")
    assert (config.batch_size, config.steps, config.learning_rate) == (256, 1_000_000, 1e-4)
    assert dict(config.optimizer) == {
        "name": "adamw", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.01,
        "decay_all": False, "clip_norm": 1.0, "bias_correction": False, "decay_from": "start",
    }  # fmt: skip
    assert dict(config.masking) == {
        "rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "whole_word": False,
        "max_predictions": 0, "dupe_factor": 0,
    }  # fmt: skip
    assert (config.model.hidden_dropout, config.model.attention_dropout) == (0.1, 0.1)
    assert (config.model.activation, config.model.max_positions) == ("gelu", 512)
    assert (config.short_seq_prob, config.nsp) == (0.1, True)


def test_the_paper_warms_up_for_a_hundredth_of_its_steps():
    config = pretrain.get_config("preset=paper")
    given = (config.learning_rate, config.steps, config.warmup_steps)
    rates = [optim.learning_rate(*given)(step) for step in (5_000, 9_999, 10_000)]
    np.testing.assert_allclose(rates, [5e-5, 9.999e-5, 9.9e-5], rtol=1e-6)


# Arguments.


def test_arguments_take_the_type_of_their_default():
    known = {"size": "base", "seq": 128, "rate": 0.5, "nsp": True}
    parsed = parse_arg("size=tiny,seq=64,rate=1,nsp=false", **known)
    assert vars(parsed) == {"size": "tiny", "seq": 64, "rate": 1.0, "nsp": False}
    assert isinstance(parsed.rate, float)
    assert vars(parse_arg(None, **known)) == vars(parse_arg("", **known)) == known
    assert parse_arg("nsp", nsp=False).nsp is True


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("sise=base", "'sise' is unknown; known: family, size, seq, preset, phases, nsp"),
        ("base", "'base' is unknown"),
        ("size=huge", "size 'huge' is unknown; known: tiny, mini"),
        ("preset=best", "preset 'best' is unknown; known: paper"),
        ("seq=long", "seq takes a value of type int"),
        ("seq=1.5", "seq takes a value of type int"),
        ("seq=", "seq takes a value of type int"),
        ("seq", "seq takes a value of type int"),
        ("nsp=perhaps", "nsp takes a value of type bool"),
        ("size", "size takes a value of type str"),
    ],
)
def test_wrong_arguments_are_user_errors(arg, message):
    with pytest.raises(UserError, match=message):
        pretrain.get_config(arg)


# Fields.


class Recorder:
    """A config that notes which of its fields are read."""

    def __init__(self, config: ConfigDict, read: set[str], section: str = ""):
        self._config, self._read, self._section = config, read, section

    def __getattr__(self, name):
        value = getattr(self._config, name)
        if isinstance(value, ConfigDict):
            return Recorder(value, self._read, f"{name}.")
        self._read.add(self._section + name)
        return value

    __getitem__ = __getattr__

    def get(self, name, default):
        return getattr(self, name, default)

    def __contains__(self, name):
        return name in self._config

    def to_dict(self):
        """Of `model`: as a whole into EncoderBackbone, which takes no field it does not know."""
        if self._section:
            self._read.update(self._section + name for name in self._config)
        return self._config.to_dict()


def field_names(config, section: str = "") -> set[str]:
    return {
        full
        for name, value in config.items()
        for full in (
            field_names(value, f"{name}.") if isinstance(value, ConfigDict) else {section + name}
        )
    }


def test_every_field_is_read_by_a_run(corpus_path, tmp_path, monkeypatch):
    """A field that nobody reads would be a setting without an effect."""
    read: set[str] = set()
    config = tiny_corpus.small_config(corpus=str(corpus_path))
    recorder = Recorder(config, read)
    monkeypatch.setattr(main, "read_config", lambda *_: recorder)
    monkeypatch.setattr(main, "WORKDIR", types.SimpleNamespace(value=str(tmp_path / "run")))
    monkeypatch.setattr(Settings, "check", lambda *_: None)
    monkeypatch.setattr(main, "changed", dict)  # there is no command line
    monkeypatch.setattr(main.loop, "run", lambda *arguments: ({"params": {}}, {}))
    monkeypatch.setattr(main, "write_report", lambda *arguments: None)
    cache = jax.config.jax_compilation_cache_dir
    main.main()
    jax.config.update("jax_compilation_cache_dir", cache)
    assert field_names(config) - read == set()
    assert (tmp_path / "run" / "config.json").exists()


def test_fields_are_locked():
    config = tiny_corpus.small_config()
    for change in ({"batchsize": 8}, {"model.with": 8}):
        with pytest.raises((AttributeError, KeyError)):
            config.update_from_flattened_dict(change)
    with pytest.raises(TypeError):
        config.batch_size = "many"


@pytest.mark.parametrize(
    ("command", "given", "needed"),
    [
        ("bert_jax.main", "finetune.py:task=mrpc", "configs/pretrain.py"),
        ("bert_jax.finetune", "pretrain.py", "configs/finetune.py"),
        ("bert_jax.prepare", "pretrain.py", "configs/prepare.py"),
    ],
)
def test_the_config_of_another_command_is_told(tmp_path, command, given, needed):
    folder = "out" if "prepare" in command else "workdir"
    done = programs.run("-m", command, f"--config=configs/{given}", f"--{folder}", tmp_path / "new")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and needed in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("steps", "every"), [(None, (100_000, 50_000)), (20_000, (2_000, 1_000)), (7, (1, 1))]
)
def test_evaluations_and_checkpoints_follow_the_steps(steps, every):
    config = pretrain.get_config("size=base")
    if steps:
        config.steps = steps
    assert (config.eval_every, config.checkpoint_every) == every
    config.eval_every = 3
    assert config.to_dict()["eval_every"] == 3


# What a run says of itself.


def test_passes_over_the_corpus_are_told(corpus):
    mesh = tiny_corpus.one_device()
    for arg, changes, shown in (
        ("size=tiny", {}, "12 steps of 16 sequences: "),
        (
            "size=tiny,phases=true",
            {"short_phase.seq_length": 16, "short_phase.share": 0.5, "short_phase.batch_size": 32},
            "6 steps of 32 sequences of 16 tokens, then 6 steps of 16 sequences of 32 tokens: ",
        ),
    ):
        config = tiny_corpus.small_config(
            arg, **{n.replace(".", "__"): v for n, v in changes.items()}
        )
        objective = build_objective(config, corpus.tokenizer.vocabulary)
        phases = main.build_phases(config, corpus, objective, mesh)
        line = main.passes(phases)
        total = sum((p.stop - p.start) * p.batch_size / p.per_pass() for p in phases)
        assert line == f"{shown}{total:.1f} passes over the corpus" and 0.1 < total < 5


def test_a_model_no_better_than_frequencies_is_told():
    unigram = {"mlm_loss": 5.0}
    assert pretraining.no_better(LOSS, {"mlm_loss": 4.9}, unigram) == ""
    for loss in (5.0, 7.0, float("nan")):
        said = pretraining.no_better(LOSS, {"mlm_loss": loss}, unigram)
        assert "is no better than 5.000, that of the tokens' frequencies alone" in said
