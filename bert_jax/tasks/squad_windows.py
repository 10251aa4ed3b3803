"""Long passages in windows that overlap, and the candidate answers of each.

Source: google-research/bert run_squad.py (`_DocSpan`, `_check_is_max_context`, the loops of
`write_predictions`).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from unicodedata import category

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks.base import bar

_CHUNK = 1000  # texts tokenised at a time


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A text in P pieces: ids int32[P], offsets int32[P, 2] (first character, past the last)."""

    ids: np.ndarray
    offsets: np.ndarray

    def span(self, begin: int, end: int) -> tuple[int, int] | None:
        """First and last of the fewest pieces that hold characters begin .. end - 1, if any do."""
        touched = np.flatnonzero((self.offsets[:, 1] > begin) & (self.offsets[:, 0] < end))
        return (int(touched[0]), int(touched[-1])) if len(touched) else None


@dataclasses.dataclass(frozen=True)
class Window:
    """What a sequence shows of a passage: W pieces from position `first` on.

    offsets: int32[W, 2], characters of the passage. max_context: bool[W], where no other window
    gives the piece more context.
    """

    offsets: np.ndarray
    first: int
    max_context: np.ndarray


@dataclasses.dataclass(frozen=True)
class Candidates:
    """K spans of a window: characters int64[K, 2], start and end logits float64[K, 2].

    null: the two logits of no answer.
    """

    spans: np.ndarray
    logits: np.ndarray
    null: np.ndarray


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Pieces]:
    """The pieces of each text.

    The tokenizer's offsets are mended in two ways, so that a cut between pieces is a cut between
    the letters of the text: the space that a SentencePiece piece begins with is not part of it; and
    characters of a word that no piece claims (an accent that was stripped, the rest of a Hangul
    syllable written as separate Jamo) belong to the piece before them.
    """
    result = {}
    starts = range(0, len(texts), _CHUNK)
    for chunk in bar(starts, "tokenising", len(starts), "k texts"):
        part = texts[chunk : chunk + _CHUNK]
        encodings = tokenizer.backend.encode_batch(part, add_special_tokens=False)
        for text, encoding in zip(part, encodings, strict=True):
            offsets = np.array(_mended(text, encoding.offsets), np.int32).reshape(-1, 2)
            result[text] = Pieces(np.array(encoding.ids, np.int32), offsets)
    return result


def _mended(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    result = []
    limit = len(text)  # where the next piece begins
    for begin, end in reversed(offsets):
        while begin < end and text[begin].isspace():
            begin += 1
        while end < limit and not text[end].isspace() and category(text[end])[0] != "C":
            end += 1
        result.append((begin, end))
        limit = begin
    return result[::-1]


def windows(passage: Pieces, room: int, stride: int, first: int) -> Iterator[tuple[int, Window]]:
    """The windows of a passage, each with the index of its first piece.

    room: pieces that a window can hold. stride: pieces from one window to the next.
    """
    count = len(passage.ids)
    starts = [0] if count else []
    while starts and count - starts[-1] > room:
        starts.append(starts[-1] + min(room, stride))
    context = np.full(count, -np.inf)  # the most that a window gives each piece, and which does
    best = np.zeros(count, np.int64)
    for number, start in enumerate(starts):
        rows = slice(start, start + room)
        left = np.arange(len(context[rows]))
        given = np.minimum(left, left[::-1]) + 0.01 * len(left)
        best[rows] = np.where(given > context[rows], number, best[rows])
        context[rows] = np.maximum(given, context[rows])
    for number, start in enumerate(starts):
        rows = slice(start, start + room)
        yield start, Window(passage.offsets[rows], first, best[rows] == number)


def candidates(
    window: Window, start: np.ndarray, end: np.ndarray, n_best: int, max_answer: int
) -> Candidates:
    """The spans made of the `n_best` highest start and end logits, in the released order.

    A span lies in the window, is not longer than `max_answer` pieces, and starts where the window
    is the one of most context. start, end: logits float[S], without padding.
    """
    starts, ends = (np.argsort(-x, kind="stable")[:n_best] for x in (start, end))
    i, j = (x.ravel() for x in np.meshgrid(starts, ends, indexing="ij"))
    a, b = i - window.first, j - window.first
    count = len(window.offsets)
    valid = (a >= 0) & (b < count) & (a <= b) & (b - a < max_answer)
    valid &= window.max_context[np.clip(a, 0, count - 1)]
    a, b, i, j = a[valid], b[valid], i[valid], j[valid]
    spans = np.stack([window.offsets[a, 0], window.offsets[b, 1]], axis=1).astype(np.int64)
    logits = np.stack([start[i], end[j]], axis=1).astype(np.float64)
    text = spans[:, 0] < spans[:, 1]  # a piece that stands for a space has none
    null = np.array([start[0], end[0]], np.float64)
    return Candidates(spans[text], logits[text], null)
