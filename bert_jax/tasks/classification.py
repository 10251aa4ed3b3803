"""Texts or pairs of texts with a label, several labels, or numbers (BERT paper, section 4.1)."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import open_regular, write_whole
from bert_jax.models.body import Body
from bert_jax.objectives.finetuning import Classify
from bert_jax.tasks import metrics
from bert_jax.tasks.base import Feature, Source, encode_pairs, file_of, in_order
from bert_jax.tasks.rows import Row, column, flat, number, read_rows, read_tfds

KINDS = {  # kind -> its metrics, the deciding one first
    "single": ("accuracy", "macro_f1", "mcc"),
    "multi": ("micro_f1", "macro_f1", "accuracy"),
    "numbers": ("pearson", "spearman", "squared_error"),
}
_IDS = ("index", "idx", "id", "guid")

Names = tuple[str, ...]
Label = str | tuple[str, ...] | tuple[float, ...]  # by kind: single, multi, numbers


@dataclasses.dataclass(frozen=True)
class TextExample:
    """A text or a pair.

    id: its index in the official file, or its place; no other example of the split has it.
    label: None in a split that is only predicted.
    """

    id: str
    texts: tuple[str, ...]
    label: Label | None
    where: str

    @property
    def group(self) -> str:
        """Examples with the same first text stay together: a premise, or a text that is twice."""
        return self.texts[0]


@dataclasses.dataclass(frozen=True)
class Classification:
    """A classification or regression data set.

    Attributes:
      files: (split, file name, alternatives ...); the files of several entries of a split are read
        one after another.
      texts, label: names that a column may have, the first that is there is read; texts for one
        column or two (none known of a model from elsewhere), label for one, or of numbers for each.
      kind: "single", "multi" (any number of labels) or "numbers".
      labels: names of the classes in the order of the logits; () to find them in the data.
      codes: how the official files write the labels, where that differs.
      metrics: entries of `score`; the first decides.
      submissions: (split, name of its file for the leaderboard).
      header: columns of a file that has no header.
      ignored: labels of examples that are left out, such as "-" for no agreement.
      lenient: the official files have broken rows, which are left out, and empty texts, which are
        not.
      separator: between several labels in a column.
      threshold: of `f1` of numbers: a number that is not below it is positive.
    """

    name: str
    files: tuple[Names, ...]
    texts: tuple[Names, ...]
    label: tuple[Names, ...] = (("label",),)
    kind: str = "single"
    labels: Names = ()
    codes: Names = ()
    metrics: Names = ("accuracy",)
    submissions: tuple[tuple[str, str], ...] = ()
    header: Names = ()
    ignored: Names = ()
    lenient: bool = False
    separator: str = ","
    threshold: float = 0.0

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
        endings = (".tsv", ".csv", ".jsonl", ".json", ".txt")
        return cls(
            name="custom",
            files=tuple((s, *(s + ending for ending in endings)) for s in ("train", "dev", "test")),
            texts=((text,), (pair,)) if pair else ((text,),),
            label=tuple((name,) for name in columns),
            kind=kind,
            metrics=KINDS[kind],
            separator=separator,
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

    # Reading.

    def read(self, source: Source, split: str) -> list[TextExample] | None:
        """See `tasks.base.Task`."""
        examples, rows = [], self._rows(source, split)
        for place, row in enumerate(rows or ()):
            identity = next((row[1][name] for name in _IDS if name in row[1]), str(place))
            texts = tuple(self._text(row, names) for names in self.texts)
            label = self._label(row, split)
            if not (isinstance(label, str) and label in self.ignored):
                examples.append(TextExample(identity, texts, label, row[0]))
        if len({e.id for e in examples if e.id and e.id.isprintable()}) < len(examples):
            examples = [dataclasses.replace(e, id=str(i)) for i, e in enumerate(examples)]
        return None if rows is None else examples

    def _rows(self, source: Source, split: str) -> Iterator[Row] | None:
        if not self.texts:
            raise UserError("a model from elsewhere names no columns of text; fine-tune it first")
        if source.tfds(split):
            found = read_tfds(source.tfds(split), split)
            return None if found is None else ((where, flat(values)) for where, values in found)
        wanted = [names for of, *names in self.files if of == split]
        paths = [source.find(split, names) for names in wanted]
        if all(path is None for path in paths):
            return None
        found_paths = dict.fromkeys(path for path in paths if path is not None)
        if None in paths:
            raise UserError(
                f"{source.data} lacks {wanted[paths.index(None)][0]}, a part of the {split} split; "
                f"to do without it, name the other with --config.{split}"
            )
        return (row for path in found_paths for row in self._file_rows(path))

    def _file_rows(self, path: Path) -> Iterator[Row]:
        columns = None
        if self.header:
            with open_regular(path) as file:
                first = file.readline().decode("utf-8-sig", "replace").strip().split("\t")
            columns = None if any(name in first for name in self.texts[0]) else self.header
        return read_rows(path, columns, skip_broken=self.lenient)

    def _text(self, row: Row, names: Names) -> str:
        text = column(row, *names)
        if not text.strip() and not self.lenient:
            raise UserError(f"{row[0]}: the text in column {names[0]!r} is empty")
        return text

    def _label(self, row: Row, split: str) -> Label | None:
        """The label of a row; None in a split that is only predicted: some hide it as -1."""
        where, parts = row[0], []
        if not split.startswith(("train", "dev")):
            return None
        for names in self.label:
            text = self._cell(row, names)
            if text is None or (not text and self.kind != "multi" and "" not in self.ignored):
                column(row, *names)  # says which columns there are
                raise UserError(f"{where}: there is no label in column {names[0]!r}")
            parts.append(text)
        if self.kind == "numbers":
            return tuple(number(where, part) for part in parts)
        if self.kind == "single":
            return self._known(where, parts[0])
        return self._several(where, parts[0])

    def _several(self, where: str, text: str) -> tuple[str, ...]:
        names = [name.strip() for name in text.split(self.separator)]
        return tuple(sorted({self._known(where, name) for name in names if name}))

    def _cell(self, row: Row, names: Names) -> str | None:
        """The text of a label column; of a list of labels in JSON, with separators."""
        for name in names:
            if name in row[1]:
                return row[1][name].strip()
            several = [text for key, text in row[1].items() if key.startswith(f"{name}.")]
            if self.kind == "multi" and several:
                if any(self.separator in text for text in several):
                    raise UserError(
                        f"{row[0]}: a label holds {self.separator!r}; set another custom.separator"
                    )
                return self.separator.join(several)
        return None

    def _known(self, where: str, text: str) -> str:
        """The name of the label that a file calls `text`."""
        if text in self.labels or text in self.ignored or not self.labels:
            return text
        if text in self.codes:
            return self.labels[self.codes.index(text)]
        known = ", ".join(self.codes or self.labels)
        raise UserError(f"{where}: the label {text!r} is unknown; known: {known}")

    def fit(self, examples: Sequence[TextExample]) -> "Classification":
        """See `tasks.base.Task`; labels are sorted by name."""
        given = [self._given(example) for example in examples]
        if len(set(given)) < 2:
            raise UserError(
                f"{file_of(examples)}: there is nothing to learn, as all {len(given)} training "
                f"examples have the label {given[0]!r}"
            )
        if self.kind == "numbers" or self.labels:
            return self
        found = {name for label in given for name in _as_set(label)}
        for name in found:
            if "\t" in name or "\n" in name:
                raise UserError(f"the label {name!r} holds a tab or a line end")
        return dataclasses.replace(self, labels=tuple(sorted(found)))

    def _given(self, example: TextExample) -> Label:
        """The label of an example that must have a known one."""
        if example.label is None:
            raise UserError(f"{example.where}: there is no label")
        if self.kind != "numbers":
            for name in _as_set(example.label):
                self._known(example.where, name)
        return example.label

    # The model.

    def featurise(
        self, examples: Sequence[TextExample], tokenizer: Tokenizer, max_length: int, train: bool
    ) -> list[Feature]:
        """See `tasks.base.Task`; label int32[], labels float32[C] or numbers float32[C]."""
        features = encode_pairs([example.texts for example in examples], tokenizer, max_length)
        for feature, example in zip(features, examples, strict=True):
            if train or example.label is not None:
                label = self._given(example)  # an unknown one is told before anything is trained
            if train:
                if self.kind == "numbers":
                    feature.arrays["numbers"] = np.array(label, np.float32)
                elif self.kind == "multi":
                    held = [name in label for name in self.labels]
                    feature.arrays["labels"] = np.array(held, np.float32)
                else:
                    feature.arrays["label"] = np.array(self.labels.index(str(label)), np.int32)
        return features

    def objective(self, body: Body) -> Classify:
        """See `tasks.base.Task`."""
        return Classify(body, self.outputs, self.kind)

    def decode(
        self,
        examples: Sequence[TextExample],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> list[Label]:
        """A label, the labels of probability over a half, or the numbers."""
        logits = [output["logits"] for output in outputs]
        if self.kind == "numbers":
            return [tuple(map(float, row)) for row in logits]
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

    # Scores and files.

    def score(
        self, examples: Sequence[TextExample], predictions: Sequence[Label]
    ) -> dict[str, float]:
        """See `tasks.base.Task`; `squared_error` is in the unit of the numbers."""
        gold: list[Any] = [self._given(example) for example in examples]
        if not gold:
            return dict.fromkeys(self.metrics, 0.0)
        return {name: self._metric(name, gold, list(predictions)) for name in self.metrics}

    def _metric(self, name: str, gold: list[Any], predicted: list[Any]) -> float:
        classes = self.labels or sorted({c for label in gold + predicted for c in _as_set(label)})
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
        given = [self._given(example) for example in train]
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
        found = [(row[0], column(row, *_IDS), self._prediction(row)) for row in read_rows(path)]
        if self.ignored and 0 < len(examples) < len(found):
            gold = Source(files={"test": file_of(examples)})
            predictions = in_order(path, found, self.read(gold, "test") or [])
            labels = (self._label(row, "dev") for row in self._rows(gold, "test") or ())
            pairs = zip(predictions, labels, strict=True)
            return [prediction for prediction, label in pairs if label not in self.ignored]
        return in_order(path, found, examples)

    def _prediction(self, row: Row) -> Label:
        text = column(row, "prediction")
        if self.kind == "single":
            return self._known(row[0], text)
        if self.kind == "multi":
            return self._several(row[0], text)
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


def _as_set(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else tuple(map(str, label))
