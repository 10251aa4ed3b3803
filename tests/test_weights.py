"""Models in and out: runs, parts of models, new tokens, and pre-training from any folder."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import GOLDEN, plain, same
from tiny_corpus import make_trainer, small_config, tokenizer

from bert_jax import main, tasks
from bert_jax.common.errors import UserError
from bert_jax.data.tokenizer import wordpiece_tokenizer
from bert_jax.preparing.vocabulary import train_vocabulary
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.workdir import prepare_workdir
from bert_jax.weights import hugging_face
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import Pretrained, add_tokens, merge, read_tokens, save_model

# Our own folders.


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """(work directory of a run of pre-training at its first step, its parameters)."""
    workdir, config = tmp_path_factory.mktemp("run"), small_config()
    trainer, _ = make_trainer(config, corpus)
    state = trainer.init()
    prepare_workdir(workdir, config.to_dict(), (), corpus.tokenizer)
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(0, state)
    checkpoints.wait()
    checkpoints.close()
    return workdir, plain(state["params"])


def test_a_run_opens_and_is_saved_again(run, tmp_path):
    model = open_model(run[0])
    assert same(model.params, run[1])
    assert {type(leaf) for leaf in jax.tree.leaves(model.params)} == {np.ndarray}  # on the host
    assert model.tokenizer.tokens == tokenizer().tokens
    assert model.task is None and model.notes == ()
    tagger = dataclasses.replace(open_model(GOLDEN / "tagging"), notes=())
    for number, one in enumerate([model, tagger]):
        save_model(tmp_path / str(number), one)
        again = open_model(tmp_path / str(number))
        assert same(plain(again.params), plain(one.params))
        assert dict(again.model) == dict(one.model)
        assert again.tokenizer.tokens == one.tokenizer.tokens
    assert tasks.from_dict(again.task) == tasks.from_dict(tagger.task)
    assert again.max_length == tagger.model["max_positions"]
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


@pytest.mark.parametrize("write", [save_model, hugging_face.write])
def test_nothing_is_overwritten_and_nothing_half_written(write, tmp_path, monkeypatch):
    model = open_model(GOLDEN / "encoder")
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        write(full, model)
    broken = dataclasses.replace(model, tokenizer=None)
    with pytest.raises(AttributeError):
        write(tmp_path / "new", broken)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", model)
    assert same(plain(open_model(tmp_path / "empty").params), plain(model.params))
    assert {path.name for path in tmp_path.iterdir()} == {"full", "empty"}


def test_how_a_model_was_fine_tuned_is_kept_or_refused(tmp_path):
    tuning = {"features": "second_to_last", "bilstm": 0, "bilstm_width": 8, "max_length": 12}
    model = dataclasses.replace(open_model(GOLDEN / "tagging"), tuning=tuning)
    save_model(tmp_path / "run", model)
    again = open_model(tmp_path / "run")
    assert again.tuning == tuning and again.max_length == 12
    assert again.body("float32").features == "second_to_last"
    with pytest.raises(UserError, match="whose head reads features=second_to_last"):
        hugging_face.write(tmp_path / "out", again)


def changed_copy(source: Path, folder: Path, **changes) -> Path:
    """A copy of a run whose `model` section has other values; ...: without the field."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= changes
    config["model"] = {name: v for name, v in config["model"].items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": "x"}, r"config\.json: model: layers: a whole number is expected, a text is"),
        ({"layers": ...}, r"config\.json: model: the field 'layers' is missing"),
        ({"width": -16}, r"config\.json: model: width: a whole number >= 1 is expected"),
        ({"norm_epsilon": None}, r"config\.json: model: norm_epsilon: a number is expected, null"),
        ({"layers": 3}, r"encoder/layer_2/.*: absent there, \(16,\) here"),
        ({"max_positions": 63}, r"embeddings/position: \(64, 16\) there, \(63, 16\) here"),
        ({"segment_types": 1}, r"embeddings/segment: \(2, 16\) there, \(1, 16\) here"),
    ],
)
def test_a_run_that_is_not_as_its_config_says_is_one_line(run, tmp_path, changes, reason):
    with pytest.raises(UserError, match=reason) as error:
        open_model(changed_copy(run[0], tmp_path / "copy", **changes))
    assert "\n" not in str(error.value) and str(tmp_path / "copy") in str(error.value)


def test_a_run_with_the_tokenizer_of_another_is_refused(run, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    words = tokenizer().tokens
    wordpiece_tokenizer(words[:-1]).save(copy / "tokenizer")
    with pytest.raises(UserError, match=r"embeddings/token: \(172, 16\) there, \(171, 16\) here"):
        open_model(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_of_weights_that_are_no_numbers_is_refused(run, tmp_path, value):
    model = open_model(run[0])
    broken = jax.tree.map(np.copy, dict(model.params))
    broken["encoder"]["layer_1"]["attention_norm"]["scale"][3] = value
    save_model(tmp_path / "nan", dataclasses.replace(model, params=broken))
    hugging_face.write(tmp_path / "hf", dataclasses.replace(model, params=broken))
    for folder in ("nan", "hf"):
        with pytest.raises(UserError, match="layer_1/attention_norm/scale holds NaN or infinities"):
            open_model(tmp_path / folder)


def test_folders_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a model.*no folder with files in it"):
        open_model(tmp_path)
    with pytest.raises(UserError, match="is not a model"):
        open_model(tmp_path / "absent")
    for name in ("pytorch_model.bin", "vocab.txt"):
        (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / "vocab.txt"):
        with pytest.raises(
            UserError, match=r"is not a model: .*pytorch_model.bin; vocab.txt|no fold"
        ):
            open_model(path)


# Given parts in a fresh tree.


def test_merge_takes_what_is_given_and_names_the_rest():
    given = open_model(GOLDEN / "pretraining").params
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
    head = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    shared = ("encoder", "pooler")
    fresh = {name: shapes[name] for name in shared} | {"classifier": head}
    params, new, unused = merge(fresh, given)
    assert (new, unused) == (["classifier"], ["mlm_head", "nsp_head"])
    assert params["classifier"] is head
    assert same(
        {n: params[n] for n in ("encoder", "pooler")}, {n: given[n] for n in ("encoder", "pooler")}
    )
    params["encoder"]["layer_0"] = None  # the tree is the caller's own
    assert given["encoder"]["layer_0"] is not None


def test_merge_refuses_what_does_not_fit():
    given = open_model(GOLDEN / "pretraining").params
    other = {**given, "pooler": {"dense": {"kernel": np.ones((16, 8)), "bias": np.ones(16)}}}
    with pytest.raises(UserError, match=r"RUN: .*pooler/dense/kernel: \(16, 16\) there, \(16, 8\)"):
        merge(other, given, "RUN")
    one_layer = {**given, "encoder": {**given["encoder"]}}
    del one_layer["encoder"]["layer_1"]
    with pytest.raises(UserError, match=r"layer_1/.*: absent there"):
        merge(given, one_layer)
    with pytest.raises(UserError, match="encoder"):
        merge(given, {"pooler": given["pooler"]})


# New tokens.


def test_embeddings_of_new_tokens_follow_the_seed():
    model = open_model(GOLDEN / "encoder")
    rows = [
        add_tokens(model, ["zzyzx"], seed).params["encoder"]["embeddings"]["token"][-1]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])


def test_new_tokens_are_whole_words_at_the_end(tmp_path):
    old = open_model(GOLDEN / "pretraining")
    old = dataclasses.replace(old, model={**old.model, "init_stddev": 0.5})
    words = [f"word{number}" for number in range(60)]
    model = add_tokens(old, ["covid-19", "the", "She", "한국", *words], seed=3)
    first = old.tokenizer.vocab_size
    assert model.tokenizer.tokens[:first] == old.tokenizer.tokens
    assert model.tokenizer.tokens[first:] == ["covid-19", "한국", *words]
    the = old.tokenizer.tokens.index("the")
    assert model.tokenizer.encode("the COVID-19") == [the, first]
    assert model.tokenizer.encode("covid-19, 한국.")[::2] == [first, first + 1]
    assert not {first, first + 1} & set(model.tokenizer.encode("covid-19s xcovid-19 한국이"))
    assert model.notes[-1] == "tokens that the vocabulary has already: the; She"
    twice = add_tokens(add_tokens(old, ["Zika", "zika"]), ["ZIKA", "Zika"])
    assert twice.tokenizer.tokens[first:] == ["Zika"]  # any of them is matched as this one
    for text in ("the of to", "she was it.", "as hes, [SEP]"):
        assert model.tokenizer.encode(text) == old.tokenizer.encode(text)

    table = model.params["encoder"]["embeddings"]["token"]
    assert np.array_equal(table[:first], old.params["encoder"]["embeddings"]["token"])
    rows = table[first:]
    assert rows.shape == (62, 16) and rows.dtype == np.float32
    assert np.abs(rows).max() <= 1.0 and abs(rows.std() / (0.5 * 0.88) - 1) < 0.1
    bias = model.params["mlm_head"]["bias"]
    assert np.array_equal(bias, np.append(old.params["mlm_head"]["bias"], np.zeros(62)))
    assert same(old.params, open_model(GOLDEN / "pretraining").params)
    again = add_tokens(old, ["covid-19", "한국", *words], seed=3)
    assert same(again.params, model.params)

    texts = ["the COVID-19 한국 word7 word70", "she-covid-19"]
    ids = model.tokenizer.encode_batch(texts)
    save_model(tmp_path / "run", model)
    hugging_face.write(tmp_path / "hf", model)
    for folder in ("run", "hf"):
        opened = open_model(tmp_path / folder)
        assert same(plain(opened.params), plain(model.params))
        assert opened.tokenizer.encode_batch(texts) == ids
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["vocab_size"] == first + 62
    assert first + 62 == len((tmp_path / "hf" / "vocab.txt").read_text().split("\n")) - 1


def test_new_tokens_of_a_unigram_vocabulary(tmp_path):
    """A word that it has as `▁word` is not new; a new one begins a word and leaves no ▁ behind."""
    rng = random.Random(0)
    words = ["seoul", "busan", "hello", "world", "paris", "rome", "zebra", "fox", "house"]
    sample = tmp_path / "sample.txt"
    sample.write_text("\n".join(" ".join(rng.choices(words, k=9)) for _ in range(3000)) + "\n")
    trained = train_vocabulary([sample], "unigram", 120, True, tmp_path)
    assert "▁seoul" in trained.tokens
    table = np.zeros((trained.vocab_size, 4), np.float32)
    old = Pretrained({"init_stddev": 0.02}, {"encoder": {"embeddings": {"token": table}}}, trained)
    model = add_tokens(old, ["seoul", "covid"])
    assert model.notes[-1] == "tokens that the vocabulary has already: seoul"
    grown = model.tokenizer
    assert grown.tokens[-1] == "covid" and not grown.continuation[-1]
    pieces = [grown.tokens[i] for i in grown.encode("hello seoul covid fox")]
    assert pieces == ["▁hello", "▁seoul", "covid", "▁fox"]
    for text in ("hello covid fox", "covid fox covid", "hello seoul"):
        assert grown.decode(grown.encode(text)) == text
    assert grown.decode([grown.cls_id, *grown.encode("covid"), grown.sep_id]) == "covid"


def test_a_vocabulary_with_a_token_twice_takes_no_new_ones():
    old = open_model(GOLDEN / "pretraining")
    twice = wordpiece_tokenizer([*old.tokenizer.tokens[:-2], "the", old.tokenizer.tokens[-1]])
    with pytest.raises(UserError, match="holds a token twice"):
        add_tokens(dataclasses.replace(old, tokenizer=twice), ["zika"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n\ntwo\n", r"tokens.txt:2: the line is empty"),
        ("one\ntwo words\n", r"tokens.txt:2: 'two words' has a space inside"),
        ("one\ntwo\none\n", r"tokens.txt:3: 'one' is in line 1 already"),
        ("", "has no tokens"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_files_of_tokens_are_checked(text, message, tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_tokens(path)


def test_files_of_tokens(tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_bytes("\ufeffone\r\n둘 \nthree".encode())
    assert read_tokens(path) == ["one", "둘", "three"]
    with pytest.raises(UserError, match=r"none.txt does not exist"):
        read_tokens(tmp_path / "none.txt")


# Pre-training from a folder of any kind.


def test_pretraining_starts_from_a_hugging_face_folder(corpus, run, tmp_path, capsys):
    model = open_model(run[0])
    hugging_face.write(tmp_path / "hf", model)

    def start(source: Path, arg: str = "size=tiny", **changes):
        config = small_config(arg, **changes)
        trainer, _ = make_trainer(config, corpus)
        config.init_from = str(source)
        return main._initial_params(config, corpus, trainer)

    params = start(tmp_path / "hf")
    assert same(plain(params), plain(model.params))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert set(start(tmp_path / "hf", "size=tiny,nsp=false")) == {"encoder", "mlm_head"}
    assert "init_from: nsp_head is not used" in capsys.readouterr().err

    with pytest.raises(UserError, match=r"has gelu as its model.activation"):
        start(tmp_path / "hf", model__activation="gelu_tanh")
    with pytest.raises(UserError, match="has another vocabulary"):
        start(GOLDEN / "pretraining")
    headless = {name: model.params[name] for name in ("encoder", "pooler")}
    save_model(tmp_path / "headless", dataclasses.replace(model, params=headless))
    with pytest.raises(UserError, match="lacks mlm_head, nsp_head"):
        start(tmp_path / "headless")


def test_a_start_that_was_killed_early_can_be_repeated(corpus, tmp_path):
    (tmp_path / ".task.json.0123.unfinished").write_text("{")
    (tmp_path / ".tokenizer.0123.unfinished").mkdir()
    prepare_workdir(tmp_path, {"seed": 0}, (), corpus.tokenizer)
    assert (tmp_path / "config.json").exists()
