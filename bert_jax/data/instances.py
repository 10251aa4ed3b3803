"""Training instances by index: instance i of pass p is a pure function of (corpus, seed, p, i).

Two layouts of the text: `SentencePairs`, the released algorithm for next-sentence prediction
(google-research/bert create_pretraining_data.py, `create_instances_from_document`, 223-335), and
`TokenBlocks` for objectives without it. A layout cuts the corpus of one pass into chunks, each
named by one integer, and says which tokens an instance takes; `Instances` shuffles the chunks and
makes batches of arrays.

Every random decision is a hash of (seed, pass, purpose, position), never a draw from a stream: so
nothing depends on what was computed before, here or on another machine, and a pass is described
by its chunk starts alone. Everything else of an instance is computed when its batch is made.

Shapes: B batch, S sequence, P pieces of an instance (2 for sentence pairs, 1 for blocks).
NumPy only: this code runs in loader threads and worker processes.
"""

import dataclasses
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from bert_jax.data.draws import Purpose, below, random_bits, uniform
from bert_jax.errors import UserError

if TYPE_CHECKING:
    from bert_jax.data.corpus import Split

Batch = dict[str, np.ndarray]

_CACHED_PASSES = 3  # prefetching threads work on both sides of a pass boundary
_PLAN_SENTENCES = 1 << 16  # sentences looked at together when planning: bounded memory, in cache


# Layouts: which tokens make an instance ----------------------------------------------------------


class Text:
    """Where sentences and documents lie in a split. Sentences and tokens are numbered globally.

    Attributes:
      offsets: int64[sentences + 1], the first token of every sentence, then the token count.
      document_starts, document_ends: int64[documents], sentences (end exclusive).
    """

    def __init__(self, split: "Split"):
        self.offsets = np.zeros(len(split.sentence_lengths) + 1, np.int64)
        np.cumsum(split.sentence_lengths, out=self.offsets[1:])
        self.document_ends = np.asarray(split.document_ends, np.int64)
        self.document_starts = np.concatenate([[0], self.document_ends[:-1]])

    def document_of(self, sentence: np.ndarray) -> np.ndarray:
        """The document (int64) of every sentence."""
        return np.searchsorted(self.document_ends, sentence, side="right")

    def end_of_length(self, start: Any, length: Any, limit: Any) -> np.ndarray:
        """First end (exclusive sentence) at which sentences from `start` have `length` >= 1 tokens,
        or `limit`, if that comes first."""
        end = np.searchsorted(self.offsets, self.offsets[start] + length, side="left")
        return np.minimum(end, limit)


class Spans(NamedTuple):
    """The tokens of B instances: piece p of row b is tokens starts[b, p] .. ends[b, p] - 1."""

    starts: np.ndarray  # int64[B, P]
    ends: np.ndarray  # int64[B, P], > starts
    is_random_next: np.ndarray  # bool[B]


class Layout(Protocol):
    """How the text is cut into instances. A chunk is named by an integer unique in its pass."""

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
    """

    def __init__(
        self, text: Text, seq_length: int, seed: int, short_seq_prob: float, exact_half: bool
    ):
        if seq_length < 5:  # the shortest target, 2, and [CLS] and two [SEP]
            raise UserError(f"seq_length {seq_length} is too short for sentence pairs: 5 at least")
        self.text, self.seed, self.short_seq_prob = text, seed, short_seq_prob
        self.exact_half = exact_half
        self.max_tokens = seq_length - 3

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
        return Spans(starts, ends, is_random)

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
        first, limit = text.document_starts[other], text.document_ends[other]
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
    """Contiguous blocks of at most S - 2 tokens that never cross a document's end.

    A document of T tokens gives ceil(T / (S - 2)) blocks, as few as can be; the room that is left
    in them is divided at random between the first and the last, so that the cuts move from pass to
    pass. No token is lost or repeated. Documents that fill their blocks exactly do not move.
    """

    def __init__(self, text: Text, seq_length: int, seed: int):
        if seq_length < 3:
            raise UserError(f"seq_length {seq_length} is too short for blocks: 3 at least")
        self.text, self.seed, self.width = text, seed, seq_length - 2
        tokens = text.offsets[text.document_ends] - text.offsets[text.document_starts]
        self.block_ends = np.cumsum(-(-tokens // self.width))  # int64[documents]

    def chunks(self, pass_: int) -> np.ndarray:
        """The blocks' numbers, the same in every pass."""
        del pass_
        return np.arange(self.block_ends[-1])

    def spans(self, pass_: np.ndarray, chunk: np.ndarray) -> Spans:
        """The tokens of the blocks; see `Layout`."""
        text = self.text
        document = np.searchsorted(self.block_ends, chunk, side="right")
        first, last = text.document_starts[document], text.document_ends[document]
        first, last = text.offsets[first], text.offsets[last]
        blocks = -(-(last - first) // self.width)
        number = chunk - (self.block_ends[document] - blocks)  # in its document
        room = blocks * self.width - (last - first)
        shift = below(uniform(self.seed, Purpose.BLOCK_SHIFT, pass_, document), room + 1)
        start = first - shift + number * self.width
        end = np.minimum(start + self.width, last)
        start = np.maximum(start, first)
        return Spans(start[:, None], end[:, None], np.zeros(len(chunk), bool))


# Instances ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Instances:
    """The endless sequence of training instances of a split: slot 0, 1, 2 ...

    Slot k is instance k % N of pass k // N, N being the number of chunks of pass 0: finding any
    slot costs the same. Every pass goes through its own chunks in its own random order. Passes of
    sentence pairs differ in their number of chunks, because every document draws its target length
    anew: a pass with more than N leaves a random rest out, one with fewer begins again at its
    first ones, under other ids and so with other masks. The fewer and longer the documents, the
    more: standard deviation 5% of N for S = 128 and 10% for S = 512 on 218 books, 0.3% and 0.5%
    when the same text is cut into 30,000 documents. Blocks do not differ.

    For evaluation take the first slots of pass 0 under a seed that never changes: a fixed sample,
    spread over the whole split.

    Attributes:
      split: the tokenised text.
      seq_length: S, [CLS] and [SEP] included.
      seed: of everything here; any integer.
      cls_id, sep_id, pad_id: ids of the special tokens.
      pairs: sentence pairs with a label, or blocks of text.
      short_seq_prob: share of the documents with a short target length (pairs only).
      exact_half: half of the pairs are random (paper), not more (released code).
      dupe_factor: None: every pass is new; k: passes repeat after k, as the k copies of the
        released code's data do, and `instance` of their batches too, so masks repeat with them.

    Raises:
      UserError: a value that makes no instance possible.
    """

    split: "Split"
    seq_length: int
    seed: int
    cls_id: int
    sep_id: int
    pad_id: int
    pairs: bool = True
    short_seq_prob: float = 0.1
    exact_half: bool = False
    dupe_factor: int | None = None

    def __post_init__(self) -> None:
        if not len(self.split.document_ends):
            raise UserError("this split of the corpus has no document: prepare it from more text")
        if not 0 <= self.short_seq_prob <= 1:
            raise UserError(f"short_seq_prob {self.short_seq_prob} is not between 0 and 1")
        if self.dupe_factor is not None and self.dupe_factor < 1:
            raise UserError(f"dupe_factor {self.dupe_factor} is not None or 1, 2, ...")
        self._text = Text(self.split)
        self._layout: Layout = (
            SentencePairs(
                self._text, self.seq_length, self.seed, self.short_seq_prob, self.exact_half
            )
            if self.pairs
            else TokenBlocks(self._text, self.seq_length, self.seed)
        )
        self._lock = threading.Lock()
        self._per_pass: int | None = None
        self._orders: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes get the arguments and build their own indices and plans.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def per_pass(self) -> int:
        """N, the slots of a pass."""
        if self._per_pass is None:
            self._per_pass = len(self.order(0))
        return self._per_pass

    def ids(self, slots: np.ndarray) -> np.ndarray:
        """(pass, index in the pass) of slots int64[B]: int32[B, 2], what corruption is keyed by."""
        pass_, index = np.divmod(np.asarray(slots, np.int64), self.per_pass)
        if self.dupe_factor is not None:
            pass_ %= self.dupe_factor
        return np.stack([pass_, index], axis=1).astype(np.int32)

    def batch(self, slots: np.ndarray) -> Batch:
        """The instances of slots int64[B], each the same whatever the others.

        Returns:
          tokens int32[B, S]: [CLS] A [SEP] B [SEP], or [CLS] block [SEP]; then pad_id.
          segments int32[B, S]: 1 for B and its [SEP], else 0.
          lengths int32[B]: tokens that are not padding.
          is_random_next int32[B]: 1 where B is random; only with `pairs`.
          instance int32[B, 2]: see `ids`.
          weight float32[B]: 1.
        """
        ids = self.ids(slots)
        pass_, index = ids.astype(np.int64).T
        chunk = np.empty_like(index)
        for number in np.unique(pass_):
            order = self.order(int(number))
            rows = pass_ == number
            chunk[rows] = order[index[rows] % len(order)]
        spans = self._layout.spans(pass_, chunk)
        batch = self._assemble(spans)
        if self.pairs:
            batch["is_random_next"] = spans.is_random_next.astype(np.int32)
        batch["instance"] = ids
        batch["weight"] = np.ones(len(ids), np.float32)
        return batch

    def _assemble(self, spans: Spans) -> Batch:
        """Reads the pieces and puts them between the special tokens."""
        rows, pieces = spans.starts.shape
        tokens = np.full((rows, self.seq_length), self.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        is_text = np.zeros(tokens.shape, bool)
        tokens[:, 0] = self.cls_id
        position = np.arange(self.seq_length)
        begin = np.ones((rows, 1), np.int64)
        for piece in range(pieces):
            sep = begin + (spans.ends - spans.starts)[:, piece : piece + 1]
            is_text |= (position >= begin) & (position < sep)
            segments += piece * ((position >= begin) & (position <= sep))
            tokens[np.arange(rows), sep[:, 0]] = self.sep_id
            begin = sep + 1
        # Both sides go row by row, and through the pieces of a row in their order.
        tokens[is_text] = np.concatenate(self._read(spans.starts.ravel(), spans.ends.ravel()))
        return {"tokens": tokens, "segments": segments, "lengths": begin[:, 0].astype(np.int32)}

    def _read(self, starts: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
        """Tokens starts[k] .. ends[k] - 1 for every k, in one read of the split."""
        offsets = self._text.offsets
        first = np.searchsorted(offsets, starts, side="right") - 1
        last = np.searchsorted(offsets, ends, side="left")
        skip, take = starts - offsets[first], ends - starts
        read = self.split.tokens(first, last)
        return [text[s : s + n] for text, s, n in zip(read, skip, take, strict=True)]

    def order(self, pass_: int) -> np.ndarray:
        """The chunks of a pass in the order of its slots, int64[n]; cached."""
        order = self._orders.get(pass_)
        if order is None:
            with self._lock:  # threads that need this pass wait for one of them to make it
                order = self._orders.get(pass_)
                if order is None:
                    chunks = self._layout.chunks(pass_)
                    keys = random_bits(self.seed, Purpose.ORDER, pass_, chunks)
                    order = chunks[np.argsort(keys, kind="stable")]
                    while len(self._orders) >= _CACHED_PASSES:
                        self._orders.pop(next(iter(self._orders)))
                    self._orders[pass_] = order
        return order
