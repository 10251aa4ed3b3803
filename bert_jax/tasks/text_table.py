"""Tables of texts or pairs of texts with their labels: from the rows of files to examples."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from bert_jax.common.errors import UserError
from bert_jax.data.opened import open_bytes
from bert_jax.tasks.base import Source, Untuned
from bert_jax.tasks.rows import Row, column, flat, number, read_rows, read_tfds

IDS = ("index", "idx", "id", "guid")

Names = tuple[str, ...]
Label = str | tuple[str, ...] | tuple[float, ...]  # by kind: single, multi, numbers


@dataclasses.dataclass(frozen=True)
class TextExample:
    """A text or a pair.

    id: its index in the official file, or its place; no other example of the split has it.
    label: None in a split that is only predicted. columns: all of the file, but of "train" none.
    """

    id: str
    texts: tuple[str, ...]
    label: Label | None
    where: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def group(self) -> str:
        """Examples with the same first text stay together: a premise, or a text that is twice."""
        return self.texts[0]


@dataclasses.dataclass(frozen=True)
class TextTable(Untuned):
    """Where a data set's texts and labels are.

    Attributes:
      files: (split, file name, alternatives ...); the files of several entries of a split are read
        one after another.
      texts, label: names that a column may have, the first that is there is read; texts for one
        column or two (none known of a model from elsewhere), label for one, or of numbers for each.
      kind: "single", "multi" (any number of labels) or "numbers".
      labels: names of the classes in the order of the logits; () to find them in the data.
      codes: how the official files write the labels, where that differs.
      header: columns of a file that has no header.
      ignored: labels of examples that are left out, such as "-" for no agreement.
      lenient: the official files have broken rows, which are left out, and empty texts, which are
        not.
      separator: between several labels in a column.
    """

    name: str
    files: tuple[Names, ...]
    texts: tuple[Names, ...]
    label: tuple[Names, ...] = (("label",),)
    kind: str = "single"
    labels: Names = ()
    codes: Names = ()
    header: Names = ()
    ignored: Names = ()
    lenient: bool = False
    separator: str = ","

    def read(self, source: Source, split: str) -> list[TextExample] | None:
        """See `tasks.base.Task`."""
        examples, rows = [], self.rows(source, split)
        for place, row in enumerate(rows or ()):
            identity = next((row[1][name] for name in IDS if name in row[1]), str(place))
            texts = tuple(self._text(row, names) for names in self.texts)
            label = self.label_of(row, split)
            if not (isinstance(label, str) and label in self.ignored):
                columns = {} if split == "train" else row[1]  # of training they would take room
                examples.append(TextExample(identity, texts, label, row[0], columns))
        if len({e.id for e in examples if e.id and e.id.isprintable()}) < len(examples):
            examples = [dataclasses.replace(e, id=str(i)) for i, e in enumerate(examples)]
        return None if rows is None else examples

    def rows(self, source: Source, split: str) -> Iterator[Row] | None:
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
            file, _ = open_bytes(path)
            with file:
                first = file.readline().decode("utf-8-sig", "replace").strip().split("\t")
            columns = None if any(name in first for name in self.texts[0]) else self.header
        return read_rows(path, columns, skip_broken=self.lenient)

    def _text(self, row: Row, names: Names) -> str:
        text = column(row, *names)
        if not text.strip() and not self.lenient:
            raise UserError(f"{row[0]}: the text in column {names[0]!r} is empty")
        return text

    def label_of(self, row: Row, split: str) -> Label | None:
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
            return self.known_label(where, parts[0])
        return self.several_labels(where, parts[0])

    def several_labels(self, where: str, text: str) -> tuple[str, ...]:
        names = [name.strip() for name in text.split(self.separator)]
        return tuple(sorted({self.known_label(where, name) for name in names if name}))

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

    def known_label(self, where: str, text: str) -> str:
        """The name of the label that a file calls `text`."""
        if text in self.labels or text in self.ignored or not self.labels:
            return text
        if text in self.codes:
            return self.labels[self.codes.index(text)]
        known = ", ".join(self.codes or self.labels)
        raise UserError(f"{where}: the label {text!r} is unknown; known: {known}")

    def given_label(self, example: TextExample) -> Label:
        """The label of an example that must have a known one."""
        if example.label is None:
            raise UserError(f"{example.where}: there is no label")
        if self.kind != "numbers":
            for name in as_set(example.label):
                self.known_label(example.where, name)
        return example.label


def as_set(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else tuple(map(str, label))
