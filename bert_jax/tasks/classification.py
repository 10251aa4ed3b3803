"""Texts or pairs of texts with a label, several labels, or numbers (BERT paper, section 4.1)."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.common.files import write_whole
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models.body import Body
from bert_jax.objectives.finetuning import Classify
from bert_jax.tasks import metrics, scaling
from bert_jax.tasks.base import Feature, Source, encode_pairs, file_of, in_order
from bert_jax.tasks.rows import ENDINGS, Row, column, number, read_rows
from bert_jax.tasks.text_table import IDS, Label, Names, TextExample, TextTable, as_set

KINDS = {  # kind -> its metrics, the deciding one first
    "single": ("accuracy", "macro_f1", "mcc"),
    "multi": ("micro_f1", "macro_f1", "accuracy"),
    "numbers": ("pearson", "spearman", "squared_error"),
}


@dataclasses.dataclass(frozen=True)
class Classification(TextTable):
    """A classification or regression data set.

    Attributes: those of the table, and
      metrics: entries of `score`; the first decides.
      submissions: (split, name of its file for the leaderboard).
      threshold: of `f1` of numbers: a number that is not below it is positive.
      standardise: whether `fit` sets `scales`: numbers are learnt with mean 0 and standard
        deviation 1. The tasks of papers learn theirs as they are.
      scales: mean and standard deviation of each number in training; () for 0 and 1.
    """

    metrics: Names = ("accuracy",)
    submissions: tuple[tuple[str, str], ...] = ()
    threshold: float = 0.0
    standardise: bool = False
    scales: scaling.Scales = ()

    def __post_init__(self):
        known = {name for names in KINDS.values() for name in names} | {"f1"}
        if self.kind not in KINDS:
            raise UserError(f"kind={self.kind!r} is unknown; known: {', '.join(KINDS)}")
        if not self.metrics or not set(self.metrics) <= known:
            given = ", ".join(self.metrics)
            raise UserError(f"metrics: {given}; known: {', '.join(sorted(known))}")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"labels: two of the same name: {', '.join(self.labels)}")
        if self.codes and len(self.codes) != len(self.labels):
            raise UserError(f"codes: {len(self.codes)}, of {len(self.labels)} labels")
        if not self.label or not all(self.label) or not all(self.texts) or not all(self.files):
            raise UserError("label, texts and files must name a column or file each")
        if not math.isfinite(self.threshold):
            raise UserError(f"threshold={self.threshold} is no number")
        if self.scales and len(self.scales) != len(self.label):
            raise UserError(f"scales: {len(self.scales)}, of {len(self.label)} columns of numbers")
        if not all(math.isfinite(mean) and 0 < sd < math.inf for mean, sd in self.scales):
            raise UserError("scales must be pairs of a mean and a standard deviation above 0")

    @classmethod
    def custom(
        cls,
        text: str = "text",
        pair: str = "",
        label: str = "label",
        kind: str = "single",
        separator: str = ",",
    ) -> "Classification":
        """A data set of one's own, a table with named columns.

        Args:
          text, pair: columns of the text and, of pairs, of the second.
          label: column of the label; of numbers one or more columns, separated by commas.
          kind: "single", "multi" or "numbers".
          separator: between several labels in the column.
        Raises: UserError: an unknown kind, an empty name, several columns of one label.
        """
        columns = [name.strip() for name in label.split(",")]
        if kind not in KINDS:
            raise UserError(f"custom.kind={kind!r} is unknown; known: {', '.join(KINDS)}")
        if len(columns) > 1 and kind != "numbers":
            raise UserError(f"custom.label={label!r}: several columns are for custom.kind=numbers")
        if not text or not all(columns) or (kind == "multi" and not separator):
            raise UserError("custom.text, custom.label and custom.separator must not be empty")
        names = [text, *([pair] if pair else []), *columns]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"custom.text={text}, custom.pair={pair} and custom.label={label} name the column "
                f"{twice[0]!r} twice"
            )
        return cls(
            name="custom",
            files=tuple((s, *(s + ending for ending in ENDINGS)) for s in ("train", "dev", "test")),
            texts=((text,), (pair,)) if pair else ((text,),),
            label=tuple((name,) for name in columns),
            kind=kind,
            metrics=KINDS[kind],
            separator=separator,
            standardise=kind == "numbers",
        )

    @property
    def metric(self) -> str:
        return self.metrics[0]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(split for split, *_ in self.files))

    @property
    def outputs(self) -> int:
        """C, the number of logits."""
        return len(self.label) if self.kind == "numbers" else len(self.labels)

    def fit(self, examples: Sequence[TextExample]) -> "Classification":
        """See `tasks.base.Task`; labels are sorted by name, scales are those of the examples."""
        given = [self.given_label(example) for example in examples]
        if len(set(given)) < 2:
            raise UserError(
                f"{file_of(examples)}: there is nothing to learn, as all {len(given)} training "
                f"examples have the label {given[0]!r}"
            )
        if self.standardise:
            return dataclasses.replace(self, scales=self._scales(examples, given))
        if self.kind == "numbers" or self.labels:
            return self
        found = {name for label in given for name in as_set(label)}
        for name in found:
            if "\t" in name or "\n" in name:
                raise UserError(f"the label {name!r} holds a tab or a line end")
        return dataclasses.replace(self, labels=tuple(sorted(found)))

    def _scales(self, examples: Sequence[TextExample], given: Sequence[Any]) -> scaling.Scales:
        try:
            return scaling.scales_of(given)
        except ValueError as error:
            name = self.label[error.args[0]][0]
            raise UserError(
                f"{file_of(examples)}: the numbers in column {name!r} cannot be learnt: all are "
                "the same, or some are too large; correct the column or leave it out"
            ) from None

    # The model.

    def featurise(
        self, examples: Sequence[TextExample], tokenizer: Tokenizer, max_length: int, train: bool
    ) -> list[Feature]:
        """See `tasks.base.Task`; label int32[], labels float32[C] or numbers float32[C]."""
        features = encode_pairs([example.texts for example in examples], tokenizer, max_length)
        for feature, example in zip(features, examples, strict=True):
            if train or example.label is not None:
                # An unknown one is told before anything is trained.
                label: Any = self.given_label(example)
            if train:
                if self.kind == "numbers":
                    feature.arrays["numbers"] = scaling.standardised(label, self.scales)
                elif self.kind == "multi":
                    held = [name in label for name in self.labels]
                    feature.arrays["labels"] = np.array(held, np.float32)
                else:
                    feature.arrays["label"] = np.array(self.labels.index(str(label)), np.int32)
        return features

    def objective(self, body: Body) -> Classify:
        """See `tasks.base.Task`."""
        return Classify(body, self.outputs, self.kind, bool(self.scales))

    def decode(
        self,
        examples: Sequence[TextExample],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> list[Label]:
        """A label, the labels of probability over a half, or the numbers."""
        logits = [output["logits"] for output in outputs]
        if self.kind == "numbers":
            return [tuple(scaling.restored(row, self.scales).tolist()) for row in logits]
        if self.kind == "multi":
            pairs = [zip(self.labels, row, strict=True) for row in logits]
            return [tuple(name for name, logit in row if logit > 0) for row in pairs]
        return [self.labels[int(np.argmax(row))] for row in logits]

    def probabilities(self, outputs: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """float32 [examples, C]: a softmax over the labels, or a sigmoid of each of several."""
        from scipy import special  # late, as plots below: a start does without

        logits = np.array([output["logits"] for output in outputs], np.float32)
        logits = logits.reshape(-1, self.outputs)
        if self.kind == "multi":
            return special.expit(logits)
        return special.softmax(logits, axis=-1)

    @property
    def predicted_columns(self) -> tuple[str, ...]:
        """See `tasks.base.Task`: the prediction, of several numbers each; and probabilities."""
        if self.kind != "numbers":
            return "prediction", *(f"probability_{label}" for label in self.labels)
        if self.outputs == 1:
            return ("prediction",)
        return tuple(f"prediction_{next(iter(names), '')}" for names in self.label)

    def input_columns(self, example: TextExample) -> Mapping[str, str]:
        """See `tasks.base.Task`."""
        return example.columns

    def table(
        self,
        examples: Sequence[TextExample],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
        predictions: Sequence[Label],
    ) -> Iterator[dict[str, Any]]:
        """See `tasks.base.Task`."""
        values: Any = predictions
        if self.kind != "numbers":
            shares = self.probabilities(outputs).tolist()
            texts = [self._text_of(prediction, False) for prediction in predictions]
            values = [(text, *row) for text, row in zip(texts, shares, strict=True)]
        for example, row in zip(examples, values, strict=True):
            yield {**example.columns, **dict(zip(self.predicted_columns, row, strict=True))}

    # Scores and files.

    def score(
        self, examples: Sequence[TextExample], predictions: Sequence[Label]
    ) -> dict[str, float]:
        """See `tasks.base.Task`; `squared_error` is in the unit of the numbers."""
        gold: list[Any] = [self.given_label(example) for example in examples]
        if not gold:
            return dict.fromkeys(self.metrics, 0.0)
        return {name: self._metric(name, gold, list(predictions)) for name in self.metrics}

    def _metric(self, name: str, gold: list[Any], predicted: list[Any]) -> float:
        classes = self.labels or sorted({c for label in gold + predicted for c in as_set(label)})
        if self.kind == "numbers":
            return metrics.of_numbers(name, gold, predicted, self.threshold)
        if name == "accuracy":
            return metrics.accuracy(gold, predicted)
        if self.kind == "multi":
            return metrics.set_f1(gold, predicted, classes, name.removesuffix("_f1"))
        if name == "f1":
            return metrics.f1(gold, predicted, self.labels[1])
        if name == "macro_f1":
            return metrics.macro_f1(gold, predicted, classes)
        return metrics.matthews(gold, predicted)

    def baseline(
        self, train: Sequence[TextExample], examples: Sequence[TextExample]
    ) -> list[Label]:
        """The most frequent label (or set of labels), or the mean numbers of training."""
        given = [self.given_label(example) for example in train]
        if self.kind == "numbers":
            return [tuple(np.mean(np.array(given, np.float64), axis=0).tolist())] * len(examples)
        return [Counter(given).most_common(1)[0][0]] * len(examples)

    def write(
        self,
        folder: Path,
        split: str,
        examples: Sequence[TextExample],
        predictions: Sequence[Label],
    ) -> list[Path]:
        """A table "index, prediction": the leaderboard's, or SPLIT_predictions.tsv with names."""
        official = dict(self.submissions).get(split)
        rows = [
            (example.id, self._text_of(prediction, bool(official)))
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        if official and all(identity.isdecimal() for identity, _ in rows):
            rows.sort(key=lambda row: int(row[0]))  # TFDS shuffles
        lines = ["index\tprediction", *map("\t".join, rows)]
        path = folder / (official or f"{split}_predictions.tsv")
        return [write_whole(path, "".join(f"{line}\n" for line in lines))]

    def _text_of(self, prediction: Label, official: bool) -> str:
        if isinstance(prediction, str):
            coded = official and self.codes
            return self.codes[self.labels.index(prediction)] if coded else prediction
        digits = ".3f" if official else ".9g"  # the leaderboard's, or all there are
        separator = self.separator if self.kind == "multi" else ","
        return separator.join(p if isinstance(p, str) else format(p, digits) for p in prediction)

    def read_predictions(self, path: Path, examples: Sequence[TextExample]) -> list[Label]:
        """The predictions of a file as `write` makes it, in the order of the examples.

        It may hold those of all rows of the gold file, `ignored` ones too, which do not count.

        Raises: UserError: an example without a prediction, a prediction without its example,
          unknown labels.
        """
        found = [(row[0], column(row, *IDS), self._prediction(row)) for row in read_rows(path)]
        if self.ignored and 0 < len(examples) < len(found):
            gold = Source(files={"test": file_of(examples)})
            predictions = in_order(path, found, self.read(gold, "test") or [])
            labels = (self.label_of(row, "dev") for row in self.rows(gold, "test") or ())
            pairs = zip(predictions, labels, strict=True)
            return [prediction for prediction, label in pairs if label not in self.ignored]
        return in_order(path, found, examples)

    def _prediction(self, row: Row) -> Label:
        text = column(row, "prediction")
        if self.kind == "single":
            return self.known_label(row[0], text)
        if self.kind == "multi":
            return self.several_labels(row[0], text)
        numbers = tuple(number(row[0], part) for part in text.split(","))
        if len(numbers) != self.outputs:
            raise UserError(f"{row[0]}: {len(numbers)} numbers instead of {self.outputs}")
        return numbers

    def plot(
        self, path: Path, examples: Sequence[TextExample], predictions: Sequence[Label]
    ) -> Path | None:
        """The confusion matrix of single labels, the scatter of one number; else None."""
        if any(example.label is None for example in examples):
            return None
        from bert_jax.tasks import plots

        gold = [example.label for example in examples]
        if self.kind == "single":
            return plots.confusion(path, self.labels, gold, predictions)
        is_number = self.kind == "numbers" and self.outputs == 1
        return plots.scatter(path, gold, predictions) if is_number else None
