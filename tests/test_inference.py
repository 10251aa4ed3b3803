"""Using a trained model: what comes out is the encoder's, whatever else is in the batch."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpus

import bert_jax
from bert_jax.common.errors import UserError
from bert_jax.models.encoder import Encoder, padding_mask
from bert_jax.models.heads import MlmHead
from bert_jax.models.layers import apply

SHORT = "the old ship"
LONG = "the captain sees the island. the warm song leaves the harborzz. the bee plants the root."
LONGEST = " ".join([LONG] * 8)
MIXED = [LONG, "ship", SHORT, LONGEST, "the bee", LONG + " " + SHORT, "", ("the bee", SHORT), SHORT]


@pytest.fixture(scope="module")
def model(trained):
    return bert_jax.load(str(trained))


def ids(model, text: str) -> list[int]:
    return model.tokenizer.encode(text, special=True)


def direct(model, tokens: list[int], segments: list[int]):
    """The encoder applied to one sequence without padding: [L + 1, S, D]."""
    rows = (jnp.array([tokens]), jnp.array([segments]))
    mask = padding_mask(jnp.array([len(tokens)]), len(tokens))
    encoder, params = Encoder(model.backbone), model.params["encoder"]
    return np.asarray(apply(encoder, params, *rows, mask, every_layer=True))[:, 0]


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_hidden_states_are_those_of_every_layer(model):
    (states,) = model.hidden_states([LONG])
    t = model.tokenizer
    tokens = [t.cls_id, *ids(model, LONG), t.sep_id]
    assert states.shape == (model.backbone.layers + 1, len(tokens), model.backbone.width)
    assert states.dtype == np.float32
    expected = direct(model, tokens, [0] * len(tokens))
    assert_close(states, expected)
    # Embeddings first: they are of the token and its place alone, whatever the other words.
    (other,) = model.hidden_states(["the sailor sees"])
    assert_close(states[0, 1], other[0, 1])
    assert np.abs(states[-1, 1] - other[-1, 1]).max() > 1e-3


def test_a_pair_has_two_segments(model):
    (states,) = model.hidden_states([(SHORT, "the bee")])
    t, first, second = model.tokenizer, ids(model, SHORT), ids(model, "the bee")
    tokens = [t.cls_id, *first, t.sep_id, *second, t.sep_id]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert_close(states, direct(model, tokens, segments))


def test_results_do_not_depend_on_what_else_is_asked(model):
    """Mixed lengths, buckets, filler rows and batch sizes; the order is kept."""
    alone = [model.hidden_states([text])[0] for text in MIXED]
    for batch_size in (1, 4, 32):
        together = model.hidden_states(MIXED, batch_size=batch_size)
        assert len(together) == len(MIXED)
        for one, other in zip(alone, together, strict=True):
            assert one.shape == other.shape
            assert_close(other, one)


def test_embeddings_of_texts(model):
    states = model.hidden_states(MIXED)
    mean, cls = model.embed(MIXED), model.embed(MIXED, pooling="cls")
    assert mean.shape == cls.shape == (len(MIXED), model.backbone.width)
    for row, one in enumerate(states):
        assert_close(mean[row], one[-1].mean(axis=0))
        assert_close(cls[row], one[-1, 0])


def test_nothing_asked_nothing_answered(model):
    assert model.hidden_states([]) == []
    assert model.embed([]).shape == (0, model.backbone.width)


# Length.


@pytest.mark.parametrize("max_length", [2, 5, 64])
def test_long_texts_are_cut_at_their_end(model, max_length):
    (states,) = model.hidden_states([LONGEST], max_length=max_length)
    t = model.tokenizer
    tokens = [t.cls_id, *ids(model, LONGEST)[: max_length - 2], t.sep_id]
    assert_close(states, direct(model, tokens, [0] * max_length))


def test_by_default_texts_are_cut_where_the_model_ends(model):
    assert model.hidden_states([LONGEST])[0].shape[1] == model.backbone.max_positions == 64


@pytest.mark.parametrize(
    ("first", "second", "max_length", "kept"),
    [
        (10, 3, 10, (4, 3)),  # the longer one first
        (3, 10, 10, (3, 4)),
        (6, 6, 10, (4, 3)),  # alike: the second, as released (`_truncate_seq_pair`)
        (6, 6, 9, (3, 3)),
        (6, 6, 4, (1, 0)),
        (2, 2, 7, (2, 2)),
    ],
)
def test_the_longer_text_of_a_pair_is_cut_first(model, first, second, max_length, kept):
    pair = " ".join(["ship"] * first), " ".join(["bee"] * second)
    (encoded,) = model._encode([pair], max_length)
    tokens, segments = encoded["tokens"], encoded["segments"]
    t = model.tokenizer
    ship, bee = ids(model, "ship"), ids(model, "bee")
    assert tokens.tolist() == [t.cls_id, *ship * kept[0], t.sep_id, *bee * kept[1], t.sep_id]
    assert segments.tolist() == [0] * (kept[0] + 2) + [1] * (kept[1] + 1)


@pytest.mark.parametrize("max_length", [-1, 0, 1, 65])
def test_impossible_lengths_are_user_errors(model, max_length):
    with pytest.raises(UserError, match=f"max_length={max_length} must lie between 2 and 64"):
        model.hidden_states([SHORT], max_length=max_length)
    with pytest.raises(UserError, match="between 3 and 64"):
        model.hidden_states([(SHORT, SHORT)], max_length=2)


@pytest.mark.parametrize("item", [(), ["a", "cat", "sat"]])
def test_what_is_neither_a_text_nor_a_pair(model, item):
    with pytest.raises(UserError, match=r"a text or a pair of texts is expected, not [(\[]"):
        model.embed([SHORT, item])


# Filling masks.


def test_masks_of_several_texts(model):
    texts = ["the [MASK]", (SHORT, "a [MASK] [MASK]"), LONG + " [MASK]"]
    several = model.fill_mask(texts, top=3, batch_size=2)
    assert [len(one) for one in several] == [1, 2, 1]
    for one, text in zip(several, texts, strict=True):
        for found, alone in zip(one, model.fill_mask(text, top=3), strict=True):
            assert [guess.token for guess in found] == [guess.token for guess in alone]
            shares = [guess.probability for guess in alone]
            assert_close([guess.probability for guess in found], shares)
    assert model.fill_mask([]) == []
    with pytest.raises(UserError, match=r"no \[MASK\] in the first 5 tokens of texts\[1\]"):
        model.fill_mask(["the [MASK]", SHORT])


def test_probabilities_are_the_softmax_of_the_head(model):
    text = "the old [MASK] sees the [MASK]."
    t = model.tokenizer
    tokens = [t.cls_id, *ids(model, text), t.sep_id]
    last = direct(model, tokens, [0] * len(tokens))[-1]
    places = np.flatnonzero(np.array(tokens) == t.mask_id)
    table = model.params["encoder"]["embeddings"]["token"]
    head = apply(MlmHead(model.backbone), model.params["mlm_head"], last[None, places], table)
    expected = np.asarray(jax.nn.softmax(head))[0]
    answers = model.fill_mask(text, top=7)
    assert len(answers) == 2
    for row, guesses in zip(expected, answers, strict=True):
        assert len(guesses) == 7
        shares = [guess.probability for guess in guesses]
        np.testing.assert_allclose(shares, np.sort(row)[::-1][:7], atol=1e-6)
        assert t.tokens.index(guesses[0].token) == row.argmax()
        assert sum(shares) <= 1 + 1e-6
    every = model.fill_mask(text, top=10_000)[0]
    assert len(every) == t.vocab_size
    assert sum(guess.probability for guess in every) == pytest.approx(1, abs=1e-5)


def test_a_mask_in_the_second_text_of_a_pair(model):
    assert len(model.fill_mask((SHORT, "the [MASK]"), top=3)) == 1


@pytest.mark.parametrize("text", [SHORT, "", LONGEST + " [MASK]", "[mask]"])
def test_no_mask_to_fill_is_a_user_error(model, text):
    with pytest.raises(UserError, match=r"there is no \[MASK\] in the first"):
        model.fill_mask(text)


def test_what_was_learnt_shows(model, corpus):
    """Held-out words are likelier under the model than under their frequency."""
    share = corpus.token_counts / corpus.token_counts.sum()
    known, frequent = [], []
    for number, document in enumerate(tiny_corpus.documents()[::10]):
        words = document[0].split()
        place = number % (len(words) - 1)
        word = words[place].removesuffix("zz")
        text = " ".join([*words[:place], "[MASK]", *words[place + 1 :]])
        guesses = {g.token: g.probability for g in model.fill_mask(text, top=10_000)[0]}
        known.append(np.log(guesses[word]))
        frequent.append(np.log(share[model.tokenizer.tokens.index(word)]))
    print(f"log-likelihood {np.mean(known):.2f}, by frequency {np.mean(frequent):.2f}")
    assert np.mean(known) > np.mean(frequent) + 0.3


# Mistakes.


def test_one_string_is_not_a_list_of_texts(model):
    for method in (model.hidden_states, model.embed):
        with pytest.raises(UserError, match="a list of texts"):
            method(SHORT)
    with pytest.raises(UserError, match="known: mean, cls"):
        model.embed([SHORT], pooling="max")
    for path in (None, 3, [SHORT]):
        with pytest.raises(UserError, match="the path of a model is expected, not"):
            bert_jax.load(path)
    for layer in (7, -4, 1.0, None, "1"):
        with pytest.raises(UserError, match=f"layer {layer}|a layer={layer!r} must be a whole"):
            list(model.activations(model._encode([SHORT], None), [layer]))


def test_folders_that_hold_no_model(trained, tmp_path):
    with pytest.raises(UserError, match="is not a model"):
        bert_jax.load(tmp_path)
    for name in ("config.json", "tokenizer"):
        copy = shutil.copytree if (trained / name).is_dir() else shutil.copy
        copy(trained / name, tmp_path / name)
    with pytest.raises(UserError, match="no checkpoint"):
        bert_jax.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "tokenizer"]
