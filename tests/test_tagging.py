"""Tagging: pieces and windows of words and of running text, and the way back to tags."""

import json
import re
import unicodedata

import jax
import numpy as np
import pytest
from data_packs import pack

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.buckets import collate, ladder
from bert_jax.data.tokenizer import load_tokenizer, wordpiece_tokenizer
from bert_jax.models.body import Body
from bert_jax.models.encoder import EncoderBackbone
from bert_jax.tasks import conll, tagging_windows
from bert_jax.tasks.base import Source
from bert_jax.tasks.tagging import Sentence, Tagging

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENGLISH = wordpiece_tokenizer([*SPECIAL, "Ada", "Love", "##lace", "met", "Bab", "##bage", "."])
CLS, SEP, UNK = ENGLISH.cls_id, ENGLISH.sep_id, ENGLISH.unk_id
PEOPLE = Sentence(
    "0",
    ("Ada", "Lovelace", "met", "Babbage", "."),
    ("B-PER", "I-PER", "O", "B-PER", "O"),
    "train.txt:1",
)
TASK = Tagging("custom").fit([PEOPLE])


def _ids(tokenizer, *tokens):
    return [tokenizer.tokens.index(token) for token in tokens]


def _outputs(features, classes, extra=0):
    """One-hot logits of the labels, with `extra` places of padding."""
    outputs = []
    for feature in features:
        labels = np.pad(feature.arrays["token_labels"], (0, extra), constant_values=-1)
        logits = np.zeros((len(labels), classes), np.float32)
        logits[np.arange(len(labels)), labels] = labels >= 0
        outputs.append({"logits": logits})
    return outputs


def _back(task, examples, features):
    return task.decode(examples, features, _outputs(features, len(task.labels), 3))


# Words.


def test_the_first_piece_of_each_word_has_its_label():
    (feature,) = TASK.featurise([PEOPLE], ENGLISH, 16, train=True)
    assert TASK.labels == ("O", "B-PER", "I-PER")
    words = _ids(ENGLISH, "Ada", "Love", "##lace", "met", "Bab", "##bage", ".")
    assert feature.arrays["tokens"].tolist() == [CLS, *words, SEP]
    assert feature.arrays["token_labels"].tolist() == [-1, 1, 2, -1, 0, 1, -1, 0, -1]
    assert not feature.arrays["segments"].any()
    assert _back(TASK, [PEOPLE], [feature]) == [PEOPLE.tags]


def test_a_word_without_pieces_is_unknown():
    words = Sentence("0", ("Ada", "\u200b", "", "."), ("O", "B-PER", "O", "O"), "x:1")
    (feature,) = TASK.featurise([words], ENGLISH, 16, train=True)
    assert feature.arrays["tokens"].tolist() == [
        CLS, *_ids(ENGLISH, "Ada"), UNK, UNK, *_ids(ENGLISH, "."), SEP
    ]  # fmt: skip
    assert _back(TASK, [words], [feature]) == [words.tags]


def test_labels_only_for_training():
    (feature,) = TASK.featurise([PEOPLE], ENGLISH, 16, train=False)
    assert set(feature.arrays) == {"tokens", "segments"}


def test_windows_of_a_long_sentence_tag_each_word_once_and_in_context():
    random = np.random.default_rng(0)
    words = random.choice(["Ada", "Lovelace", "met", "Babbage", "."], 100)
    sentence = Sentence("0", tuple(words), tuple(random.choice(TASK.labels, 100)), "x:1")
    features = TASK.featurise([sentence], ENGLISH, 18, train=True)
    assert _back(TASK, [sentence], features) == [sentence.tags]
    tagged = [place for feature in features for place in feature.info[:, 1]]
    assert sorted(tagged) == list(range(100))
    stream = np.concatenate([ENGLISH.encode(word) for word in words])
    for feature in features:
        ids = feature.arrays["tokens"][1:-1]
        assert len(ids) == 16
        begins = [i for i in range(len(stream) - 15) if (stream[i : i + 16] == ids).all()]
        for position in feature.info[:, 0] - 1:
            # A quarter of a window on each side, but at the ends of the sentence.
            left = min(position, 16 - 1 - position) >= 3
            assert left or {0, len(stream) - 16} & set(begins)


def test_document_context_surrounds_a_sentence_and_stays_in_its_document():
    task = Tagging("custom", document_context=True, labels=("O", "B-X", "I-X"))
    texts = ("Ada .", "met Ada", "Babbage . .", ".", "Ada")
    groups = ("a", "a", "a", "b", "")
    sentences = [
        Sentence(str(i), tuple(text.split()), ("B-X",) * len(text.split()), f"x:{i}", group)
        for i, (text, group) in enumerate(zip(texts, groups, strict=True))
    ]
    features = task.featurise(sentences, ENGLISH, 32, train=True)
    first = [CLS, *_ids(ENGLISH, "Ada", ".", "met", "Ada", "Bab", "##bage", ".", "."), SEP]
    for feature in features[:3]:
        assert feature.arrays["tokens"].tolist() == first
    labelled = [np.flatnonzero(f.arrays["token_labels"] >= 0).tolist() for f in features]
    assert labelled == [[1, 2], [3, 4], [5, 7, 8], [1], [1]]
    assert features[3].arrays["tokens"].tolist() == [CLS, *_ids(ENGLISH, "."), SEP]
    assert _back(task, sentences, features) == [s.tags for s in sentences]
    # With room for six pieces, the second sentence has two on each side.
    middle = task.featurise(sentences, ENGLISH, 8, train=True)[1]
    assert middle.arrays["tokens"].tolist() == [*first[:7], SEP]
    alone = Tagging("custom", labels=task.labels).featurise(sentences, ENGLISH, 32, train=True)
    assert alone[1].arrays["tokens"].tolist() == [CLS, *_ids(ENGLISH, "met", "Ada"), SEP]


# Running text.


def _text(text: str, tags: str) -> Sentence:
    return Sentence("0", tuple(text), tuple(tags.split()), "x:1")


@pytest.mark.parametrize(
    "pieces, text, tags, pieces_tags",
    [
        # A particle that is a piece of its own does not disturb the entity.
        ("강릉 ##에서", "강릉에서", "B-LC I-LC O O", "B-LC O"),
        ("김 ##철수 ##가", "김철수가 김", "B-PS I-PS I-PS O O B-PS", "B-PS I-PS O B-PS"),
        # The space within an entity belongs to it.
        ("삼성 건설", "삼성 건설 .", "B-OG I-OG I-OG I-OG I-OG O O", "B-OG I-OG O"),
        ("5 ##k ##m", "5km", "B-QT I-QT I-QT", "B-QT I-QT I-QT"),
        # CJK characters and emoji are pieces alone, unknown or not.
        ("美 國", "美國은", "B-LC I-LC O", "B-LC I-LC O"),
        ("은 ##은", "😀은", "B-PS O", "B-PS"),  # one unknown word
        # Conjoining letters: three characters, one piece.
        ("\u1100\u1161\u11a8", "\u1100\u1161\u11a8 a", "B-PS I-PS I-PS O O", "B-PS O"),
    ],
)
def test_offsets_of_pieces_in_characters(pieces, text, tags, pieces_tags):
    tokenizer = wordpiece_tokenizer([*SPECIAL, *pieces.split()], lowercase=False)
    sentence = _text(text, tags)
    task = Tagging("custom", joined=True).fit([sentence, _text("a", "O")])
    (feature,) = task.featurise([sentence], tokenizer, 16, train=True)
    labels = [task.labels[n] for n in feature.arrays["token_labels"] if n >= 0]
    assert labels == pieces_tags.split()
    (back,) = _back(task, [sentence], [feature])
    shared = text == "😀은"  # its piece holds the particle too
    assert back == (("B-PS", "I-PS") if shared else sentence.tags)


def test_several_pieces_of_one_character_are_tagged_by_the_first():
    # A vocabulary of conjoining letters takes syllables apart.
    tokenizer = wordpiece_tokenizer([*SPECIAL, "ᄀ", "##ᄀ", "##ᅡ", "##ᆨ"])
    sentence = _text("각각", "B-PS I-PS")
    task = Tagging("custom", joined=True).fit([sentence, _text("a", "O")])
    (feature,) = task.featurise([sentence], tokenizer, 16, train=True)
    assert len(feature.arrays["tokens"]) == 2 + 6
    assert np.flatnonzero(feature.arrays["token_labels"] >= 0).tolist() == [1, 4]
    assert _back(task, [sentence], [feature]) == [sentence.tags]


def test_letters_that_the_tokenizer_composes_belong_to_the_piece():
    tokenizer = wordpiece_tokenizer([*SPECIAL, "김", "##가", "cafe"], lowercase=True)
    text = unicodedata.normalize("NFD", "김가 Café 김")
    tags = "B-PS I-PS I-PS O O O B-OG I-OG I-OG I-OG I-OG O B-PS I-PS I-PS"
    sentence = _text(text, tags)
    task = Tagging("custom", joined=True).fit([sentence])
    (feature,) = task.featurise([sentence], tokenizer, 16, train=True)
    assert feature.info[:, 1:].tolist() == [[0, 3], [3, 5], [6, 11], [12, 15]]
    assert _back(task, [sentence], [feature]) == [sentence.tags]


def test_text_without_any_piece():
    task = Tagging("custom", joined=True, labels=("O", "B-PS", "I-PS"))
    sentence = _text("  ", "O O")
    features = task.featurise([sentence], ENGLISH, 16, train=True)
    assert _back(task, [sentence], features) == [("O", "O")]


def test_klue_tags_come_back_but_where_a_piece_spans_a_boundary():
    source = Source(str(pack("tasks") / "klue"))
    sentences = tasks.TASKS["klue_ner"].read(source, "train")
    task = tasks.TASKS["klue_ner"].fit(sentences)
    assert len(task.labels) == 13
    folder = pack("vocab_and_samples") / "vocab" / "bert-base-multilingual-cased"
    features = task.featurise(sentences, load_tokenizer(folder), 64, train=True)
    assert len(features) > len(sentences)  # some need windows
    back = _back(task, sentences, features)
    possible = np.ones(len(sentences), bool)
    for feature in features:
        for _, first, end in feature.info:
            gold = sentences[feature.example].tags[first:end]
            inside = gold[0] if gold[0] == "O" else "I" + gold[0][1:]
            possible[feature.example] &= set(gold[1:]) <= {inside}
    right = np.array([tags == s.tags for s, tags in zip(sentences, back, strict=True)])
    assert not (right & ~possible).any()
    # One entity, "한 달 ", ends in a space.
    assert [sentences[place].id[-5:] for place in np.flatnonzero(possible & ~right)] == ["_nsmc"]
    # Particles are often one piece with the end of a name.
    counts = conll.count([s.tags for s in sentences], back)
    assert conll.total(counts.values()).recall == pytest.approx(0.897, abs=0.001)


# Scores, files.


def test_klue_scores_count_no_spaces_and_nothing_without_a_b():
    task = Tagging("custom", joined=True, labels=("O", "B-A", "I-A", "B-B", "I-B"))
    gold = [_text("a b c", "B-A I-A I-A O B-B")]
    scores = task.score(gold, [("B-A", "O", "I-A", "O", "I-B")])
    assert scores["entity_macro_f1"] == 0.5  # A is right, B has no beginning
    assert scores["f1"] == 1.0  # as conlleval takes it
    assert scores["accuracy"] == pytest.approx(2 / 3)
    # Characters: B-A, I-A right; B-B, I-B wrong; O only [CLS] and [SEP], right.
    assert scores["char_macro_f1"] == pytest.approx(3 / 5)
    assert task.metric == "entity_macro_f1"


def test_scores_overall_and_of_each_type():
    sentences = [Sentence("0", ("a", "b", "c"), ("B-X", "O", "B-Y"), "x:1")]
    scores = Tagging("custom").score(sentences, [("B-X", "O", "B-X")])
    assert scores == {
        "f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": pytest.approx(2 / 3),
        "f1_X": pytest.approx(2 / 3), "f1_Y": 0.0,
    }  # fmt: skip
    with pytest.raises(UserError, match="without gold tags"):
        Tagging("custom").score([Sentence("0", ("a",), None, "x:1")], [("O",)])


def test_baseline_is_the_most_frequent_tag_of_each_word():
    train = [
        Sentence("0", ("Paris", "Paris", "Paris", "is"), ("B-LOC", "B-LOC", "B-PER", "O")),
    ]
    other = Sentence("1", ("Paris", "was", "is"))
    assert TASK.baseline(train, [other]) == [("B-LOC", "O", "O")]


@pytest.mark.parametrize("joined", [False, True])
def test_predictions_are_written_and_read(tmp_path, joined):
    task = Tagging("custom", joined=joined, labels=TASK.labels)
    words = tuple("a b") if joined else ("##", "b", "c")
    examples = [
        Sentence("0", words, ("B-PER", "I-PER", "O"), "x:1"),
        Sentence("1", ("d",), ("O",), "x:5"),
    ]
    predictions = [("B-PER", "O", "I-PER"), ("B-PER",)]
    path, table = task.write(tmp_path, "dev", examples, predictions)
    assert (path.name, table.name) == ("dev_predictions.conll", "dev_conlleval.txt")
    assert table.read_text().startswith(f"processed {3 if joined else 4} tokens with 1 phrases;")
    between = "\t" if joined else " "
    lines = path.read_text().split("\n")
    assert lines[0] == between.join((words[0], "B-PER", "B-PER"))
    assert lines[3:] == ["", between.join(("d", "O", "B-PER")), "", ""]
    assert task.read_predictions(path, examples) == predictions
    untagged = [Sentence(e.id, e.words) for e in examples]
    (path,) = task.write(tmp_path, "test", untagged, predictions)
    assert task.read_predictions(path, untagged) == predictions


def test_words_with_spaces_are_written_between_tabs(tmp_path):
    (tmp_path / "dev.txt").write_text("New York\tB-LOC\n\nis\tO\n")
    examples = TASK.read(Source(str(tmp_path)), "dev")
    path, _ = TASK.write(tmp_path / "out", "dev", examples, [("B-PER",), ("O",)])
    assert path.read_text() == "New York\tB-LOC\tB-PER\n\nis\tO\tO\n\n"


def test_predictions_in_another_scheme_count_as_the_same_entities(tmp_path):
    example = Sentence("0", ("a", "b", "c", "d"), ("B-PER", "I-PER", "O", "B-PER"), "x:1")
    path = tmp_path / "p.conll"
    for scheme in ("BEOS", "BLOU", "IIOI"):  # the last is IOB1, of CoNLL-2003's own files
        letters = zip(example.words, scheme, strict=True)
        path.write_text("".join(f"{w} {x if x == 'O' else x + '-PER'}\n" for w, x in letters))
        assert TASK.read_predictions(path, [example]) == [example.tags]
    path.write_text("a B-PER\nb I-PER\nc O\nd I-PER\n")  # IOB2 with a stray I: as it is
    assert TASK.read_predictions(path, [example])[0][3] == "I-PER"


@pytest.mark.parametrize("room", [1, 2, 3, 4, 5, 8, 9])
def test_every_piece_is_tagged_where_it_has_the_most_context(room):
    units = [(place, place, place + 1) for place in range(5, 28)]
    chosen = list(tagging_windows.windows(range(5, 28), units, 40, room))
    assert sorted(unit for _, kept in chosen for unit in kept) == units
    starts = {*range(5, 28 - room, max(room // 2, 1)), 28 - room}
    for start, kept in chosen:
        for place, _, _ in kept:
            context = {s: min(place - s, s + room - 1 - place) for s in starts}
            assert context[start] == max(context.values())


@pytest.mark.parametrize(
    "text, message",
    [
        ("a O\n\nb O\n", "p.conll:1: a sentence of 1 words, where x:1 has 2"),
        ("a O\nb Y\n", "p.conll:2: 'Y' is not a tag"),
        ("a O\nc O\n", "p.conll:2: the word is 'c', where x:1 has 'b'"),
        ("a O\nb O\n\nc O\n", "p.conll: 2 sentences, where there should be 1"),
        ("", "p.conll: 0 sentences"),
    ],
)
def test_predictions_for_another_file(tmp_path, text, message):
    path = tmp_path / "p.conll"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        TASK.read_predictions(path, [Sentence("0", ("a", "b"), ("O", "O"), "x:1")])


def test_plot_and_its_absence(tmp_path):
    path = TASK.plot(tmp_path / "p.png", [PEOPLE], [("B-PER", "I-PER", "O", "O", "B-LOC")])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert TASK.plot(tmp_path / "q.png", [Sentence("0", ("a",))], [("O",)]) is None


# Fitting.


@pytest.mark.parametrize(
    "sentence, message",
    [
        (Sentence("0", ("a", "b"), ("O", "O"), "t:1"), "^t: .* all words have the tag O"),
        (Sentence("0", ("a", "b"), None, "t:1"), "t:1: a training file needs tags"),
    ],
)
def test_nothing_to_learn(sentence, message):
    with pytest.raises(UserError, match=message):
        Tagging("custom").fit([sentence])


def test_a_tag_that_training_did_not_have_is_told_and_counts_as_missed(capfd):
    assert "B-LOC" not in TASK.labels
    others = [Sentence("0", ("a", "b"), ("O", "B-LOC"), "dev.txt:7")]
    assert len(TASK.featurise(others, ENGLISH, 16, train=False)) == 1
    said = capfd.readouterr().err
    assert "dev.txt:8: the tag 'B-LOC' is not in the training data" in said
    assert "never predicted: 1" in said
    scores = TASK.score(others, [("O", "O")])
    assert (scores["recall"], scores["f1_LOC"]) == (0, 0)


def test_both_letters_of_every_type_whatever_the_order():
    sentences = [Sentence("0", ("a", "b"), ("B-Z", "B-A")), Sentence("1", ("a",), ("O",))]
    assert Tagging("custom").fit(sentences).labels == ("O", "B-A", "I-A", "B-Z", "I-Z")


def test_rows_are_stored_and_find_their_files(tmp_path):
    for name in ("conll2003", "wnut17", "klue_ner"):
        row = tasks.TASKS[name]
        assert tasks.from_dict(json.loads(json.dumps(tasks.to_dict(row)))) == row
    assert tasks.from_dict(json.loads(json.dumps(tasks.to_dict(TASK)))) == TASK
    (tmp_path / "eng.testa").write_text("-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\n")
    (sentence,) = tasks.TASKS["conll2003"].read(Source(str(tmp_path)), "dev")
    assert sentence.tags == ("B-ORG",) and sentence.group
    assert tasks.TASKS["conll2003"].read(Source(str(tmp_path)), "test") is None
    custom = tasks.get_task("custom", {"family": "tagging", "document_context": True})
    assert custom.document_context and custom.metric == "f1"


def test_tfds_columns(monkeypatch):
    row = {"tokens": ["EU", "rejects"], "ner": ["I-ORG", "O"], "pos": ["NNP", "VBZ"]}
    splits = {"dev": [("conll2003/dev:0", row)], "train": [("glue/train:0", {"sentence": "a"})]}
    monkeypatch.setattr(tasks.tagging.rows, "read_tfds", lambda name, split: splits.get(split))
    source, task = Source("tfds:conll2003"), tasks.TASKS["conll2003"]
    (sentence,) = task.read(source, "dev")
    assert (sentence.words, sentence.tags) == (("EU", "rejects"), ("B-ORG", "O"))
    assert task.read(source, "test") is None
    with pytest.raises(UserError, match="glue/train:0: no columns tokens and ner, but sentence"):
        task.read(source, "train")


def test_a_batch_goes_through_the_objective():
    encoder = EncoderBackbone(
        vocab_size=ENGLISH.vocab_size, layers=1, width=8, heads=2, feed_forward=8
    )
    features = TASK.featurise([PEOPLE, PEOPLE], ENGLISH, 32, train=True)
    batch = collate([f.arrays for f in features], 4, ENGLISH.pad_id, ladder(32))
    assert batch["token_labels"][0].tolist() == [-1, 1, 2, -1, 0, 1, -1, 0] + [-1] * 8
    objective = TASK.objective(Body(encoder))
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert jax.eval_shape(objective.predict, params, batch)["logits"].shape == (4, 16, 3)
