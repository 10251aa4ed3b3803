"""One tokenizer class for WordPiece and unigram vocabularies, whatever file they come from.

Everything becomes a `tokenizers.Tokenizer`, so text goes through one code path. A WordPiece one
gives what google-research/bert tokenization.py gives: clean, space out CJK, lower-case and strip
accents (uncased), split on punctuation, greedy longest match with at most 200 characters a word.
A SentencePiece unigram model gives what the sentencepiece library gives.

Differences from the original, all meant or harmless:
- Where the vocabulary keeps Hangul syllables or voiced kana whole (every vocabulary trained here
  does), an uncased tokenizer does so too. The original decomposes them (NFD) and drops the voicing
  marks. A published uncased vocabulary made of Jamo (bert-base-uncased, bert-base-chinese) gets
  the original behaviour, which is what its pieces need.
- A capital sigma at the end of a word becomes σ, not ς.
Of all code points alone (tests/test_tokenizer.py compares them), these differ by the versions of
the tables of Unicode, which are the library's here and Python's there:
- Private-use code points are dropped; the original keeps them in the word.
- The 13 newest format characters (U+0890, U+13430 ...) are kept, and so are, by an uncased
  tokenizer of the original's behaviour, the 383 newest marks (U+0898, U+1ABF ...).
- U+166D and U+111C9 are punctuation; U+1734 is dropped, U+11938 is not decomposed (uncased).
- Capital letters and punctuation that Python's table does not know yet are treated as such.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.common.errors import UserError
from bert_jax.common.files import library_errors, read_bytes, read_text, write_whole
from bert_jax.data.template import Template, Vocabulary, cls_sep
from bert_jax.data.tokenizer_file import BPE, read_backend

# Special tokens by role: how BERT vocabularies write them, and how SentencePiece models do.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
_KEPT_WHOLE = re.compile("[\uac00-\ud7a3がぎぐげござじずぜぞだぢづでどばびぶべぼガギグゲゴ]")
_CHINESE = re.compile(  # as in the original, _is_chinese_char
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf\U0002f800-\U0002fa1f]"
)
_CASED_PIECE = re.compile("(##)?[A-Z]+[a-z]*")


class Tokenizer:
    """Text to ids and back.

    Attributes:
      backend: the `tokenizers.Tokenizer`; it takes special tokens written in a text as text.
      text: the tokenizer.json that `backend` was read from.
      vocab_size: V, the number of ids.
      tokens: list of V strings.
      pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
      special_ids: these five, as a list.
      continuation: bool [V], True where a piece continues a word (`##x`, or without `▁`; but a
        Chinese character begins a word, as it does in the original, where no spaces part them).
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, name: str = "the vocabulary", text: str | None = None
    ):
        """Wraps `backend`.

        The library does not read every number of its own tokenizer.json back to the last bit (the
        scores of a unigram vocabulary). So each tokenizer is made from a text, and that text is
        what is saved and sent to other processes: what is used is what is written.

        Args:
          name: what errors call the vocabulary.
          text: the tokenizer.json that `backend` was read from, if it was.

        Raises:
          UserError: a special token is missing, or the model is neither WordPiece nor unigram.
        """
        before = backend.to_str()
        kind = type(backend.model).__name__
        if kind not in ("WordPiece", "Unigram"):
            raise UserError(f"{name} is a {kind} vocabulary; WordPiece and unigram are supported")
        self.kind, self.name = kind.lower(), name
        backend.no_padding()
        backend.no_truncation()
        ids = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.tokens = [""] * self.vocab_size
        for token, number in ids.items():
            self.tokens[number] = token
        self.special_tokens = _special_tokens(ids, name)
        self.special_ids = [ids[token] for token in self.special_tokens]
        if len(set(self.special_ids)) < len(self.special_ids):
            raise UserError(f"{name}: special tokens share an id: {self.special_ids}")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        self.continuation = _continuation(self.tokens, self.kind)
        added = backend.get_added_tokens_decoder()
        self.continuation[list(added)] = False
        unigram = self.kind == "unigram"
        spaced = {i for i, token in added.items() if unigram and token.lstrip}
        self._spaced = spaced.difference(self.special_ids)
        if any(t.special and t.content not in self.special_tokens for t in added.values()):
            # Others, such as markers of entities, are matched in text, as those who made them do.
            values = json.loads(backend.to_str())
            for token in values["added_tokens"]:
                token["special"] = token["content"] in self.special_tokens
            backend = tokenizers.Tokenizer.from_str(json.dumps(values))
        backend.add_special_tokens(self.special_tokens)
        if text is None or backend.to_str() != before:  # not as it must be, or not read at all
            text = backend.to_str(pretty=True)
            backend = tokenizers.Tokenizer.from_str(text)
        self.text = text
        backend.encode_special_tokens = True
        self.backend = backend
        if set(self.encode_batch([" ".join(self.special_tokens)])[0]) & {
            self.pad_id, self.cls_id, self.sep_id, self.mask_id
        }:  # fmt: skip
            raise UserError(f"{name} makes special tokens of running text, such as [SEP]")

    def __reduce__(self):
        return _from_json, (self.text,)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What programs depend on."""
        ids = dict(zip(ROLES, self.special_ids, strict=True))
        return Vocabulary(self.vocab_size, ids, self.continuation)

    @functools.cached_property
    def template(self) -> Template:
        """The special tokens around texts; a model's family may set others."""
        return cls_sep(self.vocabulary)

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids of each text, without [CLS] and [SEP] around it.

        special: whether a "[SEP]" or "[MASK]" written in a text is that token; else it is text.
        """
        backend = self.special_backend if special else self.backend
        with library_errors(self.name):
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of one text; see `encode_batch`."""
        return self.encode_batch([text], special)[0]

    @functools.cached_property
    def special_backend(self) -> tokenizers.Tokenizer:
        """A copy of `backend` that recognises special tokens written in a text."""
        backend = tokenizers.Tokenizer.from_str(self.text)
        backend.encode_special_tokens = False
        return backend

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        if self._spaced.isdisjoint(ids):
            return self.backend.decode(list(ids), skip_special_tokens=True)
        # Tokens that take the space before them as theirs give it back.
        shown = [i for i in ids if i not in self.special_ids]
        return self.backend.decoder.decode(
            ["▁" * (i in self._spaced) + self.tokens[i] for i in shown]
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json and, for a WordPiece, vocab.txt into `folder`."""
        folder = Path(folder)
        write_whole(folder / "tokenizer.json", self.text)
        if self.kind == "wordpiece":
            write_whole(folder / "vocab.txt", "".join(token + "\n" for token in self.tokens))


def _special_tokens(known: Collection[str], name: str) -> list[str]:
    """Finds the token of each role. Raises: UserError, naming the vocabulary: one is missing."""
    found = {role: [t for t in names if t in known] for role, names in ROLES.items()}
    missing = [" or ".join(ROLES[role]) for role, names in found.items() if not names]
    if missing:
        raise UserError(f"{name} lacks the special token {', '.join(missing)}")
    return [names[0] for names in found.values()]


def _continuation(tokens: Sequence[str], kind: str) -> np.ndarray:
    """Says which pieces go on with a word: bool[V]."""
    if kind == "wordpiece":
        return np.array([token.startswith("##") for token in tokens])
    starts = [t.startswith("▁") or _is_control(t) or bool(_CHINESE.match(t)) for t in tokens]
    return ~np.array(starts)


def _from_json(text: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), text=text)


def _is_control(token: str) -> bool:
    return bool(re.fullmatch(r"<[^<>▁ ]+>|\[[A-Z]+\]", token))


def load_tokenizer(path: str | os.PathLike, lowercase: bool | None = None) -> Tokenizer:
    """Loads a BERT vocab.txt, a tokenizer.json, a SentencePiece model, or a folder with one.

    Args:
      path: the file or folder; in a folder, tokenizer.json goes before vocab.txt and *.model.
      lowercase: None to find out from the vocabulary.

    Raises:
      UserError: not found, unreadable, unsupported, or `lowercase` contradicts the vocabulary.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(file.name for file in path.glob("*.model"))
        names = ["tokenizer.json", "vocab.txt", *found, "vocab.json"]
        files = [path / name for name in names if (path / name).is_file()]
        if not files:
            what = f"{path} holds no tokenizer.json, vocab.txt or SentencePiece .model"
            raise UserError(f"{what}; {BPE}" if (path / "vocab.json").is_file() else what)
        path = files[0]
    if not path.is_file():
        raise UserError(f"vocabulary {path} does not exist")
    if path.name == "merges.txt" or _is_byte_level(path):
        raise UserError(
            f"{path} is a byte-level BPE vocabulary, as GPT-2 and RoBERTa have it; WordPiece and "
            "unigram ones are supported: give another, or train one (--config.vocab=)"
        )
    with library_errors(path):
        if path.suffix == ".json":
            backend, text = read_backend(path)
            return _check_case(Tokenizer(backend, str(path), text), lowercase, path)
        if path.suffix == ".model":
            return _check_case(Tokenizer(_from_sentencepiece(path), str(path)), lowercase, path)
        # The original reads with readline, which knows no line end but \n, and strips.
        lines = read_text(path).removesuffix("\n").split("\n")
        tokens = [line.strip() for line in lines]
        if any(t.startswith("▁") for t in tokens) and not any(t.startswith("##") for t in tokens):
            raise UserError(
                f"{path} lists pieces of a SentencePiece model (▁...), which cannot be told from a "
                "list; give its .model file"
            )
        return _check_case(wordpiece_tokenizer(tokens, name=str(path)), lowercase, path)


def _is_byte_level(path: Path) -> bool:
    """Whether a file is a vocab.json of ids by token, beside which merges.txt lies."""
    if path.suffix != ".json":
        return False
    try:
        values = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "Ġthe" in values


def wordpiece_tokenizer(
    tokens: Sequence[str],
    lowercase: bool | None = None,
    keep_whole: bool | None = None,
    name: str = "the vocabulary",
) -> Tokenizer:
    """BERT's tokenizer for `tokens`, whose position is their id.

    Source: google-research/bert tokenization.py, FullTokenizer.

    Args:
      tokens: V strings.
      lowercase: None to find out from the vocabulary: uncased unless it has cased ASCII words.
      keep_whole: Hangul and voiced kana; None to find out: if the vocabulary has any.
      name: what errors call the vocabulary.
    Raises: UserError: it has no [UNK].
    """
    if ROLES["unk"][0] not in tokens:
        raise UserError(f"{name} lacks the special token [UNK]")
    if lowercase is None:
        lowercase = not any(_CASED_PIECE.fullmatch(token) for token in tokens)
    if keep_whole is None:
        keep_whole = any(_KEPT_WHOLE.search(token) for token in tokens)
    ids = {token: number for number, token in enumerate(tokens)}
    special = set(itertools.chain(*ROLES.values()))
    if twice := [t for number, t in enumerate(tokens) if t in special and ids[t] != number]:
        raise UserError(f"{name} has the special token {twice[0]} twice")
    model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=200)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = bert_normalizer(lowercase, keep_whole)
    backend.pre_tokenizer = bert_pre_tokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    if "[CLS]" in ids and "[SEP]" in ids:
        backend.post_processor = processors.BertProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
    return Tokenizer(backend, name)


def bert_normalizer(lowercase: bool, keep_whole: bool = True) -> normalizers.Normalizer:
    """BERT's clean-up of text before it is split; `keep_whole` for Hangul and voiced kana."""
    plain = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=lowercase
    )
    if not lowercase:
        return plain
    if not keep_whole:
        return normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
        )
    accents = Regex("[\\p{Mn}&&[^\u3099\u309a]]+")  # all but the voicing marks of kana
    return normalizers.Sequence(
        [plain, normalizers.NFD(), normalizers.Replace(accents, ""), normalizers.NFC()]
    )


def bert_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """BERT's split into words: at white space, around punctuation and Chinese characters.

    The library's own leaves out 256 Chinese characters and the punctuation of newer Unicode.
    """
    left_out = Regex("[\U0002b820-\U0002b91f[\\p{P}&&[^\\x00-\\x7f]]]")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(left_out, "isolated"), pre_tokenizers.BertPreTokenizer()]
    )


def _check_case(tokenizer: Tokenizer, lowercase: bool | None, path: Path) -> Tokenizer:
    """Raises UserError where `lowercase` is not what the tokenizer does."""
    normalizer = tokenizer.backend.normalizer
    lowers = normalizer is not None and "a" in normalizer.normalize_str("A")
    if lowercase is not None and lowercase != lowers:
        kind = "uncased" if lowers else "cased"
        raise UserError(f"{path} is {kind}, which contradicts lowercase={lowercase}")
    return tokenizer


def _from_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """Builds the tokenizer of a SentencePiece unigram model (sentencepiece_model.proto)."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # its classes are made at run time
    model = proto.ModelProto.FromString(read_bytes(path))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != 1:
        kind = {2: "BPE", 3: "word", 4: "character"}.get(trainer.model_type, "unknown")
        raise UserError(f"{path} is a SentencePiece model of {kind} type; unigram is supported")
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        raise UserError(f"{path} marks spaces in a way that is not supported (only a leading ▁ is)")
    normal, control, unknown, user_defined, byte = 1, 3, 2, 4, 6
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    unk_id = next(i for i, piece in enumerate(model.pieces) if piece.type == unknown)
    backend = tokenizers.Tokenizer(
        models.Unigram(pieces, unk_id, any(p.type == byte for p in model.pieces))
    )
    steps: list[normalizers.Normalizer] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    special = [p.piece for p in model.pieces if p.type in (control, unknown)]
    special += [p.piece for p in model.pieces if p.type == user_defined and _is_control(p.piece)]
    # A control piece is never matched in text by sentencepiece: its first character is split off.
    # A user-defined piece is always matched as a whole.
    alone = [f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in special]
    alone += [re.escape(p.piece) for p in model.pieces if p.type == user_defined]
    alone.sort(key=len, reverse=True)
    several_words = any("▁" in p.piece[1:] for p in model.pieces if p.type == normal)
    spaces = pre_tokenizers.Metaspace(
        replacement="▁",
        prepend_scheme="always" if normalizer.add_dummy_prefix else "never",
        split=not several_words,
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [spaces, pre_tokenizers.Split(Regex("|".join(alone)), "isolated")]
    )
    backend.decoder = decoders.Metaspace(replacement="▁")
    return backend
