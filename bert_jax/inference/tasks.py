"""What a fine-tuned model is used for: classify, answer, tag, choose."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.buckets import ladder
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference import arguments
from bert_jax.models.backbone import Backbone
from bert_jax.models.body import Body
from bert_jax.tasks import choice, conll, squad_read
from bert_jax.tasks.base import ONE_SEGMENT, Feature, Task, run_features
from bert_jax.tasks.classification import TextExample
from bert_jax.training.memory import Checked

R = TypeVar("R")
Text = str | tuple[str, str]  # a text, or a pair of texts


@dataclasses.dataclass(frozen=True)
class Label:
    """What a text is: a label; of several, those that hold; of numbers, the numbers.

    probabilities: of every label by name, empty of numbers.
    """

    label: str | tuple[str, ...] | tuple[float, ...]
    probabilities: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, context[start:end]; "" at -1 where there is none.

    n_best: (text, probability) of the best ones, "" among them where there may be no answer.
    """

    text: str
    probability: float
    start: int
    end: int
    n_best: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Entity:
    """An entity: characters start .. end - 1 of the text."""

    type: str
    text: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Tagged:
    """A text, its words (or characters) with a tag each, and the entities that these make."""

    text: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    entities: tuple[Entity, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The number of the likeliest ending, and the probability of each."""

    index: int
    probabilities: tuple[float, ...]


class TaskModel:
    """A model with its tokenizer and, if it was fine-tuned, its task.

    A method that is not of its task raises a UserError which says what it was fine-tuned for.
    """

    def __init__(self, backbone: Backbone, params: Any, tokenizer: Tokenizer):
        """params: the tree of a checkpoint; only the parts a method uses need be there."""
        self.backbone, self.tokenizer = backbone, tokenizer
        self.params = jax.device_put(params)
        self.task: Task | None = None
        self._said = False

    def set_task(self, task: Task, body: Body, max_length: int | None = None) -> None:
        """Makes the model one that was fine-tuned on `task`.

        max_length: tokens of a sequence in fine-tuning; default: what the model can take.
        """
        self.task, self._longest = task, max_length or self.backbone.max_positions
        self._predict = side_by_side(Checked(jax.jit(task.objective(body).predict), "a batch"))

    def predict(self, examples: Sequence[Any], batch_size: int = 32) -> list[Any]:
        """Predicts examples of the model's task; returns what `Task.decode` gives."""
        return self.predict_table(examples, batch_size)[0]

    def predict_table(
        self, examples: Sequence[Any], batch_size: int = 32
    ) -> tuple[list[Any], Iterable[dict[str, Any]]]:
        """Predicts examples of the model's task.

        Returns: what `Task.decode` gives, and the rows of `Task.table`.
        """
        task = self._require(tasks.family(self.task) if self.task else "", "predict")
        features, outputs = self._run(task, examples, batch_size)
        predictions = task.decode(examples, features, outputs)
        return predictions, task.table(examples, features, outputs, predictions)

    def classify(self, texts: Sequence[Text], batch_size: int = 32) -> list[Label]:
        """The label, labels or numbers of each text or pair.

        A text that is longer than those of fine-tuning is cut at its end, as it was there.
        Raises: UserError: the model is of another task, or not of such texts.
        """
        task: Any = self._require("classification", "classify texts")
        count = len(task.texts)
        examples = []
        for place, parts in enumerate(arguments.texts_or_pairs(texts)):
            if count and len(parts) != count:
                wanted = "pairs of texts" if count == 2 else "single texts"
                given = parts if len(parts) == 2 else parts[0]
                raise UserError(
                    f"this model was fine-tuned on {wanted}; {given!r} is none (texts[{place}])"
                )
            examples.append(TextExample("", parts, None, ""))
        features, outputs = self._run(task, examples, batch_size)
        labels = task.decode(examples, features, outputs)
        if task.kind == "numbers":
            return [Label(label, {}) for label in labels]
        shares = task.probabilities(outputs).tolist()
        return [
            Label(label, dict(zip(task.labels, row, strict=True)))
            for label, row in zip(labels, shares, strict=True)
        ]

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        n_best: int = 1,
        batch_size: int = 32,
        threshold: float | None = None,
    ) -> Any:
        """The answer to a question in a context, which may be of any length.

        Args:
          question: one, or a list of them. context: one, of all questions, or one for each.
          n_best: how many of the best answers to list.
          threshold: "" is answered where its score is above the best answer's by more than this;
            default: the model's own. Hugging Face folders that others wrote have none, and do not
            say whether there may be no answer: without a threshold there always is one.
        Returns: an `Answer`, of a list a list. Its probability is among the best ones of all
          windows (20, as in SQuAD's n-best lists).
        """
        task: Any = self._require("answering", "answer questions")
        arguments.at_least(n_best, "n_best")
        alone = isinstance(question, str)
        questions = arguments.list_of_texts(
            [question] if alone else question, "questions", "questions"
        )
        if isinstance(context, str):
            context = [context] * len(questions)
        contexts = arguments.list_of_texts(context, "contexts", "contexts")
        if len(questions) != len(contexts):
            raise UserError(f"{len(questions)} questions and {len(contexts)} contexts are given")
        task = dataclasses.replace(task, n_best=max(n_best, task.n_best))
        if threshold is not None:
            arguments.a_number(threshold, "threshold")
            task = dataclasses.replace(task, unanswerable=True, threshold=threshold)
        examples = [
            squad_read.Question(str(place), *pair, where=f"questions[{place}]")
            for place, pair in enumerate(zip(questions, contexts, strict=True))
        ]
        answers = []
        for found in task.decode(examples, *self._run(task, examples, batch_size)):
            best = [(text, share) for text, share, *_ in found.n_best]
            start, end = (found.start, found.end) if found.text else (-1, -1)
            share = dict(best).get(found.text, 0.0)
            answers.append(Answer(found.text, share, start, end, tuple(best[:n_best])))
        return answers[0] if alone else answers

    def tag(self, texts: Sequence[str | Sequence[str]], batch_size: int = 32) -> list[Tagged]:
        """The entities of each text, which may be of any length.

        texts: each a string, whose words stand between white space, or a list of words. A model of
        running text (KLUE) tags characters. Of tags without B- and I-, as models from elsewhere may
        have them, neighbours that are alike are one entity.
        """
        task: Any = self._require("tagging", "tag texts")
        split = [
            _words(text, f"texts[{place}]", task.joined)
            for place, text in enumerate(
                arguments.as_list(texts, of="texts (or of lists of words)")
            )
        ]
        examples = [
            conll.Sentence(str(place), tuple(text[start:end] for start, end in spans))
            for place, (text, spans) in enumerate(split)
        ]
        results = []
        tagged = task.decode(examples, *self._run(task, examples, batch_size))
        for (text, spans), example, tags in zip(split, examples, tagged, strict=True):
            entities = []
            for kind, first, end in conll.chunks(conll.as_inside(tags, task.labels)):
                place = spans[first][0], spans[end - 1][1]
                entities.append(Entity(kind, text[slice(*place)], *place))
            results.append(Tagged(text, example.words, tags, tuple(entities)))
        return results

    def choose(
        self,
        prompt: str | Sequence[str],
        endings: Sequence[str] | Sequence[Sequence[str]],
        batch_size: int = 8,
    ) -> Any:
        """Which of several endings follows a prompt.

        Args:
          prompt: one, or a list of them. endings: those of the prompt, or a list for each.
          batch_size: prompts at a time.
        Returns: a `Choice`, of a list a list.
        Raises: UserError: the model is of another task, or there are not endings for each prompt.
        """
        task = self._require("choice", "choose endings")
        alone = isinstance(prompt, str)
        prompts = arguments.list_of_texts([prompt] if alone else prompt, "prompts", "prompts")
        several = [endings] if alone else arguments.as_list(endings, "endings", "lists of endings")
        if len(prompts) != len(several):
            raise UserError(f"{len(prompts)} prompts and {len(several)} lists of endings are given")
        several = [
            _endings(ends, "endings" if alone else f"endings[{place}]")
            for place, ends in enumerate(several)
        ]
        examples = [
            choice.Question(str(place), text, tuple(ends))
            for place, (text, ends) in enumerate(zip(prompts, several, strict=True))
        ]
        choices: dict[str, Choice] = {}
        for count in {len(example.endings) for example in examples}:  # a batch has as many in all
            alike = [example for example in examples if len(example.endings) == count]
            _, outputs = self._run(task, alike, batch_size)
            for example, output in zip(alike, outputs, strict=True):
                shares = np.asarray(jax.nn.softmax(output["logits"]))
                choices[example.id] = Choice(int(np.argmax(shares)), tuple(shares.tolist()))
        results = [choices[example.id] for example in examples]
        return results[0] if alone else results

    def _require(self, family: str, what: str) -> Task:
        """The task, which must be of a family."""
        if self.task is None:
            raise UserError(f"this model was not fine-tuned to {what}; see bert_jax.finetune")
        if tasks.family(self.task) != family:
            raise UserError(
                f"this model was not fine-tuned to {what}, but on {self.task.name} "
                f"({tasks.family(self.task)})"
            )
        return self.task

    def _say_of_segments(self, sequences: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Says once, on stderr, that a model of one segment type has both texts of pairs in it."""
        if self.backbone.segment_types == 1 and not self._said:
            self._said = any(arrays["segments"].any() for arrays in sequences)
            if self._said:
                print(f"the model has one segment type: {ONE_SEGMENT}", file=sys.stderr)

    def _run(
        self, task: Task, examples: Sequence[Any], batch_size: int
    ) -> tuple[list[Feature], list[dict[str, np.ndarray]]]:
        """Features of the examples, and what the objective predicts of each."""
        arguments.at_least(batch_size, "batch_size")
        features = task.featurise(examples, self.tokenizer, self._longest, train=False)
        self._say_of_segments(feature.arrays for feature in features)
        outputs = run_features(
            lambda batch: self._predict(self.params, batch), features, self.tokenizer.pad_id,
            ladder(self._longest), *batch_limits(len(features), batch_size),
        )  # fmt: skip
        return features, outputs


def side_by_side(function: Callable[..., R]) -> Callable[..., R]:
    """A jitted function on one device, two calls of which run beside one another on a CPU, too.

    There, the calls of a thread run one after the other, and cores rest where a program uses one.
    So two threads call it in turns; `sharding.ahead` has the next call under way.
    """
    threads = itertools.cycle([ThreadPoolExecutor(1), ThreadPoolExecutor(1)])
    return lambda *args: next(threads).submit(function, *args).result()


def batch_limits(count: int, batch_size: int) -> tuple[int, int]:
    """The most rows and the most tokens of a batch of `count` sequences.

    Rows are a power of two where there are few. Tokens are those of `batch_size` rows of 64: so
    what is longer comes in fewer rows, instead of with shorter ones that are filled up to it.
    """
    rows = max(min(batch_size, 1 << max(count - 1, 0).bit_length()), 1)
    return rows, 64 * batch_size


def _endings(given: Any, what: str) -> list[str]:
    """The endings of a prompt; what: their name in errors."""
    found = [] if isinstance(given, str) else arguments.list_of_texts(given, what, "endings")
    if not found:
        raise UserError(f"{what}: a list of one or more endings is expected for each prompt")
    return found


def _words(text: str | Sequence[str], what: str, joined: bool) -> tuple[str, list[tuple[int, int]]]:
    """A running text, and where its words (with `joined`, its characters) are.

    what: its name in errors.
    """
    if isinstance(text, str):
        arguments.a_text(text, what)
        spans = [match.span() for match in re.finditer(r"\S+", text)]
    else:
        text = arguments.list_of_texts(text, what, "words")
        ends = np.cumsum([len(word) + 1 for word in text], dtype=int) - 1
        spans = [(int(end) - len(word), int(end)) for word, end in zip(text, ends, strict=True)]
        text = " ".join(text)
    return text, [(place, place + 1) for place in range(len(text))] if joined else spans
