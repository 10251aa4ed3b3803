"""Trains a vocabulary on a sample of the text; the same sample gives the same bytes."""

import io
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import models, trainers

from bert_jax.common.errors import UserError
from bert_jax.data.tokenizer import (
    ROLES,
    Tokenizer,
    bert_normalizer,
    bert_pre_tokenizer,
    load_tokenizer,
    wordpiece_tokenizer,
)

COVERAGE = 0.9999  # share of the characters of the text that the alphabet covers
SMALLEST = 100
_LINE_CHARS = 2000


def train_vocabulary(
    sample: Sequence[Path], kind: str, size: int, lowercase: bool, folder: Path
) -> Tokenizer:
    """Trains a vocabulary; its size is at most `size`, less where the text supports no more.

    Args:
      sample: UTF-8 text files, a paragraph a line.
      kind: `wordpiece` or `unigram`.
      size: wanted number of ids.
      lowercase: an uncased vocabulary.
      folder: for the files of the trainer.

    Raises:
      UserError: `size` is below SMALLEST, or the sample has no text.
    """
    if size < SMALLEST:
        raise UserError(f"vocab_size={size} is too small for a vocabulary; at least {SMALLEST}")
    if not any(path.stat().st_size for path in sample):
        raise UserError("there is no text to train a vocabulary on")
    if kind == "unigram":
        path = folder / "unigram.model"
        path.write_bytes(_unigram(sample, size, lowercase))
        return load_tokenizer(path)
    return wordpiece_tokenizer(_wordpiece(sample, size, lowercase), lowercase, keep_whole=True)


def _lines(sample: Sequence[Path]) -> Iterator[str]:
    for path in sample:
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                for begin in range(0, len(line), _LINE_CHARS):
                    yield line[begin : begin + _LINE_CHARS]


def _wordpiece(sample: Sequence[Path], size: int, lowercase: bool) -> list[str]:
    """The pieces: special tokens, sorted alphabet (beginning a word, continuing it), merges.

    The trainer numbers `##x` characters in the order of a hash table, which differs from run to
    run and decides ties; given as special tokens they have fixed numbers.
    """
    normalizer = bert_normalizer(lowercase)
    alphabet = _alphabet(_lines(sample), normalizer, size // 4)
    special = [names[0] for names in ROLES.values()]
    fixed = special + alphabet + ["##" + character for character in alphabet]
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = bert_pre_tokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_lines(sample), trainer)
    ids = backend.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _alphabet(lines: Iterator[str], normalizer, most: int) -> list[str]:
    """Sorted characters that cover COVERAGE of the text, at most `most`; ASCII ones always."""
    raw: Counter[str] = Counter()
    for line in lines:
        raw.update(unicodedata.normalize("NFC", line))
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in normalizer.normalize_str(character).replace(" ", ""):
            counts[normal] += count
    wanted = COVERAGE * counts.total()
    covered = 0
    result: list[str] = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered < wanted and len(result) < most:
            result.append(character)
        covered += count
    return sorted(result)


def _unigram(sample: Sequence[Path], size: int, lowercase: bool) -> bytes:
    """A SentencePiece model; one thread, as its sums depend on the number of threads."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line.rstrip("\n") for line in _lines(sample)),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=COVERAGE,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            max_sentence_length=4 * _LINE_CHARS + 1,
            num_threads=1,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece="<pad>",
            unk_piece="<unk>",
            control_symbols=["<cls>", "<sep>", "<mask>"],
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"no unigram vocabulary of {size} could be trained: {reason}") from error
    return model.getvalue()
