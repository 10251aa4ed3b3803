"""Of tasks of every family: pairs as sequences, cut as released, and a dev split held out."""

import math
import os

import numpy as np
import pytest
from text_tasks import TOKENIZER, WORDS

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.tasks.base import Source, encode_pairs, hold_out
from bert_jax.tasks.classification import TextExample


def _cut(first, second, room):
    """Truncation as the released code writes it: one token at a time."""
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def test_pairs_are_cut_like_the_released_code():
    rng = np.random.default_rng(0)
    cls, sep = TOKENIZER.cls_id, TOKENIZER.sep_id
    for _ in range(300):
        texts = [" ".join(rng.choice(WORDS[:6], rng.integers(0, 12))) for _ in range(2)]
        length = int(rng.integers(4, 20))
        first, second = _cut(*TOKENIZER.encode_batch(texts), length - 3)
        whole = TOKENIZER.encode_batch(texts)
        (pair,) = encode_pairs([texts], TOKENIZER, length)
        assert pair.arrays["tokens"].tolist() == [cls, *first, sep, *second, sep]
        assert pair.arrays["segments"].tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert pair.cut == ([first, second] != whole)
        (alone,) = encode_pairs([texts[:1]], TOKENIZER, length)
        assert alone.arrays["tokens"].tolist() == [cls, *whole[0][: length - 2], sep]
        assert not alone.arrays["segments"].any()
        assert alone.cut == (len(whole[0]) > length - 2)


def test_special_tokens_in_a_text_are_text():
    (feature,) = encode_pairs([("[SEP] a [MASK]", "[CLS]")], TOKENIZER, 40)
    tokens = feature.arrays["tokens"].tolist()
    assert tokens.count(TOKENIZER.sep_id) == 2 and tokens.count(TOKENIZER.cls_id) == 1
    assert TOKENIZER.mask_id not in tokens


def test_texts_of_all_chunks_keep_their_order():
    pairs = [(WORDS[i % 7], WORDS[i % 5]) for i in range(10_003)]
    encoded = encode_pairs(pairs, TOKENIZER, 8)
    for place in (0, 9_999, 10_000, 10_002):
        (alone,) = encode_pairs([pairs[place]], TOKENIZER, 8)
        assert encoded[place].example == place
        assert encoded[place].arrays["tokens"].tolist() == alone.arrays["tokens"].tolist()


@pytest.mark.parametrize(("texts", "length"), [(("a",), 2), (("a", "b"), 3)])
def test_a_length_without_room_for_text(texts, length):
    with pytest.raises(UserError, match=f"max_length={length} leaves no room"):
        encode_pairs([texts], TOKENIZER, length)


def test_same_first_texts_stay_on_one_side():
    examples = [TextExample(str(i), (f"p{i // 3}", f"h{i}"), "x", "f:1") for i in range(300)]
    train, dev = hold_out(examples, 0.2)
    assert not {e.texts[0] for e in train} & {e.texts[0] for e in dev}
    with pytest.raises(UserError, match=r"^f: dev_share=0.2 leaves no .* side \(all are of one"):
        hold_out(examples[:3], 0.2)


SOUND = {"family": "classification", "name": "custom", "files": [["train", "a.tsv"]], "texts": []}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"seed": 0}, "family: one of classification, .* is expected, not None"),
        ({"family": ["choice"]}, r"family: one of .* not \['choice'\]"),
        ({"family": "choice", "poetry": 1}, "'poetry' is unknown to this version; .* newer"),
        ({"family": "tagging"}, "the field 'name' is missing"),
        ({**SOUND, "labels": 1.5}, "labels: a list is expected, a number is there"),
        (
            {**SOUND, "labels": ["a", 1]},
            r"labels\[1\]: a text is expected, a whole number is there",
        ),
        ({**SOUND, "labels": ["a", "a"]}, "labels: two of the same name: a, a"),
        ({**SOUND, "metrics": ["acuracy"]}, "metrics: acuracy; known: accuracy, "),
        ({**SOUND, "metrics": []}, "metrics: ; known"),
        ({**SOUND, "kind": "singel"}, "kind='singel' is unknown; known: single, "),
        ({**SOUND, "threshold": "0"}, "threshold: a number is expected, a text is there"),
        ({**SOUND, "threshold": math.nan}, "threshold=nan is no number"),
        ({"family": "answering", "scorer": "squat"}, "scorer='squat' is unknown; known: squad, "),
        ({"family": "answering", "n_best": 0}, "n_best=0 must be at least 1"),
        ({"family": "choice", "name": "x", "labels": ["a", "b"]}, "4 endings and 2 labels"),
    ],
)
def test_what_is_no_row_of_a_task_is_told(values, reason):
    with pytest.raises(UserError, match=rf"^RUN/task\.json: (the field )?{reason}"):
        tasks.from_dict(values, "RUN/task.json")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_stands_in_the_place_of_a_split_and_is_no_file_is_told(make, tmp_path):
    make(tmp_path / "test.tsv")
    source = Source(str(tmp_path))
    with pytest.raises(UserError, match=r"test\.tsv, the test file, is not a file"):
        source.find("test", ["test.tsv", "test.csv"])
    assert source.find("dev", ["dev.tsv"]) is None
