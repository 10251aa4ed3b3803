"""Choice: one of several endings of a prompt.

Sources: BERT paper, section 4.4 (one sequence for each ending: sentence A is what is given,
sentence B the ending); SWAG (rowanz/swagaf: columns, prediction file); CODAH (full_data.tsv).
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.common.files import write_whole
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models.body import Body
from bert_jax.objectives.finetuning import Choose
from bert_jax.tasks import metrics, rows
from bert_jax.tasks.base import Feature, Source, Untuned, in_order


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and its endings; label: the number of the right one, or None.

    columns: all there are in the file, but of "train".
    """

    id: str
    prompt: str
    endings: tuple[str, ...]
    label: int | None = None
    where: str = ""
    group: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Choice(Untuned):
    """A table with a prompt, endings and the right one in columns.

    train, dev, test: names of the files of the splits. columns: of files without a header.
    lead: the column with what every ending begins with. labels: names of the endings in the label
    column, in their order. group: the column of what must not be split; by default the prompt.
    """

    name: str
    prompt: str = "prompt"
    endings: tuple[str, ...] = ("ending0", "ending1", "ending2", "ending3")
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1", "2", "3")
    lead: str = ""
    group: str = ""
    columns: tuple[str, ...] = ()
    train: tuple[str, ...] = tuple("train" + ending for ending in rows.ENDINGS)
    dev: tuple[str, ...] = tuple("dev" + ending for ending in rows.ENDINGS)
    test: tuple[str, ...] = tuple("test" + ending for ending in rows.ENDINGS)

    splits = ("train", "dev", "test")
    metric = "accuracy"

    def __post_init__(self):
        if len(self.endings) < 2 or len(self.labels) != len(self.endings):
            raise UserError(
                f"{len(self.endings)} endings and {len(self.labels)} labels; there must be two or "
                "more, and as many of each"
            )
        for name in ("endings", "labels"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"{name}: two of the same name: {', '.join(getattr(self, name))}")

    @classmethod
    def custom(
        cls, prompt: str = "prompt", endings: str = "", label: str = "label", labels: str = ""
    ) -> "Choice":
        """A table of one's own.

        Args:
          prompt, label: columns. The text of the right ending is a label too.
          endings: their columns, separated by commas; "" for ending0 to ending3.
          labels: what the label column calls them, in that order; "" for numbers from 0.

        Raises: UserError: fewer than two endings, or not a label for each.
        """
        columns = _names("custom.endings", endings) or cls.endings
        called = _names("custom.labels", labels) or tuple(map(str, range(len(columns))))
        if not prompt or not label:
            raise UserError("custom.prompt and custom.label must not be empty")
        names = [prompt, *columns, label]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"custom.prompt={prompt}, custom.endings={','.join(columns)} and "
                f"custom.label={label} name the column {twice[0]!r} twice"
            )
        if len(columns) < 2 or len(called) != len(columns):
            raise UserError(
                f"custom.endings names {len(columns)} columns and custom.labels {len(called)} "
                "labels; there must be two or more, and as many of each"
            )
        return cls("custom", prompt, columns, label, called)

    def read(self, source: Source, split: str) -> list[Question] | None:
        """The questions of a split."""
        if source.tfds(split):
            found = rows.read_tfds(source.tfds(split), split)
            if found is None:
                return None
            table: Iterable[rows.Row] = ((where, rows.flat(row)) for where, row in found)
        else:
            path = source.find(split, getattr(self, split))
            if path is None:
                return None
            table = rows.read_rows(path, self.columns or None)
        return [self._question(number, row, split) for number, row in enumerate(table)]

    def _question(self, number: int, row: rows.Row, split: str) -> Question:
        where, fields = row
        labelled = split != "test"  # there some hide the labels as -1
        prompt = rows.column(row, self.prompt).strip()
        lead = rows.column(row, self.lead).strip() if self.lead else ""
        endings = tuple(rows.column(row, name).strip() for name in self.endings)
        if not prompt:
            raise UserError(f"{where}: the column {self.prompt!r} is empty")
        for name, ending in zip(self.endings, endings, strict=True):
            if not ending:
                raise UserError(f"{where}: the column {name!r} is empty")
        return Question(
            id=str(number),
            prompt=prompt,
            endings=tuple(f"{lead} {ending}".lstrip() for ending in endings),
            label=self._label(where, fields.get(self.label, ""), endings) if labelled else None,
            where=where,
            group=rows.column(row, self.group) if self.group else prompt,
            columns={} if split == "train" else fields,
        )

    def _label(self, where: str, text: str, endings: Sequence[str]) -> int | None:
        text = text.strip()
        if not text:
            return None
        for names in (self.labels, endings):
            if text in names:
                return names.index(text)
        raise UserError(
            f"{where}: the label {text!r} is neither one of {', '.join(self.labels)} "
            "nor one of the endings (--config.custom.labels names your own)"
        )

    def fit(self, examples: Sequence[Question]) -> "Choice":
        """The task itself, after a check of the labels (see `tasks.base.Task`)."""
        for example in examples:
            if example.label is None:
                raise UserError(
                    f"{example.where}: a training file needs a label in its column {self.label!r}"
                )
        if len({example.label for example in examples}) < 2:
            raise UserError(
                f"{examples[0].where}: every label is {examples[0].label}: nothing to learn"
            )
        return self

    def featurise(
        self, examples: Sequence[Question], tokenizer: Tokenizer, max_length: int, train: bool
    ) -> list[Feature]:
        """[CLS] prompt [SEP] ending [SEP] of each ending, padded to the longest of the question.

        Of what is too long the beginning of the prompt goes first, as the ending follows from its
        end; then the end of the ending.
        """
        prompts = tokenizer.encode_batch([example.prompt for example in examples])
        texts = [ending for example in examples for ending in example.endings]
        endings = iter(tokenizer.encode_batch(texts))
        features, room = [], max_length - tokenizer.template.around(2)
        for place, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
            rows, cut = [], False
            for _ in example.endings:
                ending = next(endings)
                cut |= len(prompt) + len(ending) > room
                second = ending[:room]
                first = prompt[max(len(prompt) + len(second) - room, 0) :]
                rows.append(tokenizer.template.join(first, second))
            lengths = np.array([len(row["tokens"]) for row in rows], np.int32)
            tokens = np.full((len(rows), lengths.max()), tokenizer.pad_id, np.int32)
            segments = np.zeros_like(tokens)
            for number, row in enumerate(rows):
                tokens[number, : lengths[number]] = row["tokens"]
                segments[number, : lengths[number]] = row["segments"]
            arrays = {"tokens": tokens, "segments": segments, "lengths": lengths}
            if train and example.label is not None:
                arrays["label"] = np.array(example.label, np.int32)
            features.append(Feature(arrays, place, cut=cut))
        return features

    def objective(self, body: Body) -> Choose:
        return Choose(body)

    def decode(
        self,
        examples: Sequence[Question],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> list[int]:
        """The number of the likeliest ending."""
        return [int(np.argmax(output["logits"])) for output in outputs]

    @property
    def predicted_columns(self) -> tuple[str, ...]:
        """See `tasks.base.Task`: the label of the likeliest ending, and probabilities."""
        return "prediction", *(f"probability_{label}" for label in self.labels)

    def input_columns(self, example: Question) -> Mapping[str, str]:
        """See `tasks.base.Task`."""
        return example.columns

    def table(
        self,
        examples: Sequence[Question],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
        predictions: Sequence[int],
    ) -> Iterator[dict[str, Any]]:
        """See `tasks.base.Task`."""
        from scipy import special  # late: a start does without

        for example, output, choice in zip(examples, outputs, predictions, strict=True):
            shares = special.softmax(np.float64(output["logits"])).tolist()
            values = self.labels[choice], *shares
            yield {**example.columns, **dict(zip(self.predicted_columns, values, strict=True))}

    def score(self, examples: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
        """{"accuracy"}; UserError where a label is missing."""
        unlabelled = next((e.where for e in examples if e.label is None), None)
        if unlabelled:
            raise UserError(f"{unlabelled}: without a label there is no score")
        return {"accuracy": metrics.accuracy([e.label for e in examples], predictions)}

    def baseline(self, train: Sequence[Question], examples: Sequence[Question]) -> list[int]:
        """The most frequent label."""
        counts = collections.Counter(e.label for e in train if e.label is not None)
        return [counts.most_common(1)[0][0]] * len(examples)

    def write(
        self, folder: Path, split: str, examples: Sequence[Question], predictions: Sequence[int]
    ) -> list[Path]:
        """SPLIT_predictions.csv: number of the row and its label, as SWAG's released code does."""
        pairs = zip(examples, predictions, strict=True)
        text = ",pred\n" + "".join(f"{e.id},{self.labels[choice]}\n" for e, choice in pairs)
        return [write_whole(folder / f"{split}_predictions.csv", text)]

    def read_predictions(self, path: Path, examples: Sequence[Question]) -> list[int]:
        """The column `pred` of such a file, in the order of the examples.

        Raises: UserError: other labels, or not one for each example.
        """

        def choice(row: rows.Row) -> int:
            text = rows.column(row, "pred").strip()
            if text not in self.labels:
                raise UserError(f"{row[0]}: {text!r} is none of {', '.join(self.labels)}")
            return self.labels.index(text)

        found = ((row[0], rows.column(row, ""), choice(row)) for row in rows.read_rows(path))
        return in_order(path, found, examples)

    def plot(self, path: Path, examples: Sequence[Question], predictions: Sequence[int]) -> None:
        """None: a choice has no classes to confuse."""


def _names(field: str, text: str) -> tuple[str, ...]:
    """The names that a field lists, separated by commas.

    Raises: UserError: one is empty, or comes twice.
    """
    names = tuple(part.strip() for part in text.split(",")) if text else ()
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{field}={text}: a name between the commas is empty, or comes twice")
    return names


TASKS = (
    Choice(
        "swag",
        prompt="sent1",
        lead="sent2",
        group="video-id",
        train=("train.csv",),
        dev=("val.csv",),
        test=("test.csv",),
    ),
    Choice(
        "codah",
        columns=("category", "prompt", "ending0", "ending1", "ending2", "ending3", "label"),
        train=("full_data.tsv",),
        dev=(),
        test=(),
    ),
)
