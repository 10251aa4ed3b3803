"""CoNLL columns: tagged sentences in files, tagging schemes, and the scores of conlleval.

Sources: the shared tasks of CoNLL-2000 and CoNLL-2003 (their formats and `conlleval`), WNUT 2017,
KLUE-NER 1.1 (characters as rows, `##` headers). Tags are IOB2 everywhere inside: `O`, `B-TYPE` at
the start of every entity, `I-TYPE` within it.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bert_jax.common.errors import UserError
from bert_jax.data.opened import read_lines

Tags = Sequence[str]

_BEGIN, _END = "BSU", "ESLU"  # letters at the beginning and at the end of an entity
_TAG = re.compile(r"O|[BIESLU]-.+")
_DOCUMENT = "-DOCSTART-"
_HEADER = "##"


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence.

    words: its words; of running text (KLUE), its characters. tags: IOB2, one a word, or None.
    where: `file:line` of the first word; the others follow, a line each. group: its document.
    written: the tags as the file has them, in whatever scheme. others: of each word, the columns
    between word and tag.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    where: str = ""
    group: str = ""
    written: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)
    others: tuple[tuple[str, ...], ...] = dataclasses.field(default=(), repr=False, compare=False)

    def where_word(self, place: int) -> str:
        """Where a word was read."""
        file, _, line = self.where.rpartition(":")
        return f"{file}:{int(line) + place}" if line.isdigit() and file else self.where


def read_sentences(path: Path, joined: bool = False) -> list[Sentence]:
    """The sentences of a file: the first column is the word, the last the tag.

    With one column only, sentences have no tags. Columns are between tabs, or else white space.

    Args:
      joined: `##` lines are comments and headers (`## ID<TAB>text`).

    Raises:
      UserError: not UTF-8, no sentences, lines of different numbers of columns, or not tags.
    """
    sentences: list[Sentence] = []
    width = 0
    for name, document, block in _blocks(path, joined):
        for number, columns in block:
            width = width or len(columns)
            if len(columns) != width:
                raise UserError(
                    f"{path}:{number}: {len(columns)} columns, where the lines above have {width}; "
                    "each line must hold a word and its tag, with a blank line after a sentence"
                )
        written: tuple[str, ...] = ()
        if width > 1:
            for number, columns in block:
                if not _TAG.fullmatch(columns[-1]):
                    raise _not_a_tag(path, number, columns[-1])
            written = tuple(columns[-1] for _, columns in block)
        sentences.append(
            Sentence(
                id=name or str(len(sentences)),
                words=tuple(columns[0] for _, columns in block),
                tags=to_iob2(written) if width > 1 else None,
                where=f"{path}:{block[0][0]}",
                group=f"{path.name}#{document}" if document else "",
                written=written,
                others=tuple(tuple(columns[1:-1]) for _, columns in block) if width > 2 else (),
            )
        )
    if not sentences:
        raise UserError(f"{path} holds no sentences")
    return sentences


class TagsOfFile(tuple[str, ...]):
    """Predicted tags of a sentence as IOB2, from a file.

    written: the gold and the predicted tag of each word as conlleval reads them: not converted.
    """

    written: Sequence[tuple[str, str]]


def read_tags(path: Path, sentences: Sequence[Sentence], joined: bool = False) -> list[TagsOfFile]:
    """Reads the last column of a file with the same words as `sentences`.

    BIOES, BILOU and files in IOB1 become IOB2; IOB2 stays as it is, as a stray I counts in some
    scores. The gold tags that are `written` are those beside the prediction, where the file has a
    column of tags there with the entities of `sentences`; else those of the file of `sentences`.

    Raises: UserError where it has other sentences, or something else than tags.
    """
    blocks = [block for _, _, block in _blocks(path, joined)]
    for sentence, block in zip(sentences, blocks, strict=False):
        if len(block) != len(sentence.words):
            raise UserError(
                f"{path}:{block[0][0]}: a sentence of {len(block)} words, where {sentence.where} "
                f"has {len(sentence.words)}: these are not predictions for that file"
            )
        for (number, columns), word in zip(block, sentence.words, strict=True):
            if not _TAG.fullmatch(columns[-1]):
                raise _not_a_tag(path, number, columns[-1])
            if len(columns) > 1 and columns[0] != word:
                raise UserError(
                    f"{path}:{number}: the word is {columns[0]!r}, where {sentence.where} has "
                    f"{word!r}: these are not predictions for that file"
                )
    if len(blocks) != len(sentences):
        raise UserError(f"{path}: {len(blocks)} sentences, where there should be {len(sentences)}")
    tags = [tuple(columns[-1] for _, columns in block) for block in blocks]
    others = any(tag[0] not in "BIO" for sentence in tags for tag in sentence)
    # Of running text a stray I is always one: IOB1 is a scheme of words.
    convert = others or (not joined and _is_iob1(tags))
    found = []
    for sentence, block, predicted in zip(sentences, blocks, tags, strict=True):
        one = TagsOfFile(to_iob2(predicted) if convert else predicted)
        gold = _gold_beside(block, sentence) or sentence.written or sentence.tags or predicted
        one.written = tuple(zip(gold, predicted, strict=True))
        found.append(one)
    return found


def _gold_beside(block: Sequence[tuple[int, Sequence[str]]], sentence: Sentence) -> Tags:
    """Returns the column before the last if it holds the gold tags of a sentence, else nothing."""
    column = [columns[-2] for _, columns in block if len(columns) > 2]
    if len(column) < len(block) or not all(map(_TAG.fullmatch, column)):
        return ()
    return column if to_iob2(column) == sentence.tags else ()


def _is_iob1(sentences: Iterable[Tags]) -> bool:
    """Whether every B parts two entities of a type, and some I begins one."""
    pairs = [pair for tags in sentences for pair in itertools.pairwise(["O", *tags])]
    parts = all(before[2:] == tag[2:] for before, tag in pairs if tag[0] == "B")
    return parts and any(before[2:] != tag[2:] for before, tag in pairs if tag[0] == "I")


def to_iob2(tags: Tags) -> tuple[str, ...]:
    """Tags of any scheme (IOB1, IOB2, BIOES, BILOU) as IOB2."""
    result = ["O"] * len(tags)
    for kind, start, end in chunks(tags):
        result[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return tuple(result)


def chunks(tags: Tags, strict: bool = False) -> list[tuple[str, int, int]]:
    """Finds the entities (type, start, end) of a sentence in IOB1, IOB2, IOE, BIOES or BILOU.

    As in conlleval a tag goes on with the entity before it if that is of its type, unless it is a B
    or follows an E: so `E-X I-X` are two entities. S and U, which that script does not know, are
    both a B and an E, and L is an E. And a B ends whatever is before it; to conlleval it does not
    end an E, which no file has that is all of one scheme that the script knows.

    strict: as seqeval's IOB2 and KLUE have it, an entity begins at B, S and U alone; what else does
    not go on with one is outside.
    """
    found, kind, start, before = [], "", 0, "O"
    for place, tag in enumerate([*tags, "O"]):
        letter, _, new = tag.partition("-")
        goes_on = kind and new == kind and letter not in _BEGIN and before not in _END
        if not goes_on:
            if kind:
                found.append((kind, start, place))
            kind, start = "" if strict and letter not in _BEGIN else new, place
        before = letter
    return found


def as_inside(tags: Tags, labels: Iterable[str]) -> Tags:
    """Tags for `chunks`: where all of `labels` are plain types (`O`, `PER`), `PER` is `I-PER`.

    So neighbours of one type are one entity. Source: the token-classification pipeline of
    transformers, which does the same.
    """
    if any(_TAG.fullmatch(label) for label in labels if label != "O"):
        return tags
    return [tag if tag == "O" else f"I-{tag}" for tag in tags]


@dataclasses.dataclass
class Counts:
    """Entities: in the gold tags, found by the prediction, and both (same span and type)."""

    gold: int = 0
    found: int = 0
    correct: int = 0

    @property
    def precision(self) -> float:
        """Of what was found; 0 to 1, 0 where nothing was."""
        return self.correct / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Of what is there; 0 to 1, 0 where nothing is."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        return 2 * self.correct / (self.gold + self.found) if self.correct else 0.0


def count(
    gold: Sequence[Tags], predicted: Sequence[Tags], strict: bool = False
) -> dict[str, Counts]:
    """Counts of each type in either, sorted by type. Source: conlleval of CoNLL-2000."""
    counts: dict[str, Counts] = collections.defaultdict(Counts)
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        true, found = set(chunks(gold_tags, strict)), set(chunks(predicted_tags, strict))
        for field, entities in (("gold", true), ("found", found), ("correct", true & found)):
            for kind, _, _ in entities:
                setattr(counts[kind], field, getattr(counts[kind], field) + 1)
    return dict(sorted(counts.items()))


def total(counts: Iterable[Counts]) -> Counts:
    """All types together."""
    rows = [dataclasses.astuple(row) for row in counts]
    return Counts(*(sum(column) for column in zip(*rows, strict=True)))


def accuracy(gold: Sequence[Tags], predicted: Sequence[Tags]) -> float:
    """Computes the share of words with the right tag, as both sides write it."""
    pairs = [p for g, t in zip(gold, predicted, strict=True) for p in zip(g, t, strict=True)]
    return sum(a == b for a, b in pairs) / max(len(pairs), 1)


def character_f1(gold: Sequence[Tags], predicted: Sequence[Tags], labels: Sequence[str]) -> float:
    """KLUE's character-level macro F1: the mean of the F1 of every tag, O among them.

    Source: KLUE-baseline, `klue_ner_char_macro_f1`: a tag that occurs nowhere counts as 1, and
    [CLS] and [SEP] of every sentence count as O (here, as rightly predicted).
    """
    right: collections.Counter[str] = collections.Counter(O=2 * len(gold))
    either = collections.Counter(O=4 * len(gold))  # in the gold tags + in the predictions
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        right.update(a for a, b in zip(gold_tags, predicted_tags, strict=True) if a == b)
        either.update([*gold_tags, *predicted_tags])
    return sum(2 * right[t] / either[t] if either[t] else 1.0 for t in labels) / max(len(labels), 1)


def report(gold: Sequence[Tags], predicted: Sequence[Tags]) -> str:
    """The table that conlleval prints."""
    counts = count(gold, predicted)
    every = total(counts.values())
    rows = [("", every, ""), *((kind, row, f"  {row.found}") for kind, row in counts.items())]
    lines = [
        f"processed {sum(map(len, gold))} tokens with {every.gold} phrases; "
        f"found: {every.found} phrases; correct: {every.correct}."
    ]
    for kind, row, found in rows:
        start = f"{kind:>17}" if kind else f"accuracy: {100 * accuracy(gold, predicted):6.2f}%"
        lines.append(
            f"{start}{':' if kind else ';'} precision: {100 * row.precision:6.2f}%; "
            f"recall: {100 * row.recall:6.2f}%; FB1: {100 * row.f1:6.2f}{found}"
        )
    return "\n".join(lines) + "\n"


def _blocks(path: Path, headers: bool) -> Iterator[tuple[str, int, list[tuple[int, list[str]]]]]:
    """(id, number of the document, [(line number, columns)]) of each sentence.

    The id is "" without a header; the number is 0 where the file marks no documents.
    """
    name, document = "", 0
    block: list[tuple[int, list[str]]] = []
    for number, line in enumerate(itertools.chain(read_lines(path), [""]), 1):
        line = line.rstrip("\r\n")
        if headers and line == " ":  # a character of running text, without a tag
            block.append((number, [line]))
            continue
        line = line.rstrip("\t ")
        if headers and line.startswith(_HEADER):
            name = line[len(_HEADER) :].split("\t")[0].strip()
            continue
        marks_document = line.startswith(_DOCUMENT)
        if line and not marks_document:
            # At these alone: other white space, such as a no-break space, is part of a word.
            columns = line.split("\t") if "\t" in line else line.split(" ")
            block.append((number, columns if "\t" in line else [c for c in columns if c]))
            continue
        if block:
            yield name, document, block
        block = []
        document += marks_document


def _not_a_tag(path: Path, number: int, text: str) -> UserError:
    return UserError(
        f"{path}:{number}: {text!r} is not a tag (O, B-TYPE or I-TYPE); the last column holds tags"
    )
