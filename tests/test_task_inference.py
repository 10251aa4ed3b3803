"""Using a fine-tuned model: answers in the order of the questions, in characters of the text."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpus

import bert_jax
from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.buckets import collate, ladder
from bert_jax.families import encoder
from bert_jax.inference.loading import Model
from bert_jax.models.body import Body
from bert_jax.models.encoder import Encoder
from bert_jax.tasks.base import encode_pairs
from bert_jax.tasks.choice import Choice
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.squad import Answering
from bert_jax.tasks.tagging import Tagging
from bert_jax.weights import hugging_face, opening, store

NAMES = ("sea", "land", "sky")
SINGLE = dataclasses.replace(Classification.custom(), labels=NAMES)
PAIR = dataclasses.replace(Classification.custom(pair="text2"), labels=NAMES)
MULTI = dataclasses.replace(Classification.custom(kind="multi"), labels=NAMES)
NUMBERS = Classification.custom(label="calm,wet", kind="numbers")
TAGGING = Tagging(name="custom", labels=("O", "B-THING", "I-THING"))
ROWS = jnp.zeros((1, 4), jnp.int32)
TEXTS = ["the old ship", "", "the bee sees the root. " * 30, "song", "the captain fears the storm."]


@pytest.fixture(scope="module")
def pretrained():
    """A random encoder with the tiny corpus's vocabulary."""
    model, tokenizer = tiny_corpus.small_config().model.to_dict(), tiny_corpus.tokenizer()
    network = encoder.backbone(model, tokenizer.vocab_size, "float32")
    shapes = jax.eval_shape(Encoder(network).init, jax.random.key(0), ROWS, ROWS, None)["params"]
    return store.Pretrained(model, {"encoder": randomised(nn.unbox(shapes))}, tokenizer)


def randomised(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.fixture
def fine_tuned(pretrained, tmp_path):
    """Makes a folder with a random head on the encoder, and opens it."""

    def make(task, **settings):
        body = Body(encoder_of(pretrained), **settings)
        example = {"tokens": ROWS, "segments": ROWS, "lengths": jnp.array([4])}
        shapes = nn.unbox(jax.eval_shape(task.objective(body).init, jax.random.key(0), example))
        params = {**randomised(shapes), **pretrained.params}
        row, tuning = tasks.to_dict(task), {"max_length": 32, **settings}
        model = dataclasses.replace(pretrained, params=params, task=row, tuning=tuning)
        store.save_model(tmp_path / "run", model)
        return bert_jax.load(str(tmp_path / "run"))

    return make


def encoder_of(pretrained):
    return encoder.backbone(pretrained.model, pretrained.tokenizer.vocab_size, "float32")


@pytest.fixture
def plain(pretrained):
    """The same without a task."""
    return Model(encoder_of(pretrained), pretrained.params, pretrained.tokenizer)


def token(model, word):
    return model.tokenizer.tokens.index(word)


def direct(model, task, body, texts):
    """Logits of texts by the objective itself, in one batch."""
    features = encode_pairs(texts, model.tokenizer, 32)
    batch = collate([feature.arrays for feature in features], len(texts), 0, ladder(32))
    return np.float64(jax.jit(task.objective(body).predict)(model.params, batch)["logits"])


# Labels.


@pytest.mark.parametrize("settings", [{}, {"features": "last", "bilstm": 1, "bilstm_width": 6}])
def test_probabilities_are_the_softmax_of_the_head(fine_tuned, settings):
    """Also of frozen features, whose settings are those of the run."""
    model = fine_tuned(SINGLE, **settings)
    logits = direct(model, SINGLE, Body(model.backbone, **settings), [[text] for text in TEXTS])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for batch_size in (2, 32):
        labels = model.classify(TEXTS, batch_size=batch_size)
        assert [row.label for row in labels] == [NAMES[i] for i in logits.argmax(axis=1)]
        found = [[row.probabilities[name] for name in NAMES] for row in labels]
        np.testing.assert_allclose(found, shares, atol=1e-5)
    assert model.classify([]) == []


def test_several_labels(fine_tuned, pretrained):
    body = Body(encoder_of(pretrained))
    several = fine_tuned(MULTI)
    logits = direct(several, MULTI, body, [[text] for text in TEXTS])
    for row, label in zip(logits, several.classify(TEXTS), strict=True):
        assert label.label == tuple(name for name, x in zip(NAMES, row, strict=True) if x > 0)
        expected = 1 / (1 + np.exp(-row))
        np.testing.assert_allclose(list(label.probabilities.values()), expected, atol=1e-5)


def test_numbers(fine_tuned, pretrained):
    model = fine_tuned(NUMBERS)
    logits = direct(model, NUMBERS, Body(encoder_of(pretrained)), [[text] for text in TEXTS])
    labels = model.classify(TEXTS)
    np.testing.assert_allclose([label.label for label in labels], logits, atol=1e-5)
    assert all(label.probabilities == {} for label in labels)


def test_numbers_in_the_unit_of_the_files(fine_tuned, pretrained, tmp_path):
    """In a folder of transformers the head itself gives them, as there nothing else would."""
    task = dataclasses.replace(NUMBERS, scales=((54.0, 44.0), (-1.0, 0.25)))
    model = fine_tuned(task)
    logits = direct(model, task, Body(encoder_of(pretrained)), [[text] for text in TEXTS])
    expected = logits * [44.0, 0.25] + [54.0, -1.0]
    numbers = [label.label for label in model.classify(TEXTS)]
    np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=1e-4)
    hugging_face.write(tmp_path / "hf", opening.open_model(tmp_path / "run"))
    elsewhere = bert_jax.load(tmp_path / "hf")
    assert elsewhere.task == dataclasses.replace(task, scales=())
    found = direct(elsewhere, elsewhere.task, Body(elsewhere.backbone), [[text] for text in TEXTS])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        [label.label for label in elsewhere.classify(TEXTS)], numbers, rtol=1e-5, atol=1e-4
    )


def test_pairs(fine_tuned, pretrained):
    model = fine_tuned(PAIR)
    pairs = [("the ship", "the harbor"), ("the harbor", "the ship"), ("the bee", "")]
    logits = direct(model, PAIR, Body(encoder_of(pretrained)), pairs)
    labels = model.classify(pairs)
    assert [label.label for label in labels] == [NAMES[i] for i in logits.argmax(axis=1)]
    with pytest.raises(UserError, match="fine-tuned on pairs of texts; 'the ship' is none"):
        model.classify(["the ship"])
    # Of a model from elsewhere nobody knows which it takes.
    model.task = dataclasses.replace(PAIR, texts=())
    either = model.classify([*pairs, "the ship"])
    assert [label.label for label in either[:3]] == [label.label for label in labels]
    with pytest.raises(UserError, match="is none"):
        model.classify([("a", "b", "c")])


def test_the_encoder_can_be_used_as_before(fine_tuned, plain):
    model = fine_tuned(SINGLE)
    np.testing.assert_array_equal(model.embed(TEXTS), plain.embed(TEXTS))
    with pytest.raises(UserError, match="no masked-LM head"):
        model.fill_mask("the [MASK]")
    with pytest.raises(UserError, match="a list of texts"):
        model.classify("the ship")


# Answers. The model's scores are given, so that what is right is known.

CONTEXT = "The old captain " + "sees the ship and " * 40 + "enters the  Harbor, at night."


def finds(model, *words):
    """Scores that are high where a word begins and ends; of earlier words the highest."""

    def predict(params, batch):
        tokens = batch["tokens"]
        scores = sum((20 - n) * (tokens == token(model, w)) for n, w in enumerate(words))
        scores = np.where(np.arange(tokens.shape[1]) < batch["lengths"][:, None], scores, -1e9)
        scores[:, 0] = 5  # no answer
        return {"start": scores, "end": scores}

    return predict


def test_answers_are_places_in_long_contexts(fine_tuned, monkeypatch):
    model = fine_tuned(Answering(doc_stride=8, max_query=8))
    monkeypatch.setattr(model, "_predict", finds(model, "harbor", "captain"))
    answer = model.answer("the what", CONTEXT, n_best=2)
    assert answer.text == "Harbor"
    assert CONTEXT[answer.start : answer.end] == "Harbor"
    assert [text for text, _ in answer.n_best] == ["Harbor", "captain"]
    assert answer.probability == answer.n_best[0][1]
    # exp(2·20) against exp(2·19), the rest is far below.
    np.testing.assert_allclose(answer.probability, 1 / (1 + np.exp(-2)), atol=1e-3)


def test_lists_of_questions_keep_their_order(fine_tuned, monkeypatch):
    model = fine_tuned(Answering(doc_stride=8, max_query=8))
    monkeypatch.setattr(model, "_predict", finds(model, "harbor", "captain"))
    contexts = ["the captain sees", CONTEXT, "a harbor", "the captain " * 30]
    answers = model.answer(["what"] * 4, contexts, batch_size=4)
    assert [answer.text for answer in answers] == ["captain", "Harbor", "harbor", "captain"]
    for answer, context in zip(answers, contexts, strict=True):
        assert context[answer.start : answer.end] == answer.text
        assert len(answer.n_best) == 1
    assert [a.text for a in model.answer(["what", "who"], CONTEXT)] == ["Harbor"] * 2
    assert model.answer([], []) == []


def test_questions_without_an_answer(fine_tuned, monkeypatch):
    model = fine_tuned(Answering(unanswerable=True))
    monkeypatch.setattr(model, "_predict", finds(model, "harbor"))
    with_one, without, empty = model.answer(["what"] * 3, ["the harbor", "the bee", ""], n_best=3)
    assert with_one.text == "harbor"
    assert (without.text, without.start, without.end) == ("", -1, -1)
    assert without.probability > 0.99
    assert (empty.text, empty.start) == ("", -1)


def test_the_threshold_is_that_of_the_run(fine_tuned, monkeypatch):
    """Here no answer has 2·5 and the answer 2·20: odds of -30."""
    model = fine_tuned(Answering(unanswerable=True, threshold=-31.0))
    monkeypatch.setattr(model, "_predict", finds(model, "harbor"))
    answer = model.answer("what", "the harbor", n_best=1)
    assert (answer.text, answer.start) == ("", -1)
    assert answer.n_best[0][0] == "harbor"


def test_a_threshold_lets_a_model_from_elsewhere_answer_nothing(fine_tuned, monkeypatch):
    """A Hugging Face folder of SQuAD 2 is like one of SQuAD 1."""
    model = fine_tuned(Answering())
    monkeypatch.setattr(model, "_predict", finds(model, "harbor"))
    contexts = ["the harbor", "the bee"]
    assert all(answer.text for answer in model.answer(["what"] * 2, contexts))
    found = model.answer(["what"] * 2, contexts, threshold=0.0)
    assert [(answer.text, answer.start) for answer in found] == [("harbor", 4), ("", -1)]
    assert model.answer("what", "the harbor", threshold=-31.0).text == ""


def test_questions_and_contexts_must_match(fine_tuned):
    model = fine_tuned(Answering())
    with pytest.raises(UserError, match="2 questions and 3 contexts are given"):
        model.answer(["a", "b"], ["c", "d", "e"])


# Tags.


def tags_words(model):
    """B-THING for `old`, I-THING for `ship` and `bee`."""

    def predict(params, batch):
        tokens = batch["tokens"]
        logits = np.zeros((*tokens.shape, 3), np.float32)
        logits[tokens == token(model, "old"), 1] = 5
        for word in ("ship", "bee"):
            logits[tokens == token(model, word), 2] = 5
        return {"logits": logits}

    return predict


def test_entities_are_places_in_the_text(fine_tuned, monkeypatch):
    model = fine_tuned(TAGGING)
    monkeypatch.setattr(model, "_predict", tags_words(model))
    long = "the root " * 50 + "Old  ship"
    texts = ["the  old ship sees\ta bee", "", long, ["the", "old", "bee"]]
    short, empty, last, words = model.tag(texts)
    assert short.words == ("the", "old", "ship", "sees", "a", "bee")
    assert short.tags == ("O", "B-THING", "I-THING", "O", "O", "I-THING")
    found = [(entity.type, entity.text) for entity in short.entities]
    assert found == [("THING", "old ship"), ("THING", "bee")]
    assert (empty.words, empty.tags, empty.entities) == ((), (), ())
    assert len(last.words) == 102
    assert [entity.text for entity in last.entities] == ["Old  ship"]
    assert (words.text, words.entities[0].text) == ("the old bee", "old bee")
    for tagged in (short, last, words):
        for entity in tagged.entities:
            assert tagged.text[entity.start : entity.end] == entity.text


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        (("O", "PER", "LOC"), [("PER", "old"), ("LOC", "ship bee")]),
        (("O", "PER", "B-LOC"), [("LOC", "ship"), ("LOC", "bee")]),
    ],
    ids=["plain", "mixed"],
)
def test_plain_labels_are_types_of_entities(fine_tuned, monkeypatch, labels, entities):
    """As taggers from elsewhere may have them, but not beside labels with B- or I-."""
    model = fine_tuned(Tagging(name="custom", labels=labels))
    monkeypatch.setattr(model, "_predict", tags_words(model))
    (tagged,) = model.tag(["the old ship bee sees"])
    assert tagged.tags == ("O", labels[1], labels[2], labels[2], "O")
    assert [(entity.type, entity.text) for entity in tagged.entities] == entities


def test_running_text_has_tags_of_characters(fine_tuned, monkeypatch):
    model = fine_tuned(dataclasses.replace(TAGGING, joined=True))
    monkeypatch.setattr(model, "_predict", tags_words(model))
    (tagged,) = model.tag(["an old shipzz."])
    assert "".join(tagged.words) == "an old shipzz."
    assert [(e.text, e.start, e.end) for e in tagged.entities] == [("old ship", 3, 11)]


# Choices.


def test_choices_of_any_number(fine_tuned, monkeypatch):
    model = fine_tuned(Choice("custom"))

    def predict(params, batch):
        assert batch["tokens"].ndim == 3
        return {"logits": (batch["tokens"] == token(model, "bee")).sum(axis=-1).astype(np.float32)}

    monkeypatch.setattr(model, "_predict", predict)
    prompts = ["the ship", "the bee", "", "a song " * 100]
    endings = [["a", "the bee", "root"], ["root", "bee bee"], ["bee", "bee bee", "a"], ["a", "bee"]]
    choices = model.choose(prompts, endings, batch_size=2)
    assert [choice.index for choice in choices] == [1, 1, 1, 1]
    assert [len(choice.probabilities) for choice in choices] == [3, 2, 3, 2]
    e = np.e
    np.testing.assert_allclose(choices[0].probabilities, np.array([1, e, 1]) / (e + 2), rtol=1e-6)
    assert model.choose(prompts[0], endings[0]) == choices[0]


def test_choices_of_a_head(fine_tuned, pretrained):
    model = fine_tuned(Choice("custom"))
    ending = ["the harbor", "a root of the garden"]
    task = Choice("custom")
    example = tasks.choice.Question("0", "the ship", tuple(ending))
    features = task.featurise([example], model.tokenizer, 32, train=False)
    predict = jax.jit(task.objective(Body(model.backbone)).predict)
    logits = predict(model.params, collate([features[0].arrays], 1, 0, ladder(32)))["logits"][0]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(model.choose("the ship", ending).probabilities, expected, atol=1e-5)


def test_prompts_and_endings_must_match(fine_tuned):
    model = fine_tuned(Choice("custom"))
    with pytest.raises(UserError, match="2 prompts and 1 lists of endings are given"):
        model.choose(["a", "b"], [["c", "d"]])
    for endings in ("abc", []):
        with pytest.raises(UserError, match="a list of one or more endings"):
            model.choose("a", endings)


# What is no text, and settings that cannot be.


@pytest.fixture(scope="module")
def every(pretrained):
    """A model of each family, to ask each method; none gets as far as to compute anything."""
    made = {}
    for task in (SINGLE, Answering(), TAGGING, Choice("custom")):
        body = Body(encoder_of(pretrained))
        params = {**pretrained.params, "mlm_head": {}}
        made[tasks.family(task)] = Model(body.backbone, params, pretrained.tokenizer)
        made[tasks.family(task)].set_task(task, body, 32)
    return made


LISTS = {
    "embed": lambda m, x: m["choice"].embed(x),
    "hidden_states": lambda m, x: m["choice"].hidden_states(x),
    "fill_mask": lambda m, x: m["choice"].fill_mask(x),
    "classify": lambda m, x: m["classification"].classify(x),
    "tag": lambda m, x: m["tagging"].tag(x),
    "answer": lambda m, x: m["answering"].answer(x, "a"),
    "answer in": lambda m, x: m["answering"].answer(["a"] * 3, x),
    "choose": lambda m, x: m["choice"].choose(x, [["a", "b"]] * 3),
    "choose from": lambda m, x: m["choice"].choose("a", x),
}
NO_TEXTS = {
    "half a surrogate pair": "a \ud800 b",
    "not None": None,
    "not a float": float("nan"),
    "not a int": 3,
    "not a bytes": b"a",
    "not a dict": {"a": 1},
    "must be a text": [None],
    "holds half": ["\udcff"],
}


@pytest.mark.parametrize("bad", NO_TEXTS)
@pytest.mark.parametrize("method", LISTS)
def test_what_is_no_text_is_told_with_its_number(every, method, bad):
    value = NO_TEXTS[bad]
    if isinstance(value, list) and method not in ("embed", "classify", "tag", "fill_mask"):
        pytest.skip("a list is no text in any case")
    with pytest.raises(UserError, match=rf"(texts|questions|contexts|prompts|endings)\[1\].*{bad}"):
        LISTS[method](every, ["a", value, "b"])


@pytest.mark.parametrize("method", LISTS)
@pytest.mark.parametrize("given", [None, 3, b"ab", {"a": 1}, {"a"}, 1.5, True], ids=repr)
def test_what_is_no_list_of_texts(every, method, given):
    with pytest.raises(UserError, match=r"a list of .* is expected, not a|not None"):
        LISTS[method](every, given)


@pytest.mark.parametrize("number", [0, -1, 2.0, "8", None, True, [1]], ids=repr)
def test_numbers_that_cannot_be(every, number):
    m = every
    asked = {
        "batch_size": [
            lambda: m["choice"].hidden_states(["a"], batch_size=number),
            lambda: m["choice"].fill_mask("[MASK]", batch_size=number),
            lambda: m["classification"].classify(["a"], batch_size=number),
            lambda: m["tagging"].tag(["a"], batch_size=number),
            lambda: m["answering"].answer("a", "b", batch_size=number),
            lambda: m["choice"].choose("a", ["b"], batch_size=number),
        ],
        "top": [lambda: m["choice"].fill_mask("[MASK]", top=number)],
        "n_best": [lambda: m["answering"].answer("a", "b", n_best=number)],
    }
    if number is not None:  # which stands for what the model can take
        asked["max_length"] = [
            lambda: m["choice"].hidden_states(["a"], max_length=number),
            lambda: m["choice"].embed(["a"], max_length=number),
        ]
    for name, calls in asked.items():
        for call in calls:
            with pytest.raises(UserError, match=f"^{name}=.* must "):
                call()


@pytest.mark.parametrize("threshold", [float("nan"), "0", [0.0], True])
def test_thresholds_that_cannot_be(every, threshold):
    with pytest.raises(UserError, match=r"threshold=.* must be a number"):
        every["answering"].answer("a", "b", threshold=threshold)


def test_any_kind_of_list_holds_texts(every):
    """Columns of a table are such, or what is made one by one."""
    texts = ["the ship", "the bee"]
    expected = every["choice"].embed(texts)
    for given in (tuple(texts), np.array(texts), (text for text in texts), np.array(texts, object)):
        np.testing.assert_array_equal(every["choice"].embed(given), expected)


# Models of another kind.

ASKED = {
    "classify texts": lambda model: model.classify(["a"]),
    "answer questions": lambda model: model.answer("a", "b"),
    "tag texts": lambda model: model.tag(["a"]),
    "choose endings": lambda model: model.choose("a", ["b", "c"]),
}


@pytest.mark.parametrize("what", list(ASKED))
def test_a_model_does_what_it_was_fine_tuned_for(fine_tuned, plain, what):
    with pytest.raises(UserError, match=f"was not fine-tuned to {what}; see"):
        ASKED[what](plain)
    other = TAGGING if what == "classify texts" else SINGLE
    with pytest.raises(UserError, match=rf"to {what}, but on custom \({tasks.family(other)}\)"):
        ASKED[what](fine_tuned(other))
