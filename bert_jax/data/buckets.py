"""Batches of sequences of similar length, so that little is computed on padding.

Each width is a program to compile. So widths come from a short ladder (powers of two and their
middles), and a short training takes only those of them that save more than their compiling costs.
Step t of a run is a function of (seed, t): the stream of examples (each pass in a new random
order) is cut into pools of `POOL` batches, less where a pass has fewer; a pool is sorted by length,
cut into batches, and these come in random order.
"""

import collections
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bert_jax.data.draws import Purpose, random_bits

POOL = 64  # batches sorted together, at most
# What compiling a width costs, in training steps of the greatest width: a few on two cores for a
# large model, a hundred and more for a small one or on a GPU.
_PROGRAM_STEPS = 25
_PADDING = {"token_labels": -1}  # of arrays that are padded like tokens; the others get 0
_PADDED = ("tokens", "segments", "token_labels")

Arrays = Mapping[str, np.ndarray]


def ladder(longest: int) -> tuple[int, ...]:
    """Returns the widths 16, 24, 32, 48, 64, 96, ... below `longest`, and `longest`."""
    widths, width = [], 16
    while width < longest:
        widths.append(width)
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return (*widths, longest)


def width_for(length: int, widths: Sequence[int]) -> int:
    """Returns the first of the ascending widths that holds `length` tokens, at most the last."""
    return next((width for width in widths if width >= length), widths[-1])


def training_widths(
    lengths: np.ndarray, batch_size: int, steps: int, longest: int
) -> tuple[int, ...]:
    """Chooses the widths of `ladder(longest)` that a training of so many steps pays for.

    A function of the features and the number of steps alone: seeds share their programs.

    Args:
      lengths: of all features, int[features].
    Returns: ascending widths. Those above the longest feature stay: training never needs them, and
      evaluation may.
    """
    rungs = ladder(longest)
    longest_of_batches = np.sort(lengths)[::-1][::batch_size]
    needed = collections.Counter(width_for(length, rungs) for length in longest_of_batches)
    *lower, top = sorted(needed)

    def cost(chosen: tuple[int, ...]) -> float:  # in tokens a row
        total = sum(width_for(width, chosen) * count for width, count in needed.items())
        return steps * total / len(longest_of_batches) + _PROGRAM_STEPS * top * len(chosen)

    subsets = (
        (*some, top)
        for count in range(len(lower) + 1)
        for some in itertools.combinations(lower, count)
    )
    return (*min(subsets, key=cost), *(width for width in rungs if width > top))


def collate(
    rows: Sequence[Arrays], size: int, pad_id: int, widths: Sequence[int]
) -> dict[str, np.ndarray]:
    """Stacks features into a batch of `size` rows of one width.

    Args:
      rows: arrays of features, as in `tasks.base.Feature`; all of the same names and ranks.
      size: rows B of the batch; missing ones are copies of the first, of weight 0.
      widths: those that the batch may have, ascending; it gets the first that holds all rows.
    Returns: the arrays with a leading B; "lengths" int32[B] (or [B, C]); "weight" float32[B].
    """
    width = width_for(max(row["tokens"].shape[-1] for row in rows), widths)
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
    features: Sequence[Arrays], batch_size: int, seed: int, steps: int, pad_id: int,
    widths: Sequence[int], start: int, stop: int,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """The batches of steps start .. stop - 1 of a run of `steps`."""
    lengths = np.array([row["tokens"].shape[-1] for row in features])
    plan = train_plan(lengths, batch_size, seed, steps, start)
    for indices in itertools.islice(plan, stop - start):
        yield collate([features[index] for index in indices], batch_size, pad_id, widths)


def padding(
    features: Sequence[Arrays], batch_size: int, seed: int, steps: int, widths: Sequence[int]
) -> dict[str, int]:
    """What a run computes on.

    Returns: tokens of text; tokens with padding; the same without buckets, all padded to the last
    of the widths; and the number of widths in use, each a program to compile.
    """
    lengths = np.array([row["tokens"].shape[-1] for row in features])
    tokens = np.array([np.sum(row.get("lengths", row["tokens"].shape[-1])) for row in features])
    sequences = batch_size * features[0]["tokens"].size // lengths[0]  # a choice has several
    used, text = [], 0
    for indices in train_plan(lengths, batch_size, seed, steps):
        text += int(tokens[indices].sum())
        used.append(width_for(int(lengths[indices].max()), widths))
    return {
        "text_tokens": text,
        "computed_tokens": int(sequences) * sum(used),
        "computed_without_buckets": int(sequences) * steps * widths[-1],
        "widths": len(set(used)),
    }


def eval_plan(
    lengths: Sequence[int], widths: Sequence[int], batch_size: int, most_tokens: int | None = None
) -> list[tuple[np.ndarray, int]]:
    """(indices of the features of a batch, its rows B) over all of them; the last may need filling.

    Long ones come first: what does not fit the memory shows at once, and filler rows are short.

    lengths: of all features. batch_size: B, halved where a batch would have over `most_tokens`: so
      that few that are long do not make many as long.
    """
    order, plan = np.argsort(-np.array(lengths, int), kind="stable"), []
    while len(order):
        rows, width = batch_size, width_for(lengths[order[0]], widths)
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
