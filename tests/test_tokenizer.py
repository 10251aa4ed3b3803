"""Tokenisation equals google-research/bert's, and sentencepiece's for its models."""

import functools
import json
import operator
import pickle
import random
import unicodedata

import numpy as np
import pytest
from data_packs import pack
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from bert_jax.common.errors import UserError
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer, wordpiece_tokenizer
from bert_jax.preparing.vocabulary import train_vocabulary

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


# A literal copy of the algorithm of google-research/bert tokenization.py, the reference.


def _is_whitespace(char):
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_control(char):
    return char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf")


def _is_punctuation(char):
    cp = ord(char)
    if 33 <= cp <= 47 or 58 <= cp <= 64 or 91 <= cp <= 96 or 123 <= cp <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def _is_cjk(cp):
    return (
        0x4E00 <= cp <= 0x9FFF or 0x3400 <= cp <= 0x4DBF or 0x20000 <= cp <= 0x2A6DF
        or 0x2A700 <= cp <= 0x2B73F or 0x2B740 <= cp <= 0x2B81F or 0x2B820 <= cp <= 0x2CEAF
        or 0xF900 <= cp <= 0xFAFF or 0x2F800 <= cp <= 0x2FA1F
    )  # fmt: skip


def _original_words(text, lowercase):
    clean = []
    for char in text:
        if ord(char) in (0, 0xFFFD) or _is_control(char):
            continue
        clean.append(" " if _is_whitespace(char) else char)
    spaced = "".join(f" {c} " if _is_cjk(ord(c)) else c for c in clean)
    words = []
    for token in spaced.split():
        if lowercase:
            decomposed = unicodedata.normalize("NFD", token.lower())
            token = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        split, new_word = [], True
        for char in token:
            if _is_punctuation(char):
                split.append(char)
                new_word = True
            else:
                if new_word:
                    split.append("")
                new_word = False
                split[-1] += char
        words += split
    return " ".join(words).split()


def _original(text, vocab, lowercase):
    result = []
    for word in _original_words(text, lowercase):
        if len(word) > 200:
            result.append("[UNK]")
            continue
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in vocab:
                    break
            else:
                pieces = ["[UNK]"]
                break
            pieces.append(piece)
            start = end
        result += pieces
    return result


def _pieces(tokenizer, text):
    return [tokenizer.tokens[i] for i in tokenizer.encode(text)]


def _small(*pieces, lowercase=None):
    return wordpiece_tokenizer([*SPECIAL, *pieces], lowercase)


@pytest.mark.parametrize(
    "text, expected",
    [  # tokenization_test.py of the original
        ("UNwant\u00e9d,running", "un ##want ##ed , runn ##ing"),
        ("unwanted running", "un ##want ##ed runn ##ing"),
        ("unwantedX running", "[UNK] runn ##ing"),
        ("", ""),
        (" \tUNwanted!\nhow  \n Are yoU? ", "un ##want ##ed [UNK] [UNK] [UNK] [UNK] [UNK]"),
        ("unw\0an\u200dted", "un ##want ##ed"),
        ("un" + "want" * 49 + "ed", "un" + " ##want" * 49 + " ##ed"),  # 200 characters
        ("un" + "want" * 50 + "ed", "[UNK]"),
    ],
)
def test_goldens_of_the_original(text, expected):
    tokenizer = _small("want", "##want", "##ed", "wa", "un", "runn", "##ing", ",", "low", "lowest")
    assert " ".join(_pieces(tokenizer, text)) == expected


def test_original_basic_tokenizer_goldens():
    tokenizer = _small("ah", "\u535a", "\u63a8", "zz", "hello", "!", "how", "h", "##allo")
    assert _pieces(tokenizer, "ah\u535a\u63a8zz") == ["ah", "\u535a", "\u63a8", "zz"]
    assert _pieces(tokenizer, " \tHeLLo!how  \n H\u00e4LLo ") == [
        "hello",
        "!",
        "how",
        "h",
        "##allo",
    ]


ALPHABET = (
    "abcXYZ019 .,'-_[]()\"\t\n\r\0\u00e9\u00c9\u00f1\u0130\u1e9e\u00df\u0301\u0308\ufffd\u00ad"
    "\u200b\u200d\u3000\u2028\u00a0\u4e2d\u6587\ud55c\uad6d\uc5b4\u1100\u1161\u304c\u30d1\u30ab\u3099\u0937"
    "\u093f\u0e33\u0e34\u05d0\u05b8\u0627\u064e\U0001f600\U00020000\u20ac\u2026\u2014\u201c\u3002\uff01"
    "\u0416\u0439"
)


@functools.cache
def _characters(lowercase):
    """All code points: those that give the original's words, and those that do not, by category."""
    backend = _small("a" if lowercase else "A").backend

    def words(chars):
        text = " ".join(f"a{char}b" for char in chars)
        split = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        unknown = {unicodedata.category(char) for char in chars} <= {"Cn", "Co"}  # kept as it is
        theirs = text.split(" ") if unknown else _original_words(text, lowercase)
        return [word for word, _ in split], theirs

    same, different = [], {}
    for start in range(0, 0x110000, 256):
        chars = [chr(code) for code in range(start, start + 256)]
        if unicodedata.category(chars[0]) == "Cs":  # a surrogate alone is no text
            continue
        ours, theirs = words(chars)
        if ours == theirs:
            same += chars
            continue
        private = {unicodedata.category(char) for char in chars} == {"Co"}
        assert not private or ours == ["ab"] * 256
        for char in chars:
            if not private and operator.eq(*words([char])):
                same.append(char)
            else:
                different.setdefault(unicodedata.category(char), set()).add(char)
    same.remove("\u03a3")  # final capital sigma: see the docstring of the module
    return same, different


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_code_point_is_treated_as_in_the_original(lowercase):
    """But for what the docstring of the module lists; tables of Unicode differ by their age."""
    same, different = _characters(lowercase)
    private = different.pop("Co")
    assert private == {c for c in map(chr, range(0x110000)) if unicodedata.category(c) == "Co"}
    # Punctuation and Chinese characters: none is left.
    assert not [name for name in different if name.startswith("P") or name == "Lo"]
    assert {chr(code) for code in range(0x2B820, 0x2B920)} <= set(same)
    assert len(different.pop("Cf")) <= 13 and different.pop("So") == {"\u166d"}
    assert len(different.pop("Cn", set())) < 300  # Python does not know yet what they are
    if lowercase:
        assert different.pop("Mc") <= {"\u1734", "\U00011938"}
    marks = different.pop("Mn", set())
    assert len(marks) <= (400 if lowercase else 1)
    old = {c for c in marks if unicodedata.ucd_3_2_0.category(c) != "Cn"}
    assert old <= {"\u1885", "\u1886"}
    assert not different


def test_a_chinese_character_of_extension_e_is_a_word():
    tokenizer = _small("ab", "\U0002b820", "\U0002b91f", "c")
    text = "ab\U0002b820\U0002b91fc"
    assert _pieces(tokenizer, text) == ["ab", "\U0002b820", "\U0002b91f", "c"]


@pytest.mark.parametrize("files", [["vocab.json", "merges.txt"], ["merges.txt"], ["vocab.json"]])
def test_a_vocabulary_of_gpt_2_is_told(tmp_path, files):
    (tmp_path / "vocab.json").write_text('{"!": 0, "model": 1, "\u0120the": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n\u0120 t\n")
    given = tmp_path if len(files) > 1 else tmp_path / files[0]
    with pytest.raises(UserError, match="is a byte-level BPE vocabulary, as GPT-2 and RoBERTa"):
        load_tokenizer(given)


@pytest.mark.parametrize(
    "name", ["bert-base-uncased", "bert-base-cased", "bert-base-multilingual-cased"]
)
def test_equals_the_original(name):
    folder = pack("vocab_and_samples") / "vocab" / name
    tokenizer = load_tokenizer(folder)
    lowercase = name.endswith("uncased")
    vocab = set(tokenizer.tokens)
    assert tokenizer.vocab_size == len((folder / "vocab.txt").read_text("utf-8").splitlines())
    rng = random.Random(0)
    texts = ["".join(rng.choices(ALPHABET, k=rng.randint(1, 60))) for _ in range(3000)]
    known = [c for c in _characters(lowercase)[0] if unicodedata.category(c) != "Cn"]
    texts += ["".join(rng.choices(known, k=20)) for _ in range(2000)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert [tokenizer.tokens[i] for i in ids] == _original(text, vocab, lowercase), repr(text)


@pytest.mark.parametrize(
    "name, wiki, lowercase",
    [
        ("bert-base-uncased", "text_enwiki", True),
        ("bert-base-cased", "text_enwiki", False),
        ("bert-base-multilingual-cased", "text_kowiki", False),
    ],
)
def test_equals_the_original_on_real_text(name, wiki, lowercase):
    tokenizer = load_tokenizer(pack("vocab_and_samples") / "vocab" / name)
    vocab = set(tokenizer.tokens)
    folder = next(pack(wiki).glob(wiki[5:] + "_*/AA"))
    lines = (folder / "wiki_07").read_text("utf-8").split("\n")[:1500]
    for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
        assert [tokenizer.tokens[i] for i in ids] == _original(line, vocab, lowercase)


def test_sentencepiece_parity():
    import sentencepiece

    path = pack("vocab_and_samples") / "vocab" / "xlnet-base-cased" / "spiece.model"
    tokenizer = load_tokenizer(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for wiki in ("text_enwiki", "text_kowiki"):
        folder = next(pack(wiki).glob(wiki[5:] + "_*/AA"))
        lines = [x for x in (folder / "wiki_03").read_text("utf-8").split("\n") if x][:2000]
        assert tokenizer.encode_batch(lines) == reference.encode(lines)
    texts = ["  two  spaces ", "\uff26\uff55\uff4c\uff4c", '(a-b). "c"', "x\u2014y \u20ac5"]
    assert tokenizer.encode_batch(texts) == reference.encode(texts)
    assert tokenizer.continuation[tokenizer.tokens.index("ing")]
    assert not tokenizer.continuation[tokenizer.tokens.index("\u2581the")]
    assert not tokenizer.continuation[tokenizer.special_ids].any()
    literal = tokenizer.encode("a <mask> <sep> b </s>")
    assert not set(literal) & {*tokenizer.special_ids, 1, 2}
    assert tokenizer.mask_id in tokenizer.encode("a <mask> b", special=True)


def test_a_chinese_character_begins_a_word_of_a_unigram_vocabulary():
    """As in the original, which parts them; else a sentence is one word, too long to be masked."""
    pieces = [*SPECIAL, "▁", "北京", "是", "中国", "の", "𠀀", "a"]
    backend = Backend(models.Unigram([(piece, -1.0) for piece in pieces], 1))
    split = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("北京是中国の𠀀a")
    assert [tokenizer.tokens[i] for i in ids] == ["▁", "北京", "是", "中国", "の", "𠀀", "a"]
    assert tokenizer.continuation[ids].tolist() == [False] * 4 + [True, False, True]


def test_hangul_and_kana_stay_whole_where_the_vocabulary_has_them():
    ours = _small("\ud55c\uad6d", "\u304c", "\u30d1", "caf", "##e")
    assert _pieces(ours, "\ud55c\uad6d \u304c \u30d1 CAF\u00c9") == [
        "\ud55c\uad6d", "\u304c", "\u30d1", "caf", "##e",
    ]  # fmt: skip
    decomposed = unicodedata.normalize("NFD", "\ud55c\uad6d \u304c")
    assert _pieces(ours, decomposed) == ["\ud55c\uad6d", "\u304c"]
    published = load_tokenizer(pack("vocab_and_samples") / "vocab" / "bert-base-uncased")
    assert "".join(_pieces(published, "\ud55c")).replace("##", "") == "\u1112\u1161\u11ab"


def test_literal_special_tokens_are_text_unless_asked_for():
    tokenizer = _small("a", "[", "]", "mask", "sep")
    assert _pieces(tokenizer, "a [MASK] [SEP]") == ["a", "[", "mask", "]", "[", "sep", "]"]
    assert tokenizer.encode("a [MASK]", special=True) == [5, tokenizer.mask_id]
    assert tokenizer.encode("a [MASK]") == tokenizer.encode_batch(["a [MASK]"])[0]


def test_save_load_pickle(tmp_path):
    tokenizer = _small("un", "##want", "##ed", "a")
    tokenizer.save(tmp_path)
    assert (tmp_path / "vocab.txt").read_text().split("\n")[:2] == ["[PAD]", "[UNK]"]
    for other in (
        load_tokenizer(tmp_path),
        load_tokenizer(tmp_path / "vocab.txt"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert other.tokens == tokenizer.tokens
        assert other.encode("Unwanted [SEP] a") == tokenizer.encode("Unwanted [SEP] a")
        np.testing.assert_array_equal(other.continuation, [0] * 6 + [1, 1, 0])
    assert tokenizer.decode([5, 6, 7, 8]) == "unwanted a"


def test_case_is_found_out_and_checked(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "The", "the"]) + "\n")
    assert _pieces(load_tokenizer(tmp_path), "The the") == ["The", "the"]
    with pytest.raises(UserError, match="is cased, which contradicts lowercase=True"):
        load_tokenizer(tmp_path, lowercase=True)
    _small("the").save(tmp_path / "saved")
    with pytest.raises(UserError, match="is uncased, which"):
        load_tokenizer(tmp_path / "saved", lowercase=False)


def test_unusable_vocabularies(tmp_path):
    with pytest.raises(UserError, match=r"lacks the special token \[MASK\]"):
        wordpiece_tokenizer([*SPECIAL[:4], "a"])
    with pytest.raises(UserError, match=r"lacks the special token \[UNK\]"):
        wordpiece_tokenizer(["a", "b"])
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="holds no"):
        load_tokenizer(tmp_path)
    Backend(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="BPE"):
        load_tokenizer(tmp_path)
    (tmp_path / "bad.model").write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path / "bad.model")
    (tmp_path / "bad.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(tmp_path / "bad.txt")


def test_bpe_sentencepiece_model_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small text to train on, a small one"] * 20),
        model_prefix=str(tmp_path / "m"), model_type="bpe", vocab_size=30, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="BPE type"):
        load_tokenizer(tmp_path / "m.model")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_trained_vocabulary_is_deterministic(tmp_path, kind, monkeypatch):
    rng = random.Random(1)
    syllables = ["ba", "no", "ri", "\ud55c", "\uad6d", "ke", "Lo", "\u304c", "tu", "\u00e9s"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(600)]
    text = "\n".join(" ".join(rng.choices(words, k=12)) for _ in range(1500)) + "\n"
    sample = tmp_path / "sample.txt"
    sample.write_text(text, encoding="utf-8")
    results = []
    for threads in ("1", "2", "2"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false" if threads == "1" else "true")
        results.append(train_vocabulary([sample], kind, 150, True, tmp_path))
    first = results[0]
    assert all(other.backend.to_str() == first.backend.to_str() for other in results)
    assert first.vocab_size == 150 and first.pad_id == 0
    pieces = _pieces(first, text[:2000])
    assert "".join(p.lstrip("#\u2581") for p in pieces) == "".join(
        text[:2000].lower().replace("\u00e9", "e" if kind == "wordpiece" else "\u00e9").split()
    )
    assert any("\ud55c" in token for token in first.tokens)
    huge = train_vocabulary([sample], kind, 50_000, True, tmp_path)
    assert huge.vocab_size < 10_000
    with pytest.raises(UserError, match="too small"):
        train_vocabulary([sample], kind, 20, True, tmp_path)


def test_other_special_tokens_are_matched_in_text():
    """Markers of entities, say, which transformers matches too; the five of BERT are text."""
    backend = Backend.from_str(wordpiece_tokenizer([*SPECIAL, "a", "e1", "##b"]).backend.to_str())
    backend.add_special_tokens(["[E1]"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.tokens[-1] == "[E1]" and tokenizer.special_ids == [0, 1, 2, 3, 4]
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert [one.tokens[i] for i in one.encode("[E1] a [E1]")] == ["[E1]", "a", "[E1]"]
        assert not set(one.encode("[SEP] [MASK]")) & {2, 3, 4}


def test_a_list_of_sentencepiece_pieces_is_no_wordpiece_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "▁a", "b"]) + "\n")
    with pytest.raises(UserError, match=r"vocab\.txt lists pieces of a SentencePiece model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v["model"]["vocab"].update({"[SEP]": 2}), r"'\[SEP\]' and .* the same id"),
        (lambda v: v["model"]["vocab"].update({"she": 3_000_000}), "there is an id 3000000, but"),
        (lambda v: v["model"]["vocab"].update({"she": -1}), r"model\.vocab.*>= 0 is expected"),
        (lambda v: v["model"]["vocab"].update({"she": "5"}), "a whole number is expected, a text"),
        (lambda v: v["model"].update(type="BPE2"), "cannot be read: "),
        (lambda v: v.update(added_tokens=[{"id": "x"}]), r"added_tokens\[0\]\.id: a whole number"),
        (
            lambda v: v.update(
                pre_tokenizer={
                    "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                    "invert": False,
                }
            ),
            r"'\(a\+\)\+\$' could take time without bound",
        ),
        (
            lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "cannot be read: ",
        ),
    ],
)  # fmt: skip
def test_what_the_library_would_panic_at_is_one_line(change, reason, tmp_path):
    _small("she").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"^.*tokenizer\.json.*{reason}"):
        load_tokenizer(tmp_path)


def test_a_special_token_that_comes_twice_is_told(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "a", SPECIAL[3]]) + "\n")
    with pytest.raises(UserError, match=r"vocab\.txt has the special token \[SEP\] twice"):
        load_tokenizer(tmp_path)


def test_the_vocabulary_of_gpt_2_is_told_what_it_is(tmp_path):
    (tmp_path / "vocab.json").write_text('{"!": 0, "the": 1}')
    for path in (tmp_path, tmp_path / "vocab.json"):
        with pytest.raises(UserError, match=r"byte-level BPE \(GPT-2, RoBERTa\), .* not supported"):
            load_tokenizer(path)
