"""Features of a text file: the encoder's own activations, each text and word in its place."""

import os

import numpy as np
import programs
import pytest

import bert_jax
from bert_jax.common.errors import UserError
from bert_jax.features import write_features

# The second word of the first text is unknown letters: several pieces. The third line is empty.
LINES = ["the shipabc sees", "  bread, and\tthe oven ", "", "the [SEP] harborzz"]
LONG = " ".join(f"the old ship{'' if n % 3 else 'zz'} sees" for n in range(60))


@pytest.fixture(scope="module")
def model(trained):
    return bert_jax.load(str(trained))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(("\ufeff" + "\r\n".join([*LINES, LONG])).encode())
    return path


def features(model, texts, layers=(-1,), **settings):
    output = texts.with_name("out.npz")
    shape = write_features(model, texts, output, layers, **settings)
    with np.load(output, allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["vectors"].shape == shape
    assert arrays["vectors"].dtype == np.float32
    assert arrays["offsets"][-1] == len(arrays["vectors"])
    return arrays


def text_rows(arrays, text, name="vectors"):
    return arrays[name][arrays["offsets"][text] : arrays["offsets"][text + 1]]


def test_vectors_of_pieces_are_the_hidden_states(model, texts):
    layers = [-1, 0, 1, -2]
    arrays = features(model, texts, layers)
    assert arrays["layers"].tolist() == layers
    assert len(arrays["offsets"]) == len(LINES) + 2
    for text in (0, 1):
        (states,) = model.hidden_states([LINES[text]])
        expected = states[layers][:, 1:-1].swapaxes(0, 1)  # without [CLS] and [SEP]
        np.testing.assert_allclose(text_rows(arrays, text), expected, atol=1e-5)
        ids = model.tokenizer.encode(LINES[text])
        assert text_rows(arrays, text, "tokens").tolist() == [
            model.tokenizer.tokens[i] for i in ids
        ]
    assert len(text_rows(arrays, 2)) == 0
    # A special token in a text is text.
    assert "[SEP]" not in arrays["tokens"].tolist()


def test_vectors_of_words_are_those_of_their_first_pieces(model, texts):
    pieces, words = features(model, texts), features(model, texts, level="words")
    for text, line in enumerate([*LINES, LONG]):
        assert text_rows(words, text, "tokens").tolist() == line.split()
        firsts = []
        for word in line.split():
            firsts += [True] + [False] * (len(model.tokenizer.encode(word)) - 1)
        np.testing.assert_array_equal(text_rows(words, text), text_rows(pieces, text)[firsts])


def test_vectors_of_texts_are_the_means_of_their_pieces(model, texts):
    pieces, whole = features(model, texts), features(model, texts, level="text")
    assert whole["vectors"].shape[0] == len(LINES) + 1
    assert len(whole["tokens"]) == 0
    for text in (0, 1, 3, 4):
        expected = text_rows(pieces, text).mean(axis=0)
        np.testing.assert_allclose(whole["vectors"][text], expected, atol=1e-5)
    assert not whole["vectors"][2].any()


def test_long_texts_are_read_in_windows(model, texts):
    """Each piece has its vector from the window in which it is farthest from the edges."""
    arrays = features(model, texts, max_length=34)
    ids = model.tokenizer.encode(LONG)
    assert len(ids) > 200
    rows = text_rows(arrays, 4)
    assert len(rows) == len(ids)
    first = model.hidden_states([LONG], max_length=34)[0][-1]
    np.testing.assert_allclose(rows[:16, 0], first[1:17], atol=1e-5)
    # Embeddings of a piece are of its own id, wherever its window begins.
    by_model = features(model, texts, [0], max_length=34)
    for place in (0, 50, len(ids) - 1):
        window = text_rows(by_model, 4)[place, 0]
        tokens = {"tokens": np.full(34, ids[place], np.int32), "segments": np.zeros(34, int)}
        ((_, states),) = model.activations([tokens], [0])
        assert np.abs(states[0] - window).max(axis=1).min() < 1e-5


def test_results_do_not_depend_on_the_size_of_chunks(model, texts, monkeypatch):
    before = features(model, texts, level="words")
    monkeypatch.setattr("bert_jax.features._CHUNK", 2)
    after = features(model, texts, level="words")
    for name, array in before.items():
        if name == "vectors":
            np.testing.assert_allclose(after[name], array, atol=1e-5)
        else:
            np.testing.assert_array_equal(after[name], array)


# Mistakes; nothing is left half-written.


@pytest.mark.parametrize("layer", [3, -4])
def test_layers_that_are_not_there(model, texts, layer):
    with pytest.raises(UserError, match=rf"no layer {layer}: the model has 0 \(embeddings\) to 2"):
        features(model, texts, [-1, layer])
    features(model, texts, [2, -3])


def test_no_layers(model, texts):
    with pytest.raises(UserError, match="--layers names no layer"):
        features(model, texts, [])


def test_what_can_be_read_once_only_is_refused(model, tmp_path):
    pipe, output = tmp_path / "pipe", tmp_path / "out.npz"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="pipe is not a file, which can be read twice"):
        write_features(model, pipe, output, [-1])
    assert not output.exists()


def test_a_file_that_changes_meanwhile_leaves_nothing(model, texts, monkeypatch):
    def grow(*args):
        texts.write_text("one line\n")
        return real(*args)

    real = bert_jax.features._vectors
    monkeypatch.setattr(bert_jax.features, "_vectors", grow)
    with pytest.raises(UserError, match=r"texts\.txt changed while it was read"):
        features(model, texts)
    assert {path.name for path in texts.parent.iterdir()} == {"texts.txt"}


@pytest.mark.parametrize("max_length", [2, 65])
def test_lengths_that_cannot_be(model, texts, max_length):
    with pytest.raises(UserError, match=f"max_length={max_length} must lie between 3 and 64"):
        features(model, texts, max_length=max_length)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (None, "cannot be read: No such file"),
        (b"the ship\n\xff\xfe\n", r"bad:2: not UTF-8"),
    ],
)
def test_input_that_is_no_text(model, tmp_path, content, message):
    path = tmp_path / "bad"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        features(model, path)
    assert not [file for file in tmp_path.iterdir() if file != path]


def test_a_failure_leaves_the_old_file(model, texts, monkeypatch):
    features(model, texts)
    before = texts.with_name("out.npz").read_bytes()

    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "activations", broken)
    with pytest.raises(RuntimeError):
        features(model, texts)
    assert texts.with_name("out.npz").read_bytes() == before
    assert sorted(file.name for file in texts.parent.iterdir()) == ["out.npz", "texts.txt"]


def test_only_empty_lines_have_no_rows(model, tmp_path):
    path = tmp_path / "blank"
    path.write_text("\n\n")
    arrays = features(model, path)
    assert arrays["vectors"].shape == (0, 1, 64)
    assert arrays["offsets"].tolist() == [0, 0, 0]


def test_the_command(trained, texts):
    output = texts.with_name("made") / "out.npz"
    where = [f"--checkpoint={trained}", f"--input={texts}", f"--output={output}"]
    done = programs.run("-m", "bert_jax.features", *where, "--layers=-1,-2", "--level=words")
    assert done.returncode == 0, done.stderr
    assert "rows x 2 layers x 64" in done.stderr
    with np.load(output) as file:
        assert file["layers"].tolist() == [-1, -2]
    wrong = programs.run("-m", "bert_jax.features", *where, "--layers=last")
    assert (wrong.returncode, wrong.stderr) == (2, "error: --layers=last must be numbers: -1,-2\n")
