"""Batches of sequences of similar length, so that little is computed on padding.

Widths come from a short ladder (powers of two and their middles), so few programs are compiled.
Step t of a run is a function of (seed, t): the stream of examples (each pass in a new random
order) is cut into pools of `POOL` batches, less where a pass has fewer; a pool is sorted by length,
cut into batches, and these come in random order.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bert_jax.data.draws import Purpose, random_bits

POOL = 64  # batches sorted together, at most
_PADDING = {"token_labels": -1}  # of arrays that are padded like tokens; the others get 0
_PADDED = ("tokens", "segments", "token_labels")

Arrays = Mapping[str, np.ndarray]


def bucket_width(length: int, longest: int) -> int:
    """The ladder's width for a length: 16, 24, 32, 48, 64, 96, ...; at most `longest`."""
    width = 16
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, longest)


def collate(rows: Sequence[Arrays], size: int, pad_id: int, longest: int) -> dict[str, np.ndarray]:
    """Stacks features into a batch of `size` rows of one width.

    Args:
      rows: arrays of features, as in `tasks.base.Feature`; all of the same names and ranks.
      size: rows B of the batch; missing ones are copies of the first, of weight 0.
      longest: the most that a row may have; the width is that of its bucket.
    Returns: the arrays with a leading B; "lengths" int32[B] (or [B, C]); "weight" float32[B].
    """
    width = bucket_width(max(row["tokens"].shape[-1] for row in rows), longest)
    filled = [*rows, *[rows[0]] * (size - len(rows))]
    batch = {}
    for name in rows[0]:
        parts = [row[name] for row in filled]
        if name in _PADDED:
            value = pad_id if name == "tokens" else _PADDING.get(name, 0)
            shape = (size, *parts[0].shape[:-1], width)
            batch[name] = np.full(shape, value, parts[0].dtype)
            for row, part in enumerate(parts):
                batch[name][row, ..., : part.shape[-1]] = part
        else:
            batch[name] = np.stack(parts)
    if "lengths" not in batch:
        batch["lengths"] = np.array([len(row["tokens"]) for row in filled], np.int32)
    batch["weight"] = (np.arange(size) < len(rows)).astype(np.float32)
    return batch


def train_plan(
    lengths: np.ndarray, batch_size: int, seed: int, steps: int, start: int = 0
) -> Iterator[np.ndarray]:
    """Indices int64[batch_size] of the features of each step from `start` to the end of a run.

    lengths: of all features. steps: of the whole run; it takes exactly the first steps * batch_size
    of the stream.
    """
    # Within an epoch, or the copies of an example would stand side by side in a batch.
    size = min(POOL, max(len(lengths) // batch_size, 1))
    for first in range(start - start % size, steps, size):
        pool = _pool(lengths, batch_size, seed, first, min(size, steps - first))
        yield from pool[max(start - first, 0) :]


def train_batches(
    features: Sequence[Arrays], batch_size: int, seed: int, steps: int, pad_id: int, longest: int,
    start: int, stop: int,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """The batches of steps start .. stop - 1 of a run of `steps`."""
    lengths = np.array([row["tokens"].shape[-1] for row in features])
    plan = train_plan(lengths, batch_size, seed, steps, start)
    for indices in itertools.islice(plan, stop - start):
        yield collate([features[index] for index in indices], batch_size, pad_id, longest)


def padding(
    features: Sequence[Arrays], batch_size: int, seed: int, steps: int, longest: int
) -> dict[str, int]:
    """What a run computes on.

    Returns: tokens of text; tokens with padding; the same without buckets, all padded to `longest`;
    and the number of widths, each a program to compile.
    """
    lengths = np.array([row["tokens"].shape[-1] for row in features])
    tokens = np.array([np.sum(row.get("lengths", row["tokens"].shape[-1])) for row in features])
    sequences = batch_size * features[0]["tokens"].size // lengths[0]  # a choice has several
    widths, text = [], 0
    for indices in train_plan(lengths, batch_size, seed, steps):
        text += int(tokens[indices].sum())
        widths.append(bucket_width(int(lengths[indices].max()), longest))
    return {
        "text_tokens": text,
        "computed_tokens": int(sequences) * sum(widths),
        "computed_without_buckets": int(sequences) * steps * longest,
        "widths": len(set(widths)),
    }


def eval_plan(
    lengths: Sequence[int], longest: int, batch_size: int, most_tokens: int | None = None
) -> list[tuple[np.ndarray, int]]:
    """(indices of the features of a batch, its rows B) over all of them; the last may need filling.

    Long ones come first: what does not fit the memory shows at once, and filler rows are short.

    lengths: of all features. batch_size: B, halved where a batch would have over `most_tokens`: so
      that few that are long do not make many as long.
    """
    order, plan = np.argsort(-np.array(lengths, int), kind="stable"), []
    while len(order):
        rows, width = batch_size, bucket_width(lengths[order[0]], longest)
        while most_tokens and rows > 1 and rows * width > most_tokens:
            rows //= 2
        plan.append((order[:rows], rows))
        order = order[rows:]
    return plan


@functools.lru_cache(maxsize=2)  # a pool after the other asks for the same one or the next
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Indices int64[count] of the features in the order of a pass."""
    return np.argsort(random_bits(seed, Purpose.ORDER, epoch, np.arange(count)))


def _pool(lengths: np.ndarray, batch_size: int, seed: int, first: int, batches: int) -> np.ndarray:
    """Indices int64[batches, batch_size] of steps first .. first + batches - 1."""
    count = len(lengths)
    places = first * batch_size + np.arange(batches * batch_size)
    stream = np.empty(len(places), np.int64)
    for epoch in range(int(places[0]) // count, int(places[-1]) // count + 1):
        inside = places // count == epoch
        stream[inside] = _order(seed, epoch, count)[places[inside] % count]
    stream = stream[np.argsort(lengths[stream], kind="stable")]
    # -1 - first: the number of no epoch.
    order = np.argsort(random_bits(seed, Purpose.ORDER, -1 - first, np.arange(batches)))
    return stream.reshape(batches, batch_size)[order]
