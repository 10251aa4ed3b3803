"""Every field of every config has its row; wrong values and settings without effect are told."""

import contextlib
import math
import random
import re

import pytest
from kinds import settings_of
from tiny_corpus import small_config
from tiny_model import random_params
from tiny_tasks import make_config, write_classification

from bert_jax import finetune, main, reproduce
from bert_jax.common.errors import UserError
from bert_jax.common.fields import flat
from bert_jax.families import bert, build_objective, encoder
from bert_jax.preparing.settings import PREPARE
from bert_jax.preparing.sources import find_files
from bert_jax.tasks import get_task
from bert_jax.training import optim, sharding
from bert_jax.weights import opening, store
from configs import finetune as finetune_file
from configs import prepare as prepare_file
from configs import pretrain as pretrain_file
from configs import reproduce as reproduce_file

CONFIGS = {
    "pretrain": pretrain_file.get_config("size=tiny"),
    "ltr": pretrain_file.get_config("size=tiny,objective=ltr,phases=true"),
    "finetune": finetune_file.get_config("task=mrpc"),
    "custom": finetune_file.get_config("task=custom,family=choice"),
    "prepare": prepare_file.get_config("source=text"),
    "reproduce": reproduce_file.get_config("table=5,tasks=mrpc+squad1"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_has_a_row_and_every_row_a_field(name):
    assert {field for field, _ in flat(CONFIGS[name])} == set(settings_of(CONFIGS[name]).rows)


@pytest.mark.parametrize(
    "config",
    [
        *(
            pretrain_file.get_config(f"preset={preset},objective={objective},phases={phases},seq=512")
            for preset in bert.PRESETS
            for objective in ("mlm", "ltr")
            for phases in ("true", "false")
        ),
        *(
            finetune_file.get_config(f"preset={preset},task={task}")
            for preset in finetune_file.PRESETS
            for task in ("custom", "squad2", "conll2003", "swag", "klue_ner")
        ),
        *(prepare_file.get_config(f"source={source}") for source in ("pydocs", "text", "tfds")),
    ],
)  # fmt: skip
def test_shipped_configs_are_in_range(config):
    settings_of(config).check(config)


# Wrong values.

_NUMBERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 10**6, 2**31 - 1, 2**31, 2**63, 10**30]
_REALS = [
    math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 5e-324, 1e-9, 0.5, 1.0, 1.5, 7.0, 1e6, 1e38,
    1e39, 1e308,
]  # fmt: skip
_TEXTS = [
    "", " ", ",", "a,,b", "a,a", "none", "x" * 5000, "\0", "a\nb", "é", "\udcff", "/dev/null",
    ".", "..", "text", "label", "text,label", "*", "[", "{", "%s", "true", "-1", "train.tsv",
    "folder", "adam", "gpt", "abc", "~",
]  # fmt: skip


def told(message: str):
    """Expects a UserError with the message in it, or none where it is empty."""
    if not message:
        return contextlib.nullcontext()
    return pytest.raises(UserError, match=re.escape(message))


def draw(rng: random.Random, value):
    """A value of the field's type, mostly a wrong one."""
    if isinstance(value, bool) or value is None:
        return rng.choice([True, False])
    return rng.choice(_REALS if isinstance(value, float) else
                      _NUMBERS if isinstance(value, int) else _TEXTS)  # fmt: skip


@pytest.fixture(scope="module")
def checks(corpus, corpus_path, tmp_path_factory):
    """A valid config of each kind, and all that its entry checks before it writes anything."""
    folder = tmp_path_factory.mktemp("wrong")
    for split in ("train", "dev"):
        write_classification(folder, 8, 1, split)
    (folder / "folder").mkdir()
    (folder / "a.txt").write_text("a b\n\nc d\n")
    small = small_config().model.to_dict()
    network = encoder.backbone(small, corpus.tokenizer.vocab_size, "float32")
    model = store.Pretrained(small, random_params(network), corpus.tokenizer)
    real = opening.open_model
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(opening, "open_model", lambda path: model if path == "MODEL" else real(path))

    def pretraining(config, chosen):
        bert.FAMILY.settings.check(config, chosen)
        objective = build_objective(config, corpus.tokenizer.vocabulary)
        mesh = sharding.make_mesh(config.mesh)
        main.build_phases(config, corpus, objective, mesh)
        main.build_schedule(config, objective)
        optim.optimizer(config.optimizer, optim.schedule(config, config.steps))
        bert.FAMILY.settings.never_reached(config, config.steps, chosen)

    def preparing(config, chosen):
        PREPARE.check(config, chosen)
        find_files(config.input, config.source)

    def reproducing(config, chosen):
        reproduce.check_chosen(config, chosen)
        reproduce.layout(config)

    one_task = reproduce_file.get_config("table=5,tasks=cola")
    one_task.pretraining.corpus = str(corpus_path)
    custom = make_config("MODEL", data=str(folder), epochs=0.5)
    yield [
        (small_config(corpus=str(corpus_path)), pretraining),
        (custom, lambda config, chosen: finetune.read_inputs(config, None, chosen)),
        (prepare_file.get_config("source=text"), preparing),
        (one_task, reproducing),
    ]
    patch.undo()


def test_two_thousand_wrong_settings_are_one_line_each(checks):
    """None is a traceback; a message of the table itself names a field that was set."""
    rng = random.Random(0)
    refused = 0
    for number in range(2000):
        valid, check = checks[number % len(checks)]
        config = valid.copy_and_resolve_references()
        fields = rng.sample(sorted(settings_of(config).rows), rng.choice([1, 1, 2]))
        changes = {name: draw(rng, dict(flat(config))[name]) for name in fields}
        with contextlib.suppress(TypeError, OverflowError):  # ConfigDict's own refusal
            config.update_from_flattened_dict(changes)
        try:
            check(config, list(changes))
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, (changes, str(error))
        except Exception as error:
            raise AssertionError(f"{changes} is a {type(error).__name__}: {error}") from error
    assert refused > 1000, refused


# Settings that have no effect, or that cannot be meant.

_PRETRAIN = [
    ("objective=ltr", {"masking.rate": 0.3}, "masking.rate has no effect with model.causal=true"),
    ("objective=ltr", {"masking.mask_share": 0.5}, "masking.mask_share has no effect with"),
    ("objective=ltr", {"masking.random_share": 0.0}, "masking.random_share has no effect with"),
    ("objective=ltr", {"masking.whole_word": True}, "masking.whole_word has no effect with"),
    ("objective=ltr", {"masking.max_predictions": 3}, "max_predictions has no effect with"),
    ("objective=ltr", {"nsp": True}, "nsp=true needs pairs=true"),
    ("objective=ltr", {"short_seq_prob": 0.3}, "short_seq_prob has no effect with pairs=false"),
    ("nsp=false", {"nsp_exact_half": True}, "nsp_exact_half has no effect with pairs=false"),
    ("", {"masking.rate": 0.0}, "masking.rate=0 must be above 0"),
    ("", {"short_phase.seq_length": 64}, "short_phase.seq_length has no effect without a short"),
    ("", {"short_phase.batch_size": 64}, "short_phase.batch_size has no effect without a short"),
    ("", {"short_phase.learning_rate": 1e-3}, "learning_rate has no effect without a short phase"),
    ("phases=true", {"short_phase.warmup_steps": 9.0}, "without short_phase.learning_rate"),
    ("phases=true", {"short_phase.share": 1.0}, "short_phase.share=1 must be below 1"),
    (
        "", {"short_phase.share": 0.01, "steps": 9, "short_phase.seq_length": 8},
        "short_phase.seq_length has no effect as short_phase.share=0.01 of steps=9 is none",
    ),
    ("", {"optimizer.weight_decay": 0.0, "optimizer.decay_all": True}, "decay_all has no effect"),
    ("", {"warmup_steps": 0.0, "optimizer.decay_from": "warmup"}, "decay_from has no effect with"),
    ("", {"init_from": "RUN", "model.init_stddev": 0.1}, "init_stddev has no effect with init"),
    ("", {"model.layers": 1, "model.scan_layers": True}, "scan_layers has no effect with"),
    ("", {"masking.mask_share": 0.95}, "mask_share and masking.random_share are over 1 together"),
    ("", {"warmup_steps": 1.5}, "warmup_steps=1.5 is a number of steps from 1 on, so whole"),
    ("", {"keep_every": 7, "checkpoint_every": 5, "steps": 20}, ""),
]  # fmt: skip
_FINETUNE = [
    ("task=mrpc", {"custom.text": "a"}, "custom.text has no effect on task=mrpc: it is for task="),
    ("task=custom", {"custom.joined": True}, "on a custom task of the family classification"),
    ("task=custom", {"custom.family": "choice"}, "custom.family is given after the colon"),
    ("task=mrpc", {"task": "rte"}, "task is given after the colon: --config=configs/finetune.py"),
    ("task=custom,family=tagging", {"custom.joined": True}, ""),
    ("task=custom", {"custom.separator": ";"}, "separator has no effect without custom.kind=multi"),
    ("task=custom", {"custom.separator": ";", "custom.kind": "multi"}, ""),
    ("task=mrpc", {"bilstm_width": 8}, "bilstm_width has no effect without a BiLSTM"),
    ("task=mrpc", {"bilstm_width": 8, "bilstm": 1}, ""),
    ("task=mrpc", {"features": "last", "remat": True}, "remat has no effect with features=last"),
    ("task=mrpc", {"from_scratch": True, "reinit_layers": 1}, "reinit_layers has no effect with"),
    ("task=mrpc", {"dev": "a.tsv", "dev_share": 0.1}, "dev_share has no effect with a dev file"),
    ("task=mrpc", {"seed": 3}, ""),
]
_PREPARE = [
    ("source=text", {"vocab": "v.txt", "vocab_size": 99}, "vocab_size has no effect with vocab"),
    ("source=text", {"vocab": "v.txt", "vocab_kind": "unigram"}, "vocab_kind has no effect with"),
    ("source=text", {"vocab": "v.txt", "vocab_sample_mb": 9}, "vocab_sample_mb has no effect"),
    ("source=text", {"text_feature": "body"}, "text_feature has no effect on source=text"),
    ("source=text", {"text_feature": "body", "input": "tfds:x"}, ""),
    ("source=pydocs", {"on_error": "skip"}, "on_error has no effect on source=pydocs"),
    ("source=text", {"input": "a.txt,,b.txt"}, "input=a.txt,,b.txt: a pattern between the commas"),
    ("source=text", {"input": "a.txt, a.txt"}, "is empty, or comes twice"),
]


@pytest.mark.parametrize(
    ("file", "arg", "changes", "message"),
    [
        *((pretrain_file, *case) for case in _PRETRAIN),
        *((finetune_file, *case) for case in _FINETUNE),
        *((prepare_file, *case) for case in _PREPARE),
    ],
)
def test_settings_that_change_nothing_are_refused(file, arg, changes, message):
    config = file.get_config(arg)
    config.update_from_flattened_dict(changes)
    with told(message):
        settings_of(config).check(config, list(changes))


def test_a_field_that_acts_in_one_row_of_a_table_is_not_refused():
    config = reproduce_file.get_config("table=5,tasks=mrpc")  # a row has a BiLSTM
    reproduce.check_chosen(config, ["finetuning.mrpc.bilstm_width"])
    reproduce.check_chosen(config, ["pretraining.masking.rate"])  # LTR is one row of several
    for chosen, message in (
        ("finetuning.mrpc.remat", ""),
        ("finetuning.mrpc.custom.text", "has no effect on task=mrpc"),
        ("pretraining.keep_every", "--config.pretraining.keep_every has no effect"),
        ("pretraining.nsp_exact_half", ""),
    ):
        with told(message):
            reproduce.check_chosen(config, [chosen])
    config = reproduce_file.get_config("table=2,tasks=squad1")
    config.checkpoint = "MODEL"
    for chosen, message in (
        ("glue", "glue has no effect: none of the tasks is of GLUE"),
        ("grid", "grid has no effect: none of the tasks is of GLUE"),
        ("pretraining.steps", "has no effect: the table is of --config.checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            reproduce.check_chosen(config, [chosen])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log_every": 50}, "log_every=50 is over the 20 steps"),
        ({"eval_every": 21}, "eval_every=21 is over the 20 steps"),
        ({"checkpoint_every": 99}, "checkpoint_every=99 is over"),
        ({"keep_every": 30}, "keep_every=30 is over"),
        ({"warmup_steps": 20.0}, "the learning rate never comes to its peak"),
        ({"log_every": 20, "warmup_steps": 19.0, "eval_every": 7}, None),
    ],
)
def test_what_a_run_never_comes_to_is_told(changes, said):
    config = pretrain_file.get_config("size=tiny")
    config.update_from_flattened_dict(changes)
    lines = bert.FAMILY.settings.never_reached(config, 20, changes)
    assert len(lines) == bool(said) and (not said or said in lines[0])
    assert bert.FAMILY.settings.never_reached(config, 20, ["steps"]) == []  # not set by the user


@pytest.mark.parametrize("how", ["same", "link", "folder", "copy"])
def test_scores_are_not_of_the_training_examples(how, tmp_path, capsys):
    write_classification(tmp_path, 8, 1, "train")
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    files = {"train": str(train), "dev": str(dev)}
    if how == "same":
        files["dev"] = str(tmp_path / ".." / tmp_path.name / "train.tsv")
    elif how == "copy":
        dev.write_bytes(train.read_bytes())
    else:
        dev.symlink_to(train)
    config = make_config("MODEL", **({"data": str(tmp_path)} if how == "folder" else files))
    if how == "copy":
        finetune.read_splits(finetune.build_task(config), config)
        assert "holds the same as the train file" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=r"the dev file .* is the train file.*dev_share=0\.1"):
            finetune.read_splits(finetune.build_task(config), config)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("classification", {"text": "label"}, "name the column 'label' twice"),
        ("classification", {"pair": "text"}, "name the column 'text' twice"),
        ("classification", {"label": "a,a", "kind": "numbers"}, "name the column 'a' twice"),
        ("classification", {"label": "a,,b", "kind": "numbers"}, "must not be empty"),
        ("choice", {"endings": "a,a"}, "custom.endings=a,a: a name .* comes twice"),
        ("choice", {"endings": "a,,b"}, "custom.endings=a,,b: a name .* is empty"),
        ("choice", {"endings": "a,b", "labels": "A,A"}, "custom.labels=A,A: a name"),
        ("choice", {"endings": "a,prompt"}, "name the column 'prompt' twice"),
        ("choice", {"endings": "a,b", "label": "a"}, "name the column 'a' twice"),
        ("choice", {"prompt": ""}, "custom.prompt and custom.label must not be empty"),
    ],
)
def test_columns_of_a_custom_task_are_apart(family, changes, message):
    with pytest.raises(UserError, match=message):
        get_task("custom", {"family": family, **changes})
