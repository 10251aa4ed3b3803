"""A trained model as one thing: what it holds, how it is saved, merged and given new tokens."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from flax.traverse_util import unflatten_dict

from bert_jax import tasks
from bert_jax.common import run_format
from bert_jax.common.errors import UserError
from bert_jax.common.files import folder_written_whole, read_text, write_json
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.families import DEFAULT, get_family
from bert_jax.models.body import Body
from bert_jax.training.checkpoint import Checkpoints, check_fit

HUB = "one of the Hugging Face hub is downloaded with hf download NAME --local-dir FOLDER"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Everything needed to use a model or to go on training it.

    model: the `model` section of a config. params: tree of float32 numpy arrays with `encoder` and
    whichever of pooler, mlm_head, nsp_head, classifier, span_head, tag_head, choice_head there are.
    task: of a fine-tuned model, the row of its task (`tasks.to_dict`). notes: what a person should
    be told about how it was read or changed (arrays not used, rows cut or added), a line each.
    tuning: how it was fine-tuned, as far as is known: features, bilstm, bilstm_width, max_length.
    """

    model: Mapping[str, Any]
    params: Mapping[str, Any]
    tokenizer: Tokenizer
    task: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    tuning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    family: str = DEFAULT

    def __post_init__(self) -> None:
        """Has the tokenizer join texts as the family does."""
        if self.tokenizer is not None:
            self.tokenizer.template = get_family(self.family).template(self.tokenizer.vocabulary)

    def body(self, dtype: str) -> Body:
        """The encoder, computing in `dtype`, with what fine-tuning put on it."""
        backbone = get_family(self.family).backbone(self.model, self.tokenizer.vocab_size, dtype)
        return Body(backbone, **{n: v for n, v in self.tuning.items() if n != "max_length"})

    @property
    def max_length(self) -> int:
        """Tokens of a sequence in fine-tuning; where that is unknown, what the model can take."""
        return self.tuning.get("max_length", self.model["max_positions"])


def check_params(model: Pretrained, where: Path) -> None:
    """Checks the parameters of a model that was read: their shapes, and that all are numbers.

    Raises: UserError, naming `where` and the array: one is not as config.json and task.json say, or
      holds NaN or infinities.
    """
    body = model.body("float32")
    known: dict[str, int] = {}
    if not body.features and not body.bilstm:  # else heads are of other widths
        parts = {"pooler": 0, "mlm_head": 0, "nsp_head": 2}
        known = {part: classes for part, classes in parts.items() if part in model.params}
        if model.task is not None:
            known |= tasks.heads(tasks.from_dict(model.task))
    if names := get_family(model.family).names:
        shapes = {name: array.shape for name, array in names.arrays(body.backbone, known).items()}
        wanted = unflatten_dict(
            {n: jax.ShapeDtypeStruct(shape, np.float32) for n, shape in shapes.items()}, sep="/"
        )
        check_fit({part: model.params.get(part, {}) for part in wanted}, wanted, where)
    for path, leaf in jax.tree.leaves_with_path(model.params):
        if not np.isfinite(np.sum(leaf)) and not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{where}: {name} holds NaN or infinities: the model is of no use")


def save_model(folder: str | Path, pretrained: Pretrained) -> None:
    """Writes a model as a work directory, with a checkpoint at step 0; whole or not at all.

    Raises: UserError: the folder exists and is not empty.
    """
    with new_folder(folder) as made:
        pretrained.tokenizer.save(made / "tokenizer")
        config = {
            "format": run_format.FORMAT,
            "family": pretrained.family,
            "model": dict(pretrained.model),
        }
        config |= pretrained.tuning
        write_json(made / "config.json", config)
        if pretrained.task is not None:
            write_json(made / "task.json", pretrained.task)
        checkpoints = Checkpoints(made / "checkpoints")
        checkpoints.save(0, {"params": jax.tree.map(jax.numpy.asarray, dict(pretrained.params))})
        checkpoints.wait()
        checkpoints.close()


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` in the end if nothing goes wrong.

    Raises: UserError: `path` is a file, or a folder that is not empty.
    """
    path = Path(path).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty folder; choose another")
    with folder_written_whole(path) as made:
        yield made


def merge(
    fresh: Mapping[str, Any], given: Mapping[str, Any], where: str | Path = "the given weights"
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Given parts of a parameter tree in the place of the fresh ones.

    Args:
      fresh: the tree that is wanted; only names and shapes are looked at, so its leaves may be
        `jax.ShapeDtypeStruct`. given: the tree of a `Pretrained`. where: it comes from, for errors.
    Returns: the tree; the names of the top-level parts that are still fresh; and of the given parts
      that have no place in it.
    Raises: UserError: the encoder is missing, or names or shapes inside a part differ; listed.
    """
    shared = {name: given.get(name, {}) for name in fresh if name in given or name == "encoder"}
    check_fit(shared, {name: fresh[name] for name in shared}, where)
    new = [name for name in fresh if name not in shared]
    merged = jax.tree.map(lambda leaf: leaf, {**fresh, **shared})  # dictionaries of its own
    return merged, new, [name for name in given if name not in fresh]


def read_tokens(path: str | Path) -> list[str]:
    """The new tokens in a file, one a line.

    Raises: UserError with file and line: an empty line, a space inside, or a token given twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the file of new tokens {path} does not exist")
    tokens: dict[str, int] = {}
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        token = line.strip()
        if not token or re.search(r"\s", token):
            what = f"{token!r} has a space inside" if token else "the line is empty"
            raise UserError(f"{path}:{number}: {what}; write one token a line")
        if token in tokens:
            raise UserError(f"{path}:{number}: {token!r} is in line {tokens[token]} already")
        tokens[token] = number
    if not tokens:
        raise UserError(f"{path} has no tokens")
    return list(tokens)


def add_tokens(pretrained: Pretrained, tokens: Sequence[str], seed: int = 0) -> Pretrained:
    """The model with `tokens` at the end of its vocabulary, each matched as a whole word in a text.

    Their embeddings are as those of a fresh model, a truncated normal; the bias of the masked-LM
    head grows by zeros. Old ids and rows stay as they are. Tokens that the vocabulary has already
    (as the tokenizer normalises them, so that of Zika and zika an uncased one needs only one) are
    left out, and named in the notes.
    Raises: UserError: the vocabulary holds a token twice.
    """
    old = pretrained.tokenizer
    backend = tokenizers.Tokenizer.from_str(old.text)
    if backend.get_vocab_size(with_added_tokens=True) != old.vocab_size:
        raise UserError(
            "the vocabulary holds a token twice, so the ids of new ones would be those of old "
            "ones; rename one of the two"
        )
    unigram = old.kind == "unigram"

    def forms(token: str) -> set[str]:
        plain = backend.normalizer
        found = {token, plain.normalize_str(token).strip()} if plain else {token}
        return found | {f"▁{form}" for form in found} if unigram else found

    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    have = set(old.tokens).union(*map(forms, added))
    new: list[str] = []
    known: list[str] = []
    for token in tokens:
        (known if forms(token) & have else new).append(token)
        have |= forms(token)
    # lstrip: the space before a word is the ▁ of a unigram's pieces, and none is left over.
    options = {"single_word": True, "normalized": True, "lstrip": unigram}
    backend.add_tokens([tokenizers.AddedToken(token, **options) for token in new])
    tokenizer = Tokenizer(backend)
    count = tokenizer.vocab_size - old.vocab_size
    table = np.asarray(pretrained.params["encoder"]["embeddings"]["token"])
    init = jax.nn.initializers.truncated_normal(pretrained.model["init_stddev"])
    rows = np.asarray(init(jax.random.key(seed), (count, table.shape[1])), table.dtype)
    encoder = dict(pretrained.params["encoder"])
    encoder["embeddings"] = encoder["embeddings"] | {"token": np.concatenate([table, rows])}
    params = {**pretrained.params, "encoder": encoder}
    if "mlm_head" in params:
        bias = np.pad(np.asarray(params["mlm_head"]["bias"]), (0, count))
        params["mlm_head"] = params["mlm_head"] | {"bias": bias}
    notes = [f"new tokens: {count}, with fresh embeddings (seed {seed})"]
    if known:
        notes.append(f"tokens that the vocabulary has already: {some(known)}")
    return dataclasses.replace(
        pretrained, params=params, tokenizer=tokenizer, notes=(*pretrained.notes, *notes)
    )


def some(names: Sequence[str]) -> str:
    """Names for a message: the first eight, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return "; ".join(names[:8]) + more
