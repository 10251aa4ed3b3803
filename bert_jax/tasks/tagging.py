"""Tagging: an entity tag for each word, or for each character of running text.

Sources: BERT paper, section 5.3 (a label on the first piece of each word, no CRF, "the maximal
document context provided by the data"); KLUE-baseline `klue_ner.py` (character-level tags: a piece
has the tag of its first character).
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.common.files import write_whole
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models.body import Body
from bert_jax.objectives.finetuning import Tag
from bert_jax.tasks import conll, rows
from bert_jax.tasks.base import Feature, Source, Untuned, file_of
from bert_jax.tasks.conll import Sentence
from bert_jax.tasks.tagging_windows import Unit, filled, pieces_of_text, pieces_of_words, windows
from bert_jax.training import distributed


@dataclasses.dataclass(frozen=True)
class Tagging(Untuned):
    """A tagging data set in CoNLL columns.

    train, dev, test: names of the files of the splits. joined: the "words" are the characters of
    running text. document_context: each sentence is read with what stands around it in its
    document, up to the longest input, where the files mark documents; a batch then costs more.
    labels: tags in the order of the classes, O first; found by `fit`.
    """

    name: str
    train: tuple[str, ...] = ("train.txt", "train.conll")
    dev: tuple[str, ...] = ("dev.txt", "dev.conll", "valid.txt")
    test: tuple[str, ...] = ("test.txt", "test.conll")
    joined: bool = False
    document_context: bool = False
    labels: tuple[str, ...] = ()

    splits = ("train", "dev", "test")

    @classmethod
    def custom(cls, joined: bool = False, document_context: bool = False) -> "Tagging":
        """A user's own CoNLL files."""
        return cls("custom", joined=joined, document_context=document_context)

    @property
    def metric(self) -> str:
        """F1 as conlleval counts it; of running text, KLUE's mean over the types."""
        return "entity_macro_f1" if self.joined else "f1"

    def read(self, source: Source, split: str) -> list[Sentence] | None:
        """The sentences of a split; of TFDS: columns `tokens` and `ner`, as in conll2003."""
        if source.tfds(split):
            table = rows.read_tfds(source.tfds(split), split)
            return None if table is None else [_from_tfds(where, row) for where, row in table]
        path = source.find(split, getattr(self, split))
        return None if path is None else conll.read_sentences(path, self.joined)

    def fit(self, examples: Sequence[Sentence]) -> "Tagging":
        """The task with B- and I- of every type that occurs (see `tasks.base.Task`)."""
        untagged = next((e.where for e in examples if e.tags is None), None)
        if untagged:
            raise UserError(f"{untagged}: a training file needs tags in its last column")
        found = {tag for example in examples for tag in example.tags or ()}
        if len(found) < 2:
            raise UserError(
                f"{file_of(examples)}: there is nothing to learn, as all words have the tag "
                f"{', '.join(found)}"
            )
        kinds = sorted({tag[2:] for tag in found if tag != "O"})
        labels = ("O", *(f"{letter}-{kind}" for kind in kinds for letter in "BI"))
        return dataclasses.replace(self, labels=labels)

    def featurise(
        self, examples: Sequence[Sentence], tokenizer: Tokenizer, max_length: int, train: bool
    ) -> list[Feature]:
        """A window of pieces for each sentence; several that overlap for one that is too long.

        With `train`, "token_labels" int32[S], -1 where a position has none. `info` is int[n, 3]:
        position, first word and end of the words that it tags; a word occurs in one window only.

        Tags that training did not have count as missed, as by the official scorers; they are told.
        """
        numbers = {label: number for number, label in enumerate(self.labels)}
        unknown = [
            (example, place, tag)
            for example in examples
            for place, tag in enumerate(example.tags or ())
            if tag not in numbers
        ]
        if unknown:
            example, place, tag = unknown[0]
            distributed.say(
                f"{example.where_word(place)}: the tag {tag!r} is not in the training data, which "
                f"has {', '.join(self.labels)}; words with such tags, never predicted: "
                f"{len(unknown):,}"
            )
        pieces = pieces_of_text if self.joined else pieces_of_words
        template = tokenizer.template
        room = max_length - template.around(1)
        features = []
        for place, stream, inside, units in self._streams(examples, pieces(examples, tokenizer)):
            tags = examples[place].tags
            for start, kept in windows(inside, units, len(stream), room):
                arrays = template.join(stream[start : start + room])
                shift = len(template.before) - start
                info = np.array([(p + shift, first, end) for p, first, end in kept])
                info = info.reshape(-1, 3).astype(np.int32)
                if train and tags is not None:
                    arrays["token_labels"] = np.full(len(arrays["tokens"]), -1, np.int32)
                    arrays["token_labels"][info[:, 0]] = [numbers[tags[w]] for w in info[:, 1]]
                features.append(Feature(arrays, place, info))
        return features

    def _streams(
        self, examples: Sequence[Sentence], pieces: Sequence[tuple[list[int], list[Unit]]]
    ) -> Iterator[tuple[int, list[int], range, list[Unit]]]:
        """Of each sentence: its number, ids of its document, its range in them, units in them."""
        context = self.document_context

        def document(place: int) -> str | int:
            return (context and examples[place].group) or place

        for _, places in itertools.groupby(range(len(examples)), key=document):
            stream: list[int] = []
            found = []
            for place in places:
                ids, units = pieces[place]
                begin = len(stream)
                moved = [(begin + p, first, end) for p, first, end in units]
                stream += ids
                found.append((place, range(begin, len(stream)), moved))
            for place, inside, moved in found:
                yield place, stream, inside, moved

    def objective(self, body: Body) -> Tag:
        return Tag(body, len(self.labels))

    def decode(
        self,
        examples: Sequence[Sentence],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> list[tuple[str, ...]]:
        """The likeliest tag of each word.

        The characters of a piece share its tag, I after the first. What no piece holds (spaces)
        is inside where the entity goes on behind it, as in KLUE.
        """
        result: list[list[str | None]] = [[None] * len(example.words) for example in examples]
        for feature, output in zip(features, outputs, strict=True):
            best = np.argmax(output["logits"][feature.info[:, 0]], axis=-1)
            for number, (_, first, end) in zip(best, feature.info, strict=True):
                tag = self.labels[number]
                inside = tag if tag == "O" else f"I-{tag[2:]}"
                result[feature.example][first:end] = [tag] + [inside] * (end - first - 1)
        return [filled(tags) for tags in result]

    predicted_columns = ("prediction", "probability")

    def input_columns(self, example: Sentence) -> Mapping[str, str]:
        """See `tasks.base.Task`: none, as files of sentences have no names of columns."""
        return {}

    def table(
        self,
        examples: Sequence[Sentence],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
        predictions: Sequence[conll.Tags],
    ) -> Iterator[dict[str, Any]]:
        """Makes a row of each word: its sentence, the other columns of the file, the prediction.

        The probability is that of the tag of the piece that the word is tagged by; none where no
        piece does.
        """
        from scipy import special  # late: a start does without

        shares: list[list[float | None]] = [[None] * len(example.words) for example in examples]
        for feature, output in zip(features, outputs, strict=True):
            found = special.softmax(np.float64(output["logits"][feature.info[:, 0]]), axis=-1)
            for best, (_, first, end) in zip(found.max(axis=-1), feature.info, strict=True):
                shares[feature.example][first:end] = [float(best)] * (end - first)
        for example, tags, row in zip(examples, predictions, shares, strict=True):
            for place, (word, tag, share) in enumerate(zip(example.words, tags, row, strict=True)):
                others = example.others[place] if example.others else ()
                yield {
                    "sentence": example.id,
                    "word": word,
                    **{f"column_{number}": cell for number, cell in enumerate(others, 2)},
                    **({"tag": example.written[place]} if example.written else {}),
                    **dict(zip(self.predicted_columns, (tag, share), strict=True)),
                }

    def _scored(
        self, examples: Sequence[Sentence], predictions: Sequence[conll.Tags]
    ) -> tuple[list[conll.Tags], list[conll.Tags]]:
        """Gold and predicted tags of all that counts: of running text, all but spaces (KLUE)."""
        gold: list[conll.Tags] = []
        predicted: list[conll.Tags] = []
        for example, tags in zip(examples, predictions, strict=True):
            if example.tags is None:
                raise UserError(f"{example.where}: without gold tags there is no score")
            chosen = [not self.joined or word != " " for word in example.words]
            gold.append(list(itertools.compress(example.tags, chosen)))
            predicted.append(list(itertools.compress(tags, chosen)))
        return gold, predicted

    def _written(
        self, examples: Sequence[Sentence], predictions: Sequence[conll.Tags]
    ) -> tuple[list[conll.Tags], list[conll.Tags]]:
        """Gold and predicted tags that count, in the scheme of the file that they are from."""
        gold, written = [], []
        for example, tags in zip(examples, predictions, strict=True):
            pairs = tags.written if isinstance(tags, conll.TagsOfFile) else ()
            sides = tuple(zip(*pairs, strict=True)) or (example.tags, tags)
            gold.append(dataclasses.replace(example, tags=sides[0]))
            written.append(sides[1])
        return self._scored(gold, written)

    def score(
        self, examples: Sequence[Sentence], predictions: Sequence[conll.Tags]
    ) -> dict[str, float]:
        """What conlleval counts: f1, precision, recall, accuracy, and f1_TYPE of each type.

        The accuracy of tags of a file is that of the tags as it has them, whatever its scheme; of
        the model's tags, in IOB2. Of running text also KLUE's entity_macro_f1 (mean over the types
        of either, strict IOB2) and char_macro_f1.
        """
        gold, predicted = self._scored(examples, predictions)
        counts = conll.count(gold, predicted)
        every = conll.total(counts.values())
        scores = {"f1": every.f1, "precision": every.precision, "recall": every.recall}
        scores["accuracy"] = conll.accuracy(*self._written(examples, predictions))
        if self.joined:
            strict = conll.count(gold, predicted, strict=True).values()
            scores["entity_macro_f1"] = sum(row.f1 for row in strict) / max(len(strict), 1)
            labels = self.labels or sorted(set(itertools.chain(*gold, *predicted)))
            scores["char_macro_f1"] = conll.character_f1(gold, predicted, labels)
        return {**scores, **{f"f1_{kind}": row.f1 for kind, row in counts.items()}}

    def baseline(
        self, train: Sequence[Sentence], examples: Sequence[Sentence]
    ) -> list[tuple[str, ...]]:
        """The most frequent tag of each word in training, O for others."""
        seen: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for example in train:
            for word, tag in zip(example.words, example.tags or (), strict=True):
                seen[word][tag] += 1
        usual = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
        return [tuple(usual.get(word, "O") for word in example.words) for example in examples]

    def write(
        self,
        folder: Path,
        split: str,
        examples: Sequence[Sentence],
        predictions: Sequence[conll.Tags],
    ) -> list[Path]:
        """SPLIT_predictions.conll: word, gold tag where there is one, predicted tag.

        conlleval reads it as it is; where a column holds spaces, tabs separate all.
        What conlleval says of it is in SPLIT_conlleval.txt, where there are gold tags.
        """
        lines: list[Sequence[str]] = []
        for example, tags in zip(examples, predictions, strict=True):
            columns = [example.words, *([example.tags] if example.tags else []), tags]
            lines += [*zip(*columns, strict=True), ()]
        spaced = any(not cell or " " in cell for line in lines for cell in line)
        text = "".join(("\t" if spaced else " ").join(line) + "\n" for line in lines)
        paths = [write_whole(folder / f"{split}_predictions.conll", text)]
        if all(example.tags is not None for example in examples):
            report = conll.report(*self._scored(examples, predictions))
            paths.append(write_whole(folder / f"{split}_conlleval.txt", report))
        return paths

    def read_predictions(self, path: Path, examples: Sequence[Sentence]) -> list[conll.TagsOfFile]:
        """The last column of a CoNLL file with the same sentences."""
        return conll.read_tags(path, examples, self.joined)

    def plot(
        self, path: Path, examples: Sequence[Sentence], predictions: Sequence[conll.Tags]
    ) -> Path | None:
        """Gold types against those predicted for the same spans; "none": spurious, or missed."""
        if any(example.tags is None for example in examples):
            return None
        from bert_jax.tasks import plots  # late: a start does without

        pairs = []
        for sides in zip(*self._scored(examples, predictions), strict=True):
            true, found = ({tuple(span): kind for kind, *span in conll.chunks(s)} for s in sides)
            pairs += [(true.get(span, "none"), found.get(span, "none")) for span in true | found]
        kinds = sorted({kind for pair in pairs for kind in pair} - {"none"})
        gold, predicted = zip(*pairs, strict=True) if pairs else ((), ())
        return plots.confusion(path, [*kinds, "none"], gold, predicted)


def _from_tfds(where: str, row: Mapping[str, Any]) -> Sentence:
    if "tokens" not in row or "ner" not in row:
        raise UserError(
            f"{where}: no columns tokens and ner, but {', '.join(row)}: is it a tagging data set?"
        )
    return Sentence(where, tuple(row["tokens"]), conll.to_iob2(row["ner"]), where)


TASKS = (
    Tagging(
        "conll2003",
        train=("eng.train", "train.txt"),
        dev=("eng.testa", "valid.txt", "dev.txt"),
        test=("eng.testb", "test.txt"),
        document_context=True,
    ),
    Tagging(
        "wnut17",
        train=("wnut17train.conll",),
        dev=("emerging.dev.conll",),
        test=("emerging.test.annotated",),
    ),
    Tagging(
        "klue_ner",
        train=("klue-ner-v1.1_train.tsv", "klue-ner-train-first5000.tsv"),
        dev=("klue-ner-v1.1_dev.tsv",),
        test=("klue-ner-v1.1_test.tsv",),
        joined=True,
    ),
)
