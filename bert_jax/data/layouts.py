"""Layouts: how the text of a split is cut into instances, pass by pass.

`SentencePairs` is the released algorithm for next-sentence prediction (google-research/bert
create_pretraining_data.py, `create_instances_from_document`, 223-335), `TokenBlocks` is for
objectives without it. A layout cuts the text of one pass into chunks, each named by one integer,
and says which tokens an instance takes.

Every random decision is a hash of (seed, pass, purpose, position), never a draw from a stream: so
nothing depends on what was computed before, here or on another machine, and a pass is described
by its chunk starts alone.

Shapes: B batch, S sequence, P pieces of an instance (2 for sentence pairs, 1 for blocks).
NumPy only, as `instances`.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.data.draws import Purpose, below, random_bits, uniform
from bert_jax.data.shared import SharedArrays

if TYPE_CHECKING:
    from bert_jax.data.corpus import Split

_PLAN_SENTENCES = 1 << 16  # sentences looked at together when planning: bounded memory, in cache


class Text:
    """Where sentences and documents lie in a split. Sentences and tokens are numbered globally.

    Attributes:
      offsets: int64[sentences + 1], the first token of every sentence, then the token count.
      document_ends: int64[documents], the sentence after the last of each.
    """

    def __init__(self, split: "Split", shared: SharedArrays):
        self._split, self._shared = split, shared
        self.document_ends = np.asarray(split.document_ends, np.int64)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        if not self._shared.folder:
            return _offsets(self._split)
        # Not kept besides by the process that makes it.
        return self._shared.get("offsets", lambda: _offsets.__wrapped__(self._split))

    def start_of(self, document: np.ndarray) -> np.ndarray:
        """The first sentence (int64) of every document."""
        return np.where(document > 0, self.document_ends[document - 1], 0)

    def document_of(self, sentence: np.ndarray) -> np.ndarray:
        """The document (int64) of every sentence."""
        return np.searchsorted(self.document_ends, sentence, side="right")

    def end_of_length(self, start: Any, length: Any, limit: Any) -> np.ndarray:
        """First end (exclusive sentence) at which sentences from `start` have `length` >= 1 tokens,
        or `limit`, if that comes first."""
        end = np.searchsorted(self.offsets, self.offsets[start] + length, side="left")
        return np.minimum(end, limit)


@functools.lru_cache(maxsize=2)  # the phases of a run are of one split
def _offsets(split: "Split") -> np.ndarray:
    """The first token of every sentence, then the token count: int64[sentences + 1]."""
    result = np.zeros(len(split.sentence_lengths) + 1, np.int64)
    np.cumsum(split.sentence_lengths, out=result[1:])
    return result


# Of the fields of a batch: the shape of a row, in which "S" stands for the sequence, and the dtype.
Fields = Mapping[str, tuple[tuple[str | int, ...], type]]

EVERY_BATCH: Fields = {
    "tokens": (("S",), np.int32),
    "segments": (("S",), np.int32),
    "lengths": ((), np.int32),
    "instance": ((2,), np.int32),
    "weight": ((), np.float32),
}


class Spans(NamedTuple):
    """The tokens of B instances: piece p of row b is tokens starts[b, p] .. ends[b, p] - 1."""

    starts: np.ndarray  # int64[B, P]
    ends: np.ndarray  # int64[B, P], > starts
    label: np.ndarray | None  # int32[B], of the pair; None: there is none


class Layout(Protocol):
    """How the text is cut into instances. A chunk is named by an integer unique in its pass."""

    texts: ClassVar[int]  # P, which the template joins to one sequence
    least: ClassVar[int]  # tokens of these texts together
    fields: ClassVar[Fields]  # of its batches, beside those of every batch

    def chunks(self, pass_: int) -> np.ndarray:
        """All chunks of a pass, int64[n], in the order of the text."""

    def spans(self, pass_: np.ndarray, chunk: np.ndarray) -> Spans:
        """The tokens of the instances made from the chunks; pass_, chunk: int64[B]."""


class SentencePairs:
    """The released algorithm (create_pretraining_data.py 223-335), one decision after the other:

    - a document's target length is S - 3 or, with `short_seq_prob`, uniform in [2, S - 3], drawn
      once per document and pass (230-241);
    - a chunk is the sentences up to the target length or the document's end; a random number of
      them, but not all if there are several, is segment A (252-266);
    - segment B is the rest of the chunk or, always after a chunk of one sentence and otherwise
      half the time, text from a random sentence of another document on (268-290); ten tries find
      another document, then the last one drawn is taken (279-282);
    - with a random B the rest of the chunk is put back: the next chunk starts there (291-294);
    - with `exact_half`, which is not in the released code, a chunk of one sentence takes the next
      one along, so that B is random half the time, but for the last sentence of a document;
    - the longer segment is cut, at its front or back, until the pair fits (300, 418-433).

    All decisions on a chunk are keyed by the sentence it starts at. So a chunk's start fixes the
    start of the next one, and the starts of a pass are one chain through the text.

    Their label is 1 where B is random ("is not next"), else 0.
    """

    texts, least = 2, 2
    fields: ClassVar[Fields] = {"pair_label": ((), np.int32)}

    def __init__(
        self,
        text: Text,
        max_tokens: int,
        seed: int,
        shared: SharedArrays,
        short_seq_prob: float = 0.1,
        exact_half: bool = False,
    ):
        """Cuts a text.

        Args:
          max_tokens: of both texts together.
          short_seq_prob: share of the documents with a short target length.
          exact_half: half of the pairs are random (paper), not more (released code).
        """
        del shared
        if not 0 <= short_seq_prob <= 1:
            raise UserError(f"short_seq_prob {short_seq_prob} is not between 0 and 1")
        self.text, self.seed, self.short_seq_prob = text, seed, short_seq_prob
        self.exact_half = exact_half
        self.max_tokens = max_tokens

    def chunks(self, pass_: int) -> np.ndarray:
        """The first sentence of every chunk of a pass, int64[n]."""
        text = self.text
        sentences = len(text.offsets) - 1
        targets = self._targets(pass_, np.arange(len(text.document_ends)))
        parts, start = [], 0
        for low in range(0, sentences, _PLAN_SENTENCES):
            # Where the next chunk would start, were this sentence the start of one. Computing it
            # for every sentence at once and following the chain costs less than to compute chunk
            # by chunk, and does not mind one document holding all the text.
            sentence = np.arange(low, min(low + _PLAN_SENTENCES, sentences))
            document = text.document_of(sentence)
            a_end, end, is_random = self._cut(pass_, sentence, document, targets[document])
            following = np.where(is_random, a_end, end).tolist()
            starts = []
            while start - low < len(following):
                starts.append(start)
                start = following[start - low]
            parts.append(np.array(starts, np.int64))
        return np.concatenate(parts)

    def spans(self, pass_: np.ndarray, chunk: np.ndarray) -> Spans:
        """The tokens of A and B after truncation; see `Layout`."""
        text = self.text
        document = text.document_of(chunk)
        target = self._targets(pass_, document)
        a_end, end, is_random = self._cut(pass_, chunk, document, target)
        a_tokens = text.offsets[a_end] - text.offsets[chunk]
        random_start, random_end = self._random_next(pass_, chunk, document, target - a_tokens)
        b_start = np.where(is_random, random_start, a_end)
        b_end = np.where(is_random, random_end, end)
        starts = text.offsets[np.stack([chunk, b_start], axis=1)]
        ends = text.offsets[np.stack([a_end, b_end], axis=1)]
        self._truncate(pass_, chunk, starts, ends)
        return Spans(starts, ends, is_random.astype(np.int32))

    def _targets(self, pass_: Any, document: np.ndarray) -> np.ndarray:
        """The target length in tokens of the documents in a pass (int64)."""
        is_short = uniform(self.seed, Purpose.SHORT, pass_, document) < self.short_seq_prob
        draw = uniform(self.seed, Purpose.SHORT_LENGTH, pass_, document)
        return np.where(is_short, 2 + below(draw, self.max_tokens - 1), self.max_tokens)

    def _cut(self, pass_: Any, start: np.ndarray, document: np.ndarray, target: np.ndarray):
        """Cuts chunks at `start`: (end of A, end of the chunk, is B random), ends exclusive."""
        limit = self.text.document_ends[document]
        end = self.text.end_of_length(start, target, limit)
        if self.exact_half:
            end = np.maximum(end, np.minimum(start + 2, limit))
        sentences = end - start
        a_sentences = 1 + below(uniform(self.seed, Purpose.A_END, pass_, start), sentences - 1)
        is_random = uniform(self.seed, Purpose.RANDOM_NEXT, pass_, start) < 0.5
        return start + a_sentences, end, is_random | (sentences == 1)

    def _random_next(self, pass_: np.ndarray, chunk: np.ndarray, document: np.ndarray, length: Any):
        """Sentences (start, end) of a random segment B of `length` tokens, or to its document's
        end; one sentence at least, also where segment A alone exceeds the target length."""
        text = self.text
        other = document
        for trial in range(10):
            draw = uniform(self.seed, Purpose.RANDOM_DOCUMENT, pass_, chunk, trial)
            other = np.where(other == document, below(draw, len(text.document_ends)), other)
            if not np.any(other == document):
                break
        first, limit = text.start_of(other), text.document_ends[other]
        draw = uniform(self.seed, Purpose.RANDOM_SENTENCE, pass_, chunk)
        start = first + below(draw, limit - first)
        return start, text.end_of_length(start, np.maximum(length, 1), limit)

    def _truncate(
        self, pass_: np.ndarray, chunk: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> None:
        """Narrows starts, ends int64[B, 2] in place to `max_tokens` together (418-433).

        One token at a time from the longer segment, from B if they are equal: so first what one
        has more than the other, then B and A in turn.
        """
        a_tokens, b_tokens = (ends - starts).T
        excess = np.maximum(a_tokens + b_tokens - self.max_tokens, 0)
        from_longer = np.minimum(excess, np.abs(a_tokens - b_tokens))
        in_turn = excess - from_longer
        a_longer = a_tokens > b_tokens
        cuts_a = np.where(a_longer, from_longer, 0) + in_turn // 2
        sides = ((Purpose.CUT_A, cuts_a), (Purpose.CUT_B, excess - cuts_a))
        for piece, (purpose, cuts) in enumerate(sides):
            front = self._front_cuts(purpose, pass_, chunk, cuts)
            starts[:, piece] += front
            ends[:, piece] -= cuts - front

    def _front_cuts(
        self, purpose: Purpose, pass_: np.ndarray, chunk: np.ndarray, cuts: np.ndarray
    ) -> np.ndarray:
        """How many of the `cuts` int64[B] of a segment are at its front: 1 coin = 1 bit each."""
        words = -(-cuts // 64)  # words of 64 coins, flat over the rows
        row = np.repeat(np.arange(len(cuts)), words)
        word = np.arange(len(row)) - np.repeat(np.cumsum(words) - words, words)
        coins = random_bits(self.seed, purpose, pass_[row], chunk[row], word)
        used = np.minimum(cuts[row] - 64 * word, 64).astype(np.uint64)
        coins &= np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - used)
        # Sums of whole numbers below 2^53: exact in the float64 that bincount adds in.
        return np.bincount(row, np.bitwise_count(coins), len(cuts)).astype(np.int64)


class TokenBlocks:
    """Contiguous blocks of at most K tokens that never cross a document's end.

    A document of T tokens gives ceil(T / K) blocks, as few as can be; the room that is left
    in them is divided at random between the first and the last, so that the cuts move from pass to
    pass. No token is lost or repeated. Documents that fill their blocks exactly do not move.
    """

    texts, least = 1, 1
    fields: ClassVar[Fields] = {}

    def __init__(self, text: Text, max_tokens: int, seed: int, shared: SharedArrays):
        self.text, self.seed, self.width = text, seed, max_tokens
        self._shared = shared

    @functools.cached_property
    def block_ends(self) -> np.ndarray:
        """The block after the last of every document, int64[documents]."""

        def make() -> np.ndarray:
            tokens = np.diff(self.text.offsets[self.text.document_ends], prepend=0)
            return np.cumsum(-(-tokens // self.width))

        return self._shared.get("block_ends", make)

    def chunks(self, pass_: int) -> np.ndarray:
        """The blocks' numbers, the same in every pass."""
        del pass_
        return np.arange(self.block_ends[-1])

    def spans(self, pass_: np.ndarray, chunk: np.ndarray) -> Spans:
        """The tokens of the blocks; see `Layout`."""
        text = self.text
        document = np.searchsorted(self.block_ends, chunk, side="right")
        first, last = text.start_of(document), text.document_ends[document]
        first, last = text.offsets[first], text.offsets[last]
        blocks = -(-(last - first) // self.width)
        number = chunk - (self.block_ends[document] - blocks)  # in its document
        room = blocks * self.width - (last - first)
        shift = below(uniform(self.seed, Purpose.BLOCK_SHIFT, pass_, document), room + 1)
        start = first - shift + number * self.width
        end = np.minimum(start + self.width, last)
        start = np.maximum(start, first)
        return Spans(start[:, None], end[:, None], None)


LAYOUTS: dict[str, Any] = {
    "pairs": SentencePairs,
    "blocks": TokenBlocks,
}
