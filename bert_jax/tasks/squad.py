"""The answering family: the span of a passage that answers a question, or that there is none.

Source: google-research/bert run_squad.py (windows, the max-context rule, n-best lists, the null
score). One thing is done another way: pieces carry their character offsets, so an answer is cut out
of the passage as it is written. The released code rebuilds it from words with a heuristic
(`get_final_text`), which gives the same text where an answer is made of whole words, falls back to
more than the answer where it fails, and cannot end inside a word, as a Korean answer before a
particle does (서울 in 서울에서).
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.common.errors import UserError
from bert_jax.common.files import plain, write_whole
from bert_jax.data.sentences import split_sentences
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models.body import Body
from bert_jax.objectives.finetuning import Span
from bert_jax.tasks import squad_score
from bert_jax.tasks.base import Feature, Source, file_of
from bert_jax.tasks.rows import read_tfds
from bert_jax.tasks.squad_read import Question, from_tfds, load_json, questions, read_json
from bert_jax.tasks.squad_windows import Candidates, candidates, encode, windows

_Scores = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A predicted answer.

    text: "" for none. n_best: (text, probability, start logit, end logit), best first, "" among
    them where that can be. null_odds: score of no answer minus that of the best one; None where a
    question always has an answer. start, end: characters of the best answer in the passage, -1
    where unknown.
    """

    text: str
    n_best: tuple[tuple[str, float, float, float], ...] = ()
    null_odds: float | None = None
    start: int = -1
    end: int = -1

    @property
    def best(self) -> str:
        """The best answer that is one, whether or not the threshold lets it pass."""
        return next((text for text, *_ in self.n_best if text), self.text)


@dataclasses.dataclass(frozen=True)
class Answering:
    """A row of the table: a data set of questions in SQuAD's JSON format.

    unanswerable: as in SQuAD 2.0, some have no answer. files: of train, dev and test in a folder.
    doc_stride, max_query, max_answer: in pieces. threshold: "" is answered where the null odds are
    above it. scorer: a name of `squad_score.SCORERS`.
    """

    name: str = "custom"
    files: tuple[str, str, str] = ("train.json", "dev.json", "test.json")
    unanswerable: bool = False
    scorer: str = "squad"
    doc_stride: int = 128
    max_query: int = 64
    max_answer: int = 30
    n_best: int = 20
    threshold: float = 0.0

    def __post_init__(self):
        if self.scorer not in squad_score.SCORERS:
            known = ", ".join(squad_score.SCORERS)
            raise UserError(f"scorer={self.scorer!r} is unknown; known: {known}")
        for name in ("doc_stride", "max_query", "max_answer", "n_best"):
            if not 0 < getattr(self, name) < 2**31:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not math.isfinite(self.threshold):
            raise UserError(f"threshold={self.threshold} is no number")

    @classmethod
    def custom(cls, unanswerable: bool = False) -> "Answering":
        """A user's own files in SQuAD's format."""
        return cls(unanswerable=unanswerable)

    @property
    def metric(self) -> str:
        """F1; of SQuAD 2.0 at its best threshold, so no checkpoint wins by a lucky threshold."""
        return "best_f1" if self.unanswerable else "f1"

    @property
    def splits(self) -> tuple[str, ...]:
        """train, dev, test."""
        return ("train", "dev", "test")

    def read(self, source: Source, split: str) -> list[Question] | None:
        """The questions of a split; what training cannot use is left out and counted on stderr.

        Raises: UserError: not SQuAD's JSON, questions of the wrong kind, an id that comes twice.
        """
        if source.tfds(split):
            found = read_tfds(source.tfds(split), split)
            rows = None if found is None else from_tfds(found)
            name = f"{source.data} {split}"
        else:
            path = source.find(split, [self.files[self.splits.index(split)]])
            rows = None if path is None else read_json(path)
            name = str(path)
        return None if rows is None else questions(rows, name, split, self.unanswerable)

    def fit(self, examples: Sequence[Question]) -> "Answering":
        """The row itself.

        Raises: UserError: no question has an answer; or all do, though some should not.
        """
        if all(example.impossible for example in examples):
            raise UserError(
                f"{file_of(examples)}: there is nothing to learn, as no training question has an "
                "answer"
            )
        if self.unanswerable and not any(example.impossible for example in examples):
            raise UserError(
                f"{file_of(examples)}: every training question has an answer; use task=squad1 "
                "(of a custom task: --config.custom.unanswerable=false)"
            )
        return self

    def featurise(
        self, examples: Sequence[Question], tokenizer: Tokenizer, max_length: int, train: bool
    ) -> list[Feature]:
        """A feature for each window: [CLS] question [SEP] window [SEP], segments 0 and 1.

        The question is cut to `max_query` pieces. With `train`, start and end int32[]: positions of
        the first and last piece of the answer, 0 ([CLS]) where the window does not hold all of it.
        Otherwise info is the `Window`.

        Raises: UserError where the question leaves no room for the passage.
        """
        texts = dict.fromkeys(text for e in examples for text in (e.question, e.context))
        pieces = encode(tokenizer, list(texts))
        features = []
        for place, example in enumerate(examples):
            query = pieces[example.question].ids[: self.max_query]
            context = pieces[example.context]
            first = tokenizer.template.second(len(query))
            room = max_length - len(query) - tokenizer.template.around(2)
            if room < 1:
                raise UserError(
                    f"{example.where or 'a question'}: max_length={max_length} leaves no room for "
                    f"the passage; raise it above {first + 1} or lower max_query={self.max_query}"
                )
            answer = None
            if train and not example.impossible:
                text, begin = example.answers[0]
                answer = context.span(begin, begin + len(text))
            for start, window in windows(context, room, self.doc_stride, first):
                ids = context.ids[start : start + len(window.offsets)]
                arrays = tokenizer.template.join(query, ids)
                if train:
                    inside = answer and start <= answer[0] and answer[1] < start + len(ids)
                    at = np.array(answer) - start + first if inside else np.zeros(2)
                    arrays["start"], arrays["end"] = at.astype(np.int32)
                features.append(Feature(arrays, place, None if train else window))
        return features

    def objective(self, body: Body) -> Span:
        """Two softmaxes over the positions."""
        return Span(body)

    def decode(
        self,
        examples: Sequence[Question],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> list[Answer]:
        """The best answers over all windows of each question."""
        found: list[list[Candidates]] = [[] for _ in examples]
        for feature, output in zip(features, outputs, strict=True):
            length = len(feature.arrays["tokens"])
            start, end = (output[name][:length] for name in ("start", "end"))
            found[feature.example].append(
                candidates(feature.info, start, end, self.n_best, self.max_answer)
            )
        return [self._answer(e.context, parts) for e, parts in zip(examples, found, strict=True)]

    def _answer(self, context: str, parts: Sequence[Candidates]) -> Answer:
        """The answer from the windows of one question; "" where they hold nothing to choose."""
        if not parts:
            return Answer("", null_odds=0.0 if self.unanswerable else None)
        null = min((part.null for part in parts), key=sum)
        spans = np.concatenate([part.spans for part in parts])
        logits = np.concatenate([part.logits for part in parts])
        if self.unanswerable:
            spans, logits = np.append(spans, [[0, 0]], axis=0), np.append(logits, [null], axis=0)
        entries: dict[str, int] = {}  # a text, at the place of its best span
        for row in np.argsort(-logits.sum(axis=1), kind="stable"):
            begin, end = spans[row]
            entries.setdefault(context[begin:end], int(row))
            if len(entries) == self.n_best:
                break
        if self.unanswerable:
            entries.setdefault("", len(spans) - 1)
        rows = list(entries.values())
        if not rows:
            return Answer("")
        scores = logits[rows].sum(axis=1)
        weights = np.exp(scores - scores.max())
        probabilities = (weights / weights.sum()).tolist()
        columns = entries, probabilities, *logits[rows].T.tolist()
        n_best = tuple(zip(*columns, strict=True))
        best = next((row for text, row in entries.items() if text), None)
        if best is None:  # only with `unanswerable`; as if the best answer scored 0
            return Answer("", n_best, float(sum(null)))
        odds = float(sum(null) - logits[best].sum()) if self.unanswerable else None
        begin, end = spans[best].tolist()
        answer = Answer(context[begin:end], n_best, odds, begin, end)
        return self.with_threshold([answer])[0]

    predicted_columns = ("prediction", "probability", "start", "end", "null_odds")

    def input_columns(self, example: Question) -> Mapping[str, str]:
        """See `tasks.base.Task`."""
        fields = {"id": "id", "title": "group", "question": "question", "context": "context"}
        return {column: getattr(example, field) for column, field in fields.items()}

    def table(
        self,
        examples: Sequence[Question],
        features: Sequence[Feature],
        outputs: Sequence[Mapping[str, np.ndarray]],
        predictions: Sequence[Answer],
    ) -> Iterator[dict[str, Any]]:
        """See `tasks.base.Task`; start and end are characters of the context, -1 for no answer.

        The probability is among the best ones; null_odds are empty where there always is an answer.
        """
        for example, answer in zip(examples, predictions, strict=True):
            share = next((share for text, share, *_ in answer.n_best if text == answer.text), 0.0)
            place = (answer.start, answer.end) if answer.text else (-1, -1)
            values = answer.text, share, *place, answer.null_odds
            ours = dict(zip(self.predicted_columns, values, strict=True))
            yield {**self.input_columns(example), **ours}

    def with_threshold(self, predictions: Sequence[Answer]) -> list[Answer]:
        """The predictions decided anew with this row's threshold."""

        def decided(answer: Answer) -> Answer:
            none = answer.null_odds is not None and answer.null_odds > self.threshold
            return dataclasses.replace(answer, text="" if none else answer.best)

        return [decided(answer) for answer in predictions]

    def tuned(self, examples: Sequence[Question], predictions: Sequence[Answer]) -> "Answering":
        """The row with the threshold of the best F1; below all odds where no answer pays."""
        if not self.unanswerable:
            return self
        scores, *rest = self._null_scores(examples, predictions)
        rising, means = squad_score.threshold_curve(scores[:, 1], *rest)
        means[1:-1][rising[:-1] == rising[1:]] = -1  # no threshold parts equal odds
        best = int(means.argmax())
        threshold = float(rising[best - 1]) if best else float(rising[0]) - 1
        return dataclasses.replace(self, threshold=threshold)

    def _null_scores(self, examples: Sequence[Question], predictions: Sequence[Answer]) -> _Scores:
        """What `squad_score.best_threshold` takes, of the answers before the threshold."""
        texts = [p.best for p in predictions]
        scores = squad_score.raw_scores(_golds(examples), texts, self.scorer, True)
        answered = np.array([bool(text) for text in texts], bool)
        odds = np.array([p.null_odds for p in predictions], np.float64)
        return scores, answered, _answerable(examples), odds

    def score(
        self, examples: Sequence[Question], predictions: Sequence[Answer]
    ) -> dict[str, float]:
        """exact, f1, total; of SQuAD 2.0 also HasAns_*, NoAns_*, best_exact, best_f1, *_thresh.

        best_* are of the answers before the threshold; in a file of predictions these are no longer
        to be seen where it made them empty (the official script's best_* are of such files).
        """
        texts = [p.text for p in predictions]
        scores = squad_score.raw_scores(_golds(examples), texts, self.scorer, self.unanswerable)
        result = squad_score.summary(scores, _answerable(examples), self.unanswerable)
        if self.unanswerable and all(p.null_odds is not None for p in predictions):
            scores, *rest = self._null_scores(examples, predictions)
            for column, name in enumerate(("best_exact", "best_f1")):
                best, threshold = squad_score.best_threshold(scores[:, column], *rest)
                result |= {name: best, f"{name}_thresh": threshold}
        return result

    def baseline(self, train: Sequence[Question], examples: Sequence[Question]) -> list[Answer]:
        """No answer where that can be; else the sentence with the most words of the question."""
        if self.unanswerable:
            return [Answer("", null_odds=0.0) for _ in examples]

        def words(text: str) -> set[str]:
            return set(re.findall(r"\w+", text.lower()))

        def best(example: Question) -> str:
            asked = words(example.question)
            sentences = split_sentences(example.context) or [""]
            return max(sentences, key=lambda sentence: len(words(sentence) & asked))

        return [Answer(best(example)) for example in examples]

    def write(
        self,
        folder: Path,
        split: str,
        examples: Sequence[Question],
        predictions: Sequence[Answer],
    ) -> list[Path]:
        """predictions.json, nbest_predictions.json[, null_odds.json]; SPLIT_... if not of dev."""
        pairs = list(zip((e.id for e in examples), predictions, strict=True))
        fields = ("text", "probability", "start_logit", "end_logit")
        contents: dict[str, Mapping[str, Any]] = {
            "predictions": {key: p.text for key, p in pairs},
            "nbest_predictions": {
                key: [dict(zip(fields, entry, strict=True)) for entry in p.n_best]
                for key, p in pairs
            },
        }
        if self.unanswerable:
            contents["null_odds"] = {key: p.null_odds for key, p in pairs}
        prefix = "" if split == "dev" else f"{split}_"
        return [
            write_whole(
                folder / f"{prefix}{name}.json",
                json.dumps(plain(content), indent=4, ensure_ascii=False, allow_nan=False) + "\n",
            )
            for name, content in contents.items()
        ]

    def read_predictions(self, path: Path, examples: Sequence[Question]) -> list[Answer]:
        """The answers in a predictions.json, with the null_odds.json beside it if there is one.

        Raises: UserError: not such a file, or not all questions are in it.
        """
        texts = _values(path, examples, str)
        beside = path.with_name(path.name.replace("predictions", "null_odds"))
        if not self.unanswerable or beside == path or not beside.exists():
            return [Answer(text) for text in texts]
        odds = _values(beside, examples, (int, float))
        return [Answer(*pair) for pair in zip(texts, ((),) * len(texts), odds, strict=True)]

    def plot(self, path: Path, examples: Sequence[Question], predictions: Sequence[Answer]) -> Path:
        """Scores against the threshold where there can be no answer, else F1 by answer length."""
        from bert_jax.tasks import plots  # late: a start does without

        if self.unanswerable and all(p.null_odds is not None for p in predictions):
            parts = self._null_scores(examples, predictions)
            return plots.threshold_curves(path, *parts, self.threshold)
        golds, texts = _golds(examples), [p.text for p in predictions]
        scores = squad_score.raw_scores(golds, texts, self.scorer, self.unanswerable)
        return plots.f1_by_length(path, golds, scores[:, 1], self.scorer)


TASKS = (
    Answering("squad1", ("train-v1.1.json", "dev-v1.1.json", "test-v1.1.json")),
    Answering("squad2", ("train-v2.0.json", "dev-v2.0.json", "test-v2.0.json"), unanswerable=True),
    Answering(
        "korquad",
        ("KorQuAD_v1.0_train.json", "KorQuAD_v1.0_dev.json", "KorQuAD_v1.0_test.json"),
        scorer="korquad",
    ),
)


def _golds(examples: Sequence[Question]) -> list[list[str]]:
    return [[text for text, _ in example.answers] for example in examples]


def _answerable(examples: Sequence[Question]) -> np.ndarray:
    return np.array([bool(example.answers) for example in examples], bool)


def _values(path: Path, examples: Sequence[Question], kind: type | tuple[type, ...]) -> list[Any]:
    """The values of a JSON object by question id, in the order of the examples.

    Raises: UserError: it is not such a file, or lacks a question.
    """
    content = load_json(path)
    if not isinstance(content, dict) or not all(isinstance(v, kind) for v in content.values()):
        wanted = "texts" if kind is str else "numbers"
        raise UserError(f"{path} must be an object of {wanted} by question id")
    missing = [example.id for example in examples if example.id not in content]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of {len(examples)} questions (first: {missing[0]}); "
            "is it of another split?"
        )
    return [content[example.id] for example in examples]
