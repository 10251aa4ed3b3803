"""What a task is: examples, features, an objective, the official score, the official files.

A task is a row of settings (a frozen dataclass) of one of four families: `classification` (texts
or pairs; labels or numbers), `answering` (a span of a passage), `tagging` and `choice`. The same
row serves training, scoring, prediction files and `bert_jax.load`, so it is stored with the model.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import jax
import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.common.progress import follow
from bert_jax.data.buckets import collate, eval_plan
from bert_jax.data.opened import COMPRESSED
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models.body import Body
from bert_jax.objectives.finetuning import TaskObjective
from bert_jax.training import distributed
from bert_jax.training.sharding import ahead, to_host

_TFDS = "tfds:"


class Example(Protocol):
    """One example of a task; each family has a frozen dataclass of its own."""

    @property
    def id(self) -> str:
        """Its name in prediction files; no other example of the split has it."""
        ...

    @property
    def where(self) -> str:
        """Where it was read, as `file:line`, for error messages."""
        ...

    @property
    def group(self) -> str:
        """Examples of one group (an article, a document) stay together when a split is made."""
        ...


@dataclasses.dataclass
class Feature:
    """What the model sees of an example: one row of a batch.

    arrays: "tokens" and "segments" int32[S] (of a choice: int32[C, S], with "lengths" int32[C]),
    and the labels where there are any. `data.buckets` pads and stacks them.
    """

    arrays: dict[str, np.ndarray]
    example: int  # index of the example it was made of; long ones give several features
    info: Any = None  # what `decode` needs to get back to the text
    cut: bool = False  # whether the length left something of the example out


ONE_SEGMENT = "both texts of a pair are in it, told apart by [SEP] alone"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the splits of a data set are: its folder, `tfds:NAME`, or files named one by one.

    files: split -> path. missed: split -> names that `find` did not find in the folder.
    found: split -> the file that `find` found.
    """

    data: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missed: dict[str, list[str]] = dataclasses.field(default_factory=dict, compare=False)
    found: dict[str, Path] = dataclasses.field(default_factory=dict, compare=False)

    def find(self, split: str, names: Sequence[str]) -> Path | None:
        """The file of a split: the one given for it, else the first of `names` in the folder.

        A file of the folder may be compressed, and then has another ending after its name.

        Raises: UserError when a file that was given does not exist, or the folder does not.
        """
        if self.files.get(split):
            path = Path(self.files[split])
            if not path.is_file():
                raise UserError(f"the {split} file {path} does not exist")
            self.found[split] = path
            return path
        if not self.data or self.data.startswith(_TFDS):
            return None
        folder = Path(self.data)
        if not folder.is_dir():
            raise UserError(
                f"--config.data={folder} is not a folder (single files: --config.train)"
            )
        paths = (folder / (name + ending) for name in names for ending in COMPRESSED)
        found = next((path for path in paths if path.exists()), None)
        if found is not None and not found.is_file():
            raise UserError(f"{found}, the {split} file, is not a file")
        if found is None:
            self.missed.setdefault(split, []).extend(names)
        else:
            self.found[split] = found
        return found

    def tfds(self, split: str) -> str:
        """The TFDS name or folder that holds a split; "" where it is a file."""
        is_tfds = self.data.startswith(_TFDS) and not self.files.get(split)
        return self.data.removeprefix(_TFDS) if is_tfds else ""


Examples = dict[str, Sequence[Any]]  # split -> examples


class Task(Protocol):
    """A row of the table of tasks; `E` below is the family's example, `P` its prediction."""

    @property
    def name(self) -> str:
        """Its key in the table."""
        ...

    @property
    def metric(self) -> str:
        """The entry of `score` that decides which checkpoint is best; higher is better."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits it may have: train, dev, test, and others such as dev_mismatched.

        Those that start with "dev" are scored; those with test (and others) are predicted.
        """
        ...

    def read(self, source: Source, split: str) -> list[Any] | None:
        """The examples of a split, or None where the source has no such split.

        Raises: UserError with file and line for whatever is wrong in it.
        """
        ...

    def fit(self, examples: Sequence[Any]) -> "Task":
        """The task with what is found in the training examples (label names), checked.

        Raises: UserError: nothing to learn (one class only), or unknown labels.
        """
        ...

    def featurise(
        self, examples: Sequence[Any], tokenizer: Tokenizer, max_length: int, train: bool
    ) -> list[Feature]:
        """Features in the order of the examples; with `train`, labelled, for the objective."""
        ...

    def objective(self, body: Body) -> TaskObjective:
        """The head with its loss on a body."""
        ...

    def decode(
        self,
        examples: Sequence[Any],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> list[Any]:
        """A prediction for each example, from the objective's `predict` outputs of each feature.

        Outputs of a position are padded at the end, perhaps by more than the feature is long.
        """
        ...

    @property
    def predicted_columns(self) -> tuple[str, ...]:
        """Names of the columns that `table` adds to those of the input."""
        ...

    def input_columns(self, example: Any) -> Mapping[str, str]:
        """Gives the columns of the input that `table` repeats, by name."""
        ...

    def table(
        self,
        examples: Sequence[Any],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
        predictions: Sequence[Any],
    ) -> Iterator[dict[str, Any]]:
        """Makes rows of predictions with their probabilities, beside the input's columns.

        predictions: what `decode` made of the rest.
        """
        ...

    def tuned(self, examples: Sequence[Any], predictions: Sequence[Any]) -> "Task":
        """Gives the task with a threshold that is found on these; most have none (`Untuned`)."""
        ...

    def with_threshold(self, predictions: Sequence[Any]) -> list[Any]:
        """Decides predictions anew with the task's threshold."""
        ...

    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """The official metrics, as fractions (1.0 is perfect) whatever the official unit."""
        ...

    def baseline(self, train: Sequence[Any], examples: Sequence[Any]) -> list[Any]:
        """Predictions that need no model: the majority, the most frequent tag of each word."""
        ...

    def write(
        self, folder: Path, split: str, examples: Sequence[Any], predictions: Sequence[Any]
    ) -> list[Path]:
        """Writes the official prediction file(s) of a split, whole or not at all."""
        ...

    def read_predictions(self, path: Path, examples: Sequence[Any]) -> list[Any]:
        """The predictions in a file as `write` makes it (or as the official scorer reads it)."""
        ...

    def plot(self, path: Path, examples: Sequence[Any], predictions: Sequence[Any]) -> Path | None:
        """A picture of the errors (PNG) where one tells something."""
        ...


class Untuned:
    """Part of the tasks that have no threshold to be found."""

    def tuned(self, examples: Sequence[Any], predictions: Sequence[Any]) -> Self:
        """Gives the task itself."""
        return self

    def with_threshold(self, predictions: Sequence[Any]) -> list[Any]:
        """Gives the predictions as they are."""
        return list(predictions)


E = TypeVar("E", bound=Example)
T = TypeVar("T")
P = TypeVar("P")


def run_features(
    predict: Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]],
    features: Sequence[Feature],
    pad_id: int,
    widths: Sequence[int],
    batch_size: int,
    most_tokens: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """`predict` over all features in batches of similar length: an objective's outputs of each.

    predict: a batch as of `data.buckets.collate` -> arrays [B, ...].
    widths, batch_size, most_tokens: as in `data.buckets.eval_plan`.
    """
    results: list[dict[str, np.ndarray]] = [{} for _ in features]
    lengths = [feature.arrays["tokens"].shape[-1] for feature in features]
    plan = eval_plan(lengths, widths, batch_size, most_tokens)
    batches = (
        (indices, collate([features[i].arrays for i in indices], rows, pad_id, widths))
        for indices, rows in plan
    )
    work = ahead((indices, predict(batch)) for indices, batch in batches)
    for indices, outputs in bar(work, "predicting", len(plan), "batch"):
        found = to_host(outputs)
        for row, index in enumerate(indices):
            results[index] = {name: value[row] for name, value in found.items()}
    return results


def bar(work: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Shows the progress of work that takes longer than a few seconds; one process does."""
    return follow(work, what, total, unit, quiet=not distributed.is_main())


def hold_out(examples: Sequence[E], share: float) -> tuple[list[E], list[E]]:
    """Splits examples into (train, dev) by group, or one by one where they have none.

    The choice is a hash of the group's name (or the example's place), so it stays the same.
    Raises: UserError: one of the two would be empty.
    """

    def is_dev(place: int, example: E) -> bool:
        text = example.group or f"#{place}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return number < share * 2**64

    chosen = [is_dev(place, example) for place, example in enumerate(examples)]
    train = [e for e, dev in zip(examples, chosen, strict=True) if not dev]
    dev = [e for e, dev in zip(examples, chosen, strict=True) if dev]
    if not train or not dev:
        groups = {example.group for example in examples}
        together = len(groups) == 1 and "" not in groups
        cause = " (all are of one article or document)" if together else ""
        raise UserError(
            f"{file_of(examples)}: dev_share={share:g} leaves no examples on one side{cause}; "
            "give a dev file"
        )
    return train, dev


def file_of(examples: Sequence[Example]) -> str:
    """The file (of several the first) that examples were read from, for error messages."""
    return re.sub(r"(?s):\d+$|: question .*", "", examples[0].where)


def in_order(
    path: Path, found: Iterable[tuple[str, str, P]], examples: Sequence[Example]
) -> list[P]:
    """The predictions of a file, found as (where, id, prediction), in the order of the examples.

    Raises: UserError: an id comes twice, or an example is without a prediction, or the other way.
    """
    predictions: dict[str, P] = {}
    for where, identity, prediction in found:
        if identity in predictions:
            raise UserError(f"{where}: a second prediction for index {identity}")
        predictions[identity] = prediction
    missing = [example.id for example in examples if example.id not in predictions]
    if missing or len(predictions) != len(examples):
        lacks = f"; it lacks index {missing[0]}" if missing else ""
        counts = f"{len(predictions)} predictions for {len(examples)} examples"
        raise UserError(f"{path}: {counts}{lacks}")
    return [predictions[example.id] for example in examples]


def encode_pairs(
    pairs: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int
) -> list[Feature]:
    """[CLS] A [SEP] or [CLS] A [SEP] B [SEP] of texts or pairs; special tokens in them are text.

    What is over the length is cut from the end of the longer text, of the second where both are
    as long (google-research/bert run_classifier.py, _truncate_seq_pair).

    Args:
      pairs: of one text each, or of two.
      max_length: [CLS] and [SEP] included.
    Returns: a feature of each, with "tokens" and "segments" int32[S].
    Raises: UserError: `max_length` leaves no room.
    """
    encoded: list[Feature] = []
    parts = range(0, len(pairs), 10_000)  # bounds what the encodings take
    for begin in bar(parts, "tokenising", len(parts), "0k texts"):
        part = pairs[begin : begin + 10_000]
        ids = iter(tokenizer.encode_batch([text for texts in part for text in texts]))
        for texts in part:
            if max_length <= tokenizer.template.around(len(texts)):
                raise UserError(f"max_length={max_length} leaves no room for text")
            pieces = [next(ids) for _ in texts]
            arrays = join_texts(pieces, tokenizer, max_length)
            cut = sum(map(len, pieces)) + tokenizer.template.around(len(texts)) > max_length
            encoded.append(Feature(arrays, len(encoded), cut=cut))
    return encoded


def join_texts(
    pieces: Sequence[Sequence[int]], tokenizer: Tokenizer, max_length: int
) -> dict[str, np.ndarray]:
    """Arrays "tokens" and "segments", int32[S], of one text or two; see `encode_pairs`."""
    first, *second = pieces
    room = max_length - tokenizer.template.around(len(pieces))
    kept = min(len(first), max(room - sum(map(len, second)), (room + 1) // 2))
    rest = [piece[: room - kept] for piece in second]
    return tokenizer.template.join(first[:kept], *rest)
