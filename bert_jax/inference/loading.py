"""Using a trained model: `bert_jax.load(PATH)` -> fill_mask, embed, hidden_states.

A fine-tuned model also has what it was fine-tuned for: classify, answer, tag or choose.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import tasks
from bert_jax.common.errors import UserError
from bert_jax.data.buckets import Arrays, collate, eval_plan, ladder
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference import arguments
from bert_jax.inference.tasks import TaskModel, Text, batch_limits, side_by_side
from bert_jax.models.backbone import Backbone, Inputs
from bert_jax.models.heads import MlmHead
from bert_jax.models.layers import apply
from bert_jax.tasks.base import join_texts
from bert_jax.training.memory import Checked
from bert_jax.training.sharding import ahead
from bert_jax.weights.opening import open_model


@dataclasses.dataclass(frozen=True)
class Guess:
    """A token proposed for a [MASK], with its probability."""

    token: str
    probability: float


def load(path: str | Path, dtype: str = "auto") -> "Model":
    """Opens a model: the work directory of a run, a Hugging Face folder, or a TF1 release.

    What a folder does not say, or has without a use, is told on stderr.

    Raises:
      UserError: the folder is none of these, or has no checkpoint yet.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"the path of a model is expected, not {path!r:.80}")
    opened = open_model(path)
    for note in opened.notes:
        print(f"{path}: {note}", file=sys.stderr)
    body = opened.body(dtype)
    model = Model(body.backbone, opened.params, opened.tokenizer)
    if opened.task is not None:
        model.set_task(tasks.from_dict(opened.task), body, opened.max_length)
    return model


class Model(TaskModel):
    """A trained model with its tokenizer."""

    def __init__(self, backbone: Backbone, params: Any, tokenizer: Tokenizer):
        """params: the tree of a checkpoint; only the parts a method uses need be there."""
        super().__init__(backbone, params, tokenizer)

        @functools.partial(jax.jit, static_argnames="layers")
        def states(params: Any, batch: Mapping[str, jax.Array], layers: tuple[int, ...]):
            every = backbone.hidden(params["encoder"], Inputs.of(batch), every_layer=True)
            return jnp.stack([every[layer] for layer in layers], axis=1)

        @jax.jit
        def fill(params: Any, hidden: jax.Array) -> jax.Array:
            table = backbone.table(params["encoder"])
            return jax.nn.softmax(apply(MlmHead(backbone.head), params["mlm_head"], hidden, table))

        self._states, self._fill = side_by_side(Checked(states, "a batch")), fill

    def hidden_states(
        self, texts: Sequence[Text], max_length: int | None = None, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Every layer's output, the embeddings first, for each text or pair.

        Args:
          max_length: tokens kept, [CLS] and [SEP] included; default: what the model can take.
            The longer text of a pair is cut first.
        Returns: float32 [L + 1, S, D] for each text, S its own length with [CLS] and [SEP].
        Raises: UserError: one string as `texts`, something in it that is neither a text nor a pair,
          too large a `max_length`.
        """
        encoded = self._encode(texts, max_length)
        every = range(self.backbone.layers + 1)
        found = dict(self.activations(encoded, every, batch_size))
        return [found[index] for index in range(len(encoded))]

    def embed(
        self, texts: Sequence[Text], pooling: str = "mean", max_length: int | None = None
    ) -> np.ndarray:
        """One vector a text from the last layer: float32 [texts, D].

        pooling: "mean" over the text's tokens ([CLS] and [SEP] included), or "cls": that of [CLS];
          of a left-to-right model the last, which alone has seen the whole text.
        Raises: UserError: another pooling, one string as `texts`, or too large a `max_length`.
        """
        if pooling not in ("mean", "cls"):
            raise UserError(f"pooling {pooling!r} is unknown; known: mean, cls")
        encoded = self._encode(texts, max_length)
        place = -1 if self.backbone.pool == "last" else 0
        vectors = np.zeros((len(encoded), self.backbone.width), np.float32)
        for index, hidden in self.activations(encoded, [-1]):
            vectors[index] = hidden[0].mean(axis=0) if pooling == "mean" else hidden[0, place]
        return vectors

    @property
    def fills_masks(self) -> bool:
        """Whether it was trained to."""
        return "mlm_head" in self.params and self.backbone.pool == "first"

    def fill_mask(
        self, text: Text | Sequence[Text], top: int = 5, batch_size: int = 32
    ) -> list[Any]:
        """Finds the `top` most probable tokens for each [MASK] of a text, best first.

        Args:
          text: a text, a pair of texts as a tuple, or a list of such.
          top: how many; those that there are where it is more.
          batch_size: texts at a time.
        Returns: a list of `Guess` for each [MASK]; of a list of texts, such a list for each text.
        Raises: UserError: a text has no [MASK] within the length that the model can take; the model
          was not trained to fill them.
        """
        if "mlm_head" not in self.params:
            raise UserError("this model has no masked-LM head")
        if not self.fills_masks:
            raise UserError("this model reads from left to right: it was not trained to fill masks")
        arguments.at_least(top, "top")
        alone = isinstance(text, str | tuple)
        texts: Any = [text] if alone else text
        encoded = self._encode(texts, None)
        places = [np.flatnonzero(one["tokens"] == self.tokenizer.mask_id) for one in encoded]
        for number, found in enumerate(places):
            if not len(found):
                mask = self.tokenizer.tokens[self.tokenizer.mask_id]
                length = len(encoded[number]["tokens"])
                which = "the text" if alone else f"texts[{number}]"
                raise UserError(f"there is no {mask} in the first {length} tokens of {which}")
        guesses: list[list[list[Guess]]] = [[] for _ in encoded]
        for number, hidden in self.activations(encoded, [-1], batch_size):
            shares = np.asarray(self._fill(self.params, hidden[:, places[number]]))[0]
            best = np.argsort(-shares, axis=-1, kind="stable")[:, :top]
            guesses[number] = [
                [Guess(self.tokenizer.tokens[i], float(row[i])) for i in chosen]
                for row, chosen in zip(shares, best, strict=True)
            ]
        return guesses[0] if alone else guesses

    def activations(
        self, sequences: Sequence[Arrays], layers: Sequence[int], batch_size: int = 32
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(index, float32 [K, S, D]) of each sequence, in no particular order.

        Args:
          sequences: "tokens" and "segments" int32[S] of each.
          layers: K of the hidden states 0 (the embeddings) .. L; from the last backwards: -1 ..
        Raises: UserError: there is no such layer.
        """
        self.check_layers(layers)
        arguments.at_least(batch_size, "batch_size")
        pad, widths = self.tokenizer.pad_id, ladder(self.backbone.max_positions)
        lengths = [len(one["tokens"]) for one in sequences]
        plan = eval_plan(lengths, widths, *batch_limits(len(lengths), batch_size))
        batches = (
            (indices, collate([sequences[i] for i in indices], rows, pad, widths))
            for indices, rows in plan
        )
        work = ((some, self._states(self.params, batch, tuple(layers))) for some, batch in batches)
        for indices, states in ahead(work):
            hidden = np.asarray(states)
            for row, index in enumerate(indices):
                yield int(index), hidden[row, :, : lengths[index]].astype(np.float32)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises UserError: one of the hidden states that are asked for is not there."""
        last = self.backbone.layers
        for layer in layers:
            if not -last - 1 <= arguments.whole(layer, "a layer") <= last:
                raise UserError(
                    f"there is no layer {layer}: the model has 0 (embeddings) to {last}, or -1 "
                    f"back to {-last - 1}"
                )

    def _encode(self, texts: Sequence[Text], max_length: int | None) -> list[dict[str, np.ndarray]]:
        """Tokens and segments int32[S] of each: [CLS] A [SEP] or [CLS] A [SEP] B [SEP]."""
        longest = self.backbone.max_positions
        limit = longest if max_length is None else arguments.whole(max_length, "max_length")
        parts = arguments.texts_or_pairs(texts)
        for some in parts:
            if not len(some) < limit <= longest:
                least = len(some) + 1
                raise UserError(f"max_length={limit} must lie between {least} and {longest}")
        pieces = iter(self.tokenizer.encode_batch([t for some in parts for t in some], True))
        made = [join_texts([next(pieces) for _ in some], self.tokenizer, limit) for some in parts]
        self._say_of_segments(made)
        return made
