"""Reads tokenizer.json, and refuses what the library would panic at or never come back from."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from msgspec import Meta, Struct

from bert_jax.common.errors import UserError
from bert_jax.common.files import check, library_errors, parse_json, read_text

BPE = (
    "a vocab.json is of byte-level BPE (GPT-2, RoBERTa), which is not supported: give a BERT "
    "vocab.txt, a tokenizer.json of WordPiece or unigram, or a SentencePiece .model"
)
_LARGEST_ID = 1 << 22
_LONGEST_PATTERN = 100_000
_Id = Annotated[int, Meta(ge=0, le=_LARGEST_ID)]


class _Model(Struct):
    type: str = ""
    vocab: dict[str, _Id] | list[tuple[str, float]] = {}


class _AddedToken(Struct):
    id: _Id
    content: str


class _File(Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []


def read_backend(path: Path) -> tuple[tokenizers.Tokenizer, str]:
    """Reads a tokenizer.json.

    Returns: what the library makes of it, and its text.
    Raises: UserError, naming the file: it is damaged, two tokens share an id, ids are far beyond
      the number of tokens, or a regular expression could take time without bound.
    """
    text = read_text(path)
    values = parse_json(text, str(path))
    if isinstance(values, dict) and values and all(isinstance(x, int) for x in values.values()):
        raise UserError(f"{path} is a list of tokens alone; {BPE}")
    file: _File = check(values, _File, str(path))
    vocab = file.model.vocab
    ids = {token.id: token.content for token in file.added_tokens}
    for number, (piece, _) in enumerate(vocab) if isinstance(vocab, list) else ():
        ids.setdefault(number, piece)
    for token, number in vocab.items() if isinstance(vocab, dict) else ():
        if ids.setdefault(number, token) != token:
            raise UserError(f"{path}: {token!r} and {ids[number]!r} have the same id, {number}")
    if ids and max(ids) > 2 * len(ids) + 1000:
        raise UserError(f"{path}: there is an id {max(ids)}, but only {len(ids)} tokens")
    for pattern in _patterns(values):
        if not is_bounded(pattern):
            raise UserError(
                f"{path}: the regular expression {pattern!r:.80} could take time without bound"
            )
    with library_errors(path):
        return tokenizers.Tokenizer.from_str(text), text


def _patterns(value: Any) -> Iterator[str]:
    """The regular expressions in the steps of a tokenizer."""
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        waiting = [value.get(name)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                if isinstance(found := node.get("Regex"), str):
                    yield found
                waiting += node.values()
            elif isinstance(node, list):
                waiting += node


def is_bounded(pattern: str) -> bool:
    r"""Whether matching a regular expression takes time linear in the text, or nearly so.

    An engine that backtracks takes exponential time where something repeated holds a repetition or
    a choice, as (a+)+ or (a|aa)*, and time of a high power where repetitions follow each other, as
    \s*\s*\s*; so no repeated group may hold either, and no branch more than two repetitions without
    a bound. What a back reference costs nobody knows.
    """
    if len(pattern) > _LONGEST_PATTERN:
        return False
    # Of each open group: whether it holds a repetition or a choice, and repetitions of its branch.
    groups = [[False, 0]]
    closed: list[Any] | None = None  # the group that ends just before
    for found in _TOKEN.finditer(pattern):
        token = found[0]
        if re.fullmatch(r"\\[1-9k].*", token):
            return False
        many = token[0] in "*+" or (token[0] == "{" and re.fullmatch(r"\{\d*,\d*\}.?", token))
        if many or token[0] == "?":
            if closed and closed[0] and many:
                return False
            groups[-1][0] = True
            groups[-1][1] += bool(many)
            if groups[-1][1] > 2:
                return False
        elif token == "|":
            groups[-1] = [True, 0]
        elif token[0] == "(":
            groups.append([False, 0])
            closed = None
            continue
        if token == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1][0] |= closed[0]
            groups[-1][1] += closed[1]
            if groups[-1][1] > 2:
                return False
        elif not (many or token[0] == "?"):
            closed = None
    return True


# One thing of an expression: an escape, a class (which may hold classes), a quantifier, a letter.
_CLASS = r"\[\^?\]?(?:\\.|\[(?:\\.|[^\[\]\\])*\]|[^\[\]\\])*\]"
_OPEN = r"\((?:\?(?:[:=!>]|<[=!]|[imx-]+:?|<\w+>))?"
_TOKEN = re.compile(
    rf"\\[pPxu]\{{[^}}]*\}}|\\.|{_CLASS}|[*+?][+?]?|\{{\d*,?\d*\}}[+?]?|{_OPEN}|[)|]|.", re.DOTALL
)
