"""What stands around one text and two when they become one sequence: a vocabulary's special tokens.

Families of models differ in it: [CLS] A [SEP] B [SEP] in one, <s> A </s></s> B </s> in another.
Nothing else of the package knows where a special token goes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bert_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """All that a program depends on of a tokenizer.

    size: V. ids: of the special tokens, by role: pad, unk, cls, sep, mask, and others where a
    family has them. continuation: bool[V], true where a token goes on with a word.
    """

    size: int
    ids: Mapping[str, int]
    continuation: np.ndarray | None = None

    def id(self, role: str) -> int:
        """Gives the id of a role. Raises: UserError: this vocabulary has none."""
        if role not in self.ids:
            raise UserError(f"the vocabulary has no {role} token; it has {', '.join(self.ids)}")
        return self.ids[role]


@dataclasses.dataclass(frozen=True)
class Template:
    """The special tokens around one text and two.

    before, between, after: ids before the first text, between two, and after the last.
    pad: the id behind the end. segments: of the first text and what stands around it, and of the
    second with what stands behind it.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    segments: tuple[int, int] = (0, 1)

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that it puts around texts, each once."""
        return tuple(dict.fromkeys((*self.before, *self.between, *self.after)))

    def second(self, first: int) -> int:
        """Gives where the second text begins after a first one of `first` tokens."""
        return len(self.before) + first + len(self.between)

    def around(self, texts: int) -> int:
        """Counts the special tokens of a sequence of one text or two."""
        return len(self.before) + (texts - 1) * len(self.between) + len(self.after)

    def join(self, *pieces: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Joins one text or two, given as ids, to arrays "tokens" and "segments", int32[S]."""
        lengths = np.array([[len(piece) for piece in pieces]])
        size = int(lengths.sum()) + self.around(len(pieces))
        rows = self.join_rows(lengths, np.concatenate([np.asarray(p, int) for p in pieces]), size)
        return {"tokens": rows["tokens"][0], "segments": rows["segments"][0]}

    def join_rows(
        self, lengths: np.ndarray, ids: np.ndarray, seq_length: int
    ) -> dict[str, np.ndarray]:
        """Joins many texts or pairs at once.

        Args:
          lengths: int64[B, P], tokens of the pieces of each row. ids: those tokens, row by row.
          seq_length: S, at least the longest row with its special tokens.
        Returns: "tokens" and "segments" int32[B, S], "lengths" int32[B].
        """
        rows, pieces = lengths.shape
        tokens = np.full((rows, seq_length), self.pad, np.int32)
        segments = np.zeros_like(tokens)
        is_text = np.zeros(tokens.shape, bool)
        place, row = np.arange(seq_length), np.arange(rows)
        begin = np.zeros(rows, np.int64)
        for piece in range(pieces):
            kind_begin = begin
            ahead, behind = self.before if piece == 0 else (), self.between
            if piece == pieces - 1:
                behind = self.after
            for number, token in enumerate(ahead):
                tokens[row, begin + number] = token
            begin = begin + len(ahead)
            end = begin + lengths[:, piece]
            is_text |= (place >= begin[:, None]) & (place < end[:, None])
            for number, token in enumerate(behind):
                tokens[row, end + number] = token
            begin = end + len(behind)
            here = (place >= kind_begin[:, None]) & (place < begin[:, None])
            segments += self.segments[piece] * here
        # Both sides go row by row, and through the pieces of a row in their order.
        tokens[is_text] = ids
        return {"tokens": tokens, "segments": segments, "lengths": begin.astype(np.int32)}


def cls_sep(vocabulary: Vocabulary) -> Template:
    """Makes the template [CLS] A [SEP], and of two texts [CLS] A [SEP] B [SEP]."""
    cls, sep, pad = (vocabulary.id(role) for role in ("cls", "sep", "pad"))
    return Template((cls,), (sep,), (sep,), pad)
