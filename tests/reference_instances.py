"""The released pair algorithm, slow and literal: what bert_jax/data/instances.py must agree with.

A statement in other words of create_instances_from_document and truncate_seq_pair
(google-research/bert create_pretraining_data.py, 223-335 and 418-433) over lists of lists: it walks
the sentences with an index that goes back for unused ones, and truncates token by token.

Where the randomness comes from is an argument: `KeyedDraws`, the project's hash written again
with Python's integers, gives the very instances of the project; `FreeDraws`, Python's generator,
gives independent ones, for statistics.
"""

import dataclasses
import random

import numpy as np

from bert_jax.data.draws import Purpose
from bert_jax.data.instances import Instances
from bert_jax.data.template import Template

CLS, SEP, PAD = 2, 3, 0
FIRST = 10  # id of the first token that is text
_ALL_BITS = 2**64 - 1


def keyed_bits(*keys):
    """SplitMix64 over the keys: `bert_jax.data.draws.random_bits` for single integers."""
    bits = 0
    for key in keys:
        bits = (bits + ((key & _ALL_BITS) + 1) * 0x9E3779B97F4A7C15) & _ALL_BITS
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _ALL_BITS
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _ALL_BITS
        bits = bits ^ (bits >> 31)
    return bits


class KeyedDraws:
    """Draws keyed by seed, purpose, pass, position and counter."""

    def __init__(self, seed, pass_):
        self.seed, self.pass_ = seed, pass_

    def uniform(self, purpose, position, *counter):
        return (keyed_bits(self.seed, purpose, self.pass_, position, *counter) >> 11) / 2**53

    def coin(self, purpose, position, number):
        """Is coin `number` of a series heads?"""
        bits = keyed_bits(self.seed, purpose, self.pass_, position, number // 64)
        return bits >> (number % 64) & 1 == 1


class FreeDraws:
    """Draws from a stream; the keys are ignored."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def uniform(self, *keys):
        return self.random.random()

    def coin(self, *keys):
        return self.random.random() < 0.5


@dataclasses.dataclass
class Instance:
    """An instance before it becomes arrays."""

    first_sentence: int  # of its chunk, counted over the corpus
    a: list
    b: list
    is_random_next: bool

    def tokens(self, cls_id, sep_id):
        return [cls_id, *self.a, sep_id, *self.b, sep_id]

    def segments(self):
        return [0] * (len(self.a) + 2) + [1] * (len(self.b) + 1)


def pass_instances(documents, seq_length, short_seq_prob, draws, exact_half=False):
    """All instances of one pass over documents (lists of sentences, lists of tokens), in order.

    exact_half: not in the released code; a chunk has two sentences where there are two.
    """
    instances, first = [], 0
    for number, document in enumerate(documents):
        instances += _document_instances(
            documents, number, first, seq_length, short_seq_prob, draws, exact_half
        )
        first += len(document)
    return instances


def _document_instances(documents, number, first, seq_length, short_seq_prob, draws, exact_half):
    document = documents[number]
    limit = seq_length - 3
    target = limit
    if draws.uniform(Purpose.SHORT, number) < short_seq_prob:
        target = 2 + int(draws.uniform(Purpose.SHORT_LENGTH, number) * (limit - 1))
    instances, chunk, length, i = [], [], 0, 0
    while i < len(document):
        chunk.append(document[i])
        length += len(document[i])
        enough = length >= target and (len(chunk) > 1 or not exact_half)
        if i == len(document) - 1 or enough:
            key = first + i - len(chunk) + 1
            a_end = 1
            if len(chunk) >= 2:
                a_end = 1 + int(draws.uniform(Purpose.A_END, key) * (len(chunk) - 1))
            a = [token for sentence in chunk[:a_end] for token in sentence]
            is_random = len(chunk) == 1 or draws.uniform(Purpose.RANDOM_NEXT, key) < 0.5
            if is_random:
                b = _random_segment(documents, number, target - len(a), key, draws)
                i -= len(chunk) - a_end
            else:
                b = [token for sentence in chunk[a_end:] for token in sentence]
            _truncate(a, b, limit, key, draws)
            instances.append(Instance(key, a, b, is_random))
            chunk, length = [], 0
        i += 1
    return instances


def _random_segment(documents, number, wanted, key, draws):
    for trial in range(10):
        other = int(draws.uniform(Purpose.RANDOM_DOCUMENT, key, trial) * len(documents))
        if other != number:
            break
    start = int(draws.uniform(Purpose.RANDOM_SENTENCE, key) * len(documents[other]))
    segment = []
    for sentence in documents[other][start:]:
        segment += sentence
        if len(segment) >= wanted:
            break
    return segment


def _truncate(a, b, limit, key, draws):
    """Cuts the lists in place."""
    done = {Purpose.CUT_A: 0, Purpose.CUT_B: 0}
    while len(a) + len(b) > limit:
        longer, purpose = (a, Purpose.CUT_A) if len(a) > len(b) else (b, Purpose.CUT_B)
        if draws.coin(purpose, key, done[purpose]):
            del longer[0]
        else:
            longer.pop()
        done[purpose] += 1


# Small corpora in memory, and ours on them


class ListSplit:
    """A corpus split in memory: documents are lists of sentences, lists of token ids."""

    def __init__(self, documents):
        self.documents = documents
        self.sentences = [np.array(s, np.int32) for document in documents for s in document]
        self.sentence_lengths = np.array([len(s) for s in self.sentences], np.int32)
        self.document_ends = np.cumsum([len(d) for d in documents]).astype(np.int64)

    def tokens(self, starts, ends):
        document = np.searchsorted(self.document_ends, starts, side="right")
        assert (ends > starts).all() and (ends <= self.document_ends[document]).all()
        ranges = zip(starts.tolist(), ends.tolist(), strict=True)
        return [np.concatenate(self.sentences[start:end]) for start, end in ranges]


def numbered(lengths):
    """Documents with sentences of these lengths (an iterable of numbers for every document). No
    two tokens are the same: token FIRST + n is the n-th of the text."""
    result, token = [], FIRST
    for document in lengths:
        ends = token + np.cumsum(np.asarray(document, np.int64))
        starts = [token, *ends[:-1].tolist()]
        result.append([list(range(a, b)) for a, b in zip(starts, ends.tolist(), strict=True)])
        token = int(ends[-1])
    return result


def random_documents(rng, documents, sentences, length, long=0.0):
    """`numbered` documents with up to `sentences` sentences of up to `length` tokens, a share
    `long` of them 40 times as long."""
    return numbered(
        [
            int(rng.integers(1, length + 1)) * (40 if rng.random() < long else 1)
            for _ in range(rng.integers(1, sentences + 1))
        ]
        for _ in range(documents)
    )


TEMPLATE = Template((CLS,), (SEP,), (SEP,), PAD)


def make(documents, seq_length=32, seed=5, pairs=True, dupe_factor=None, shared=None, **options):
    layout = "pairs" if pairs else "blocks"
    return Instances(
        ListSplit(documents), seq_length, seed, TEMPLATE, layout, options, dupe_factor, shared
    )


def rows(batch, what):
    """Rows of a [B, S] array without their padding, as lists."""
    return [row[:n].tolist() for row, n in zip(batch[what], batch["lengths"], strict=True)]
