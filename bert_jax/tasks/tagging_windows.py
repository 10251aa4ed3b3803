"""Sentences in pieces for tagging: which piece tags which words, and windows of long sentences."""

from collections.abc import Iterator, Sequence

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks.conll import Sentence

Unit = tuple[int, int, int]  # place of a piece; first word and end of the words that it tags


def pieces_of_words(
    examples: Sequence[Sentence], tokenizer: Tokenizer
) -> list[tuple[list[int], list[Unit]]]:
    """Of each sentence: its ids, and the first piece of each word as its unit."""
    words = tokenizer.encode_batch([word for example in examples for word in example.words])
    encoded = iter(words)
    result = []
    for example in examples:
        ids: list[int] = []
        units = []
        for place in range(len(example.words)):
            units.append((len(ids), place, place + 1))
            ids += next(encoded) or [tokenizer.unk_id]  # control characters alone give no piece
        result.append((ids, units))
    return result


def pieces_of_text(
    examples: Sequence[Sentence], tokenizer: Tokenizer
) -> list[tuple[list[int], list[Unit]]]:
    """Of each sentence: its ids, and every piece that begins a new character as a unit."""
    texts = ["".join(example.words) for example in examples]
    encodings = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    result = []
    for example, text, encoding in zip(examples, texts, encodings, strict=True):
        words = [place for place, word in enumerate(example.words) for _ in word]
        units = []
        covered = 0  # several pieces can share a character, which the first of them tags
        limits = [*(start for start, _ in encoding.offsets[1:]), len(text)]
        pieces = zip(encoding.offsets, limits, strict=False)  # without any piece there is a limit
        for place, ((start, end), limit) in enumerate(pieces):
            while end < limit and not text[end].isspace():  # accents, letters that were composed
                end += 1
            while start < end and text[start].isspace():  # unigram pieces begin with the space
                start += 1
            if start < end and words[end - 1] >= covered:
                units.append((place, max(words[start], covered), words[end - 1] + 1))
                covered = words[end - 1] + 1
        result.append((encoding.ids, units))
    return result


def windows(
    inside: range, units: Sequence[Unit], total: int, room: int
) -> Iterator[tuple[int, list[Unit]]]:
    """Windows of `room` places of a stream of `total`: their starts, and the units they tag.

    The sentence lies at `inside`. One that fits is in the middle of its window, as far as the
    stream goes. Else windows begin every half room, and each unit is tagged where it has the most
    context on its poorer side.
    """
    if len(inside) <= room:
        start = inside.start - (room - len(inside)) // 2
        yield max(min(start, total - room), 0), list(units)
        return
    stride = max(room // 2, 1)
    starts = [*range(inside.start, inside.stop - room, stride), inside.stop - room]
    kept: dict[int, list[Unit]] = {start: [] for start in starts}
    for unit in units:
        last = min((unit[0] - inside.start) // stride, len(starts) - 1)
        near = starts[max(last - 3, 0) : last + 2]  # all that can hold it
        best = max(near, key=lambda start: min(unit[0] - start, start + room - 1 - unit[0]))
        kept[best].append(unit)
    yield from ((start, chosen) for start, chosen in kept.items() if chosen)


def filled(tags: Sequence[str | None]) -> tuple[str, ...]:
    """Tags with those of what no piece holds."""
    result: list[str] = []
    following = "O"
    behind = []  # the next tag there is, for each place
    for tag in reversed(tags):
        following = tag or following
        behind.append(following)
    for tag, following in zip(tags, reversed(behind), strict=True):
        goes_on = following[0] == "I" and bool(result) and result[-1][1:] == following[1:]
        result.append(tag or (following if goes_on else "O"))
    return tuple(result)
