"""Questions about passages, read from SQuAD's JSON or from a TFDS set of the same content."""

import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError
from bert_jax.common.files import parse_json
from bert_jax.data.opened import read_lines

# Where a question stands, the title of its article, its passage, and the question's own node.
_Row = tuple[str, str, str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a passage.

    answers: the gold answers, (text, first character); in training the first one is learnt.
    impossible: the passage holds no answer. group: the article's title.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    impossible: bool = False
    group: str = ""
    where: str = ""


def load_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises: UserError: as `opened.read_lines` and `files.parse_json`.
    """
    return parse_json("".join(read_lines(path)), str(path))


def read_json(path: Path) -> Iterator[_Row]:
    """The questions of a file as released: data -> paragraphs -> qas.

    Raises: UserError: not UTF-8, not JSON, not of this form.
    """
    content = load_json(path)
    for number, article in enumerate(_field(content, "data", list, str(path))):
        place = f"{path}: data[{number}]"
        paragraphs = _field(article, "paragraphs", list, place)
        title = article.get("title") or f"article {number}"
        for at, paragraph in enumerate(paragraphs):
            inner = f"{place}.paragraphs[{at}]"
            context = _field(paragraph, "context", str, inner)
            for k, node in enumerate(_field(paragraph, "qas", list, inner)):
                if not isinstance(node, dict):
                    raise UserError(f"{inner}.qas[{k}] is not an object; is this SQuAD's JSON?")
                yield f"{inner}.qas[{k}]", str(title), context, node


def from_tfds(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[_Row]:
    """The questions of a TFDS set such as squad/v1.1, rows as `tasks.rows.read_tfds` gives them.

    Raises: UserError: it has other features.
    """
    for where, row in rows:
        answers = _field(row, "answers", dict, where)
        texts, starts = (_field(answers, name, list, where) for name in ("text", "answer_start"))
        pairs = zip(texts, starts, strict=True)
        nodes = [{"text": text, "answer_start": start} for text, start in pairs]
        context = _field(row, "context", str, where)
        yield where, str(row.get("title", "")), context, {**row, "answers": nodes}


def questions(rows: Iterable[_Row], name: str, split: str, unanswerable: bool) -> list[Question]:
    """Checked questions; what training cannot use is left out, corrected or counted on stderr.

    Only "train" needs answers that are in the passage, only "test" needs none. The place of a
    training answer is where its text occurs nearest to `answer_start`, white space of any kind and
    length being the same.

    Raises: UserError: a field is missing, an id comes twice, a question of the wrong kind.
    """
    result: dict[str, Question] = {}
    notes: dict[str, list[str]] = {}  # what was done -> ids of the questions it was done to
    for place, title, context, node in rows:
        key = str(_field(node, "id", (str, int), place))
        text = _field(node, "question", str, place)
        where = f"{name}: question {key} of {title!r}"
        if key in result:
            raise UserError(f"{where} comes twice; give each question an id of its own")
        nodes = _field(node, "answers", list, place) if split != "test" or "answers" in node else []
        answers = [
            (_field(answer, "text", str, place), _field(answer, "answer_start", int, place))
            for answer in nodes
        ]
        impossible = bool(node.get("is_impossible", unanswerable and not answers))
        if split == "test":
            impossible = impossible and "is_impossible" in node
        elif impossible and not unanswerable:
            raise UserError(
                f"{where} is_impossible; such questions need task=squad2 (custom.unanswerable=True)"
            )
        elif not answers and not impossible:
            raise UserError(f"{where} has no answers, and is not marked is_impossible")
        if split == "train" and not (text.strip() and context.strip()):
            notes.setdefault("left out: the question or its context is empty", []).append(key)
            continue
        if split == "train" and not impossible:
            found = _locate(context, *answers[0])
            if found is None:
                notes.setdefault("left out: the answer is not in the context", []).append(key)
                continue
            if found[1] != answers[0][1]:
                notes.setdefault("corrected: answer_start was off", []).append(key)
            answers[0] = found
        result[key] = Question(key, text, context, tuple(answers), impossible, title, where)
    for what, keys in notes.items():
        print(f"{name}: questions {what}: {len(keys)} (first: {keys[0]})", file=sys.stderr)
    if not result:
        raise UserError(f"{name} has no question that can be used")
    return list(result.values())


def _locate(context: str, text: str, start: int) -> tuple[str, int] | None:
    """The answer as the context has it, and where; None where it does not."""
    if text.strip() and context.startswith(text, start) and start >= 0:
        return text, start
    words = text.split()
    places = re.finditer(r"\s+".join(map(re.escape, words)), context) if words else ()
    nearest = min(places, key=lambda match: abs(match.start() - start), default=None)
    return nearest and (nearest[0], nearest.start())


def _field(node: Any, name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """A field of a JSON object.

    Raises: UserError: it is missing or of another kind.
    """
    value = node.get(name) if isinstance(node, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = {list: "a list", str: "a text", int: "a whole number", dict: "an object"}
        wanted = kinds[kind[0] if isinstance(kind, tuple) else kind]
        raise UserError(f"{place} lacks {name!r} ({wanted}); is this SQuAD's JSON?")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{place}: {name!r} holds half a surrogate pair; repair it") from None
    return value
