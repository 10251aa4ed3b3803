"""Using a trained model: `bert_jax.load(RUN)` -> fill_mask, embed, hidden_states."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.checkpoint import load_params
from bert_jax.config import encoder_config
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.models.encoder import Encoder, EncoderConfig, padding_mask
from bert_jax.models.heads import MlmHead
from bert_jax.models.layers import apply

Text = str | tuple[str, str]  # a text, or a pair of texts


@dataclasses.dataclass(frozen=True)
class Guess:
    """A token proposed for a [MASK], with its probability."""

    token: str
    probability: float


def load(path: str | Path, dtype: str = "auto") -> "Model":
    """Opens the work directory of a run, with the parameters of its newest checkpoint.

    Raises:
      UserError: the folder is not that of a run, or has no checkpoint yet.
    """
    path = Path(path)
    if not (path / "config.json").exists():
        raise UserError(f"{path} is not the work directory of a run (it has no config.json)")
    config = json.loads((path / "config.json").read_text())
    tokenizer = load_tokenizer(path / "tokenizer")
    encoder = encoder_config(config["model"], tokenizer.vocab_size, dtype)
    return Model(encoder, load_params(path), tokenizer)


class Model:
    """A trained encoder with its tokenizer; every method takes any number of texts."""

    def __init__(self, encoder: EncoderConfig, params: Any, tokenizer: Tokenizer):
        """params: the tree of a checkpoint; only the parts a method uses need be there."""
        self.encoder, self.params, self.tokenizer = encoder, params, tokenizer

        @jax.jit
        def states(params: Any, tokens: jax.Array, segments: jax.Array, lengths: jax.Array):
            mask = padding_mask(lengths, tokens.shape[1])
            return apply(
                Encoder(encoder), params["encoder"], tokens, segments, mask, every_layer=True
            )

        @jax.jit
        def fill(params: Any, hidden: jax.Array) -> jax.Array:
            table = params["encoder"]["embeddings"]["token"]
            return jax.nn.softmax(apply(MlmHead(encoder), params["mlm_head"], hidden, table))

        self._states, self._fill = states, fill

    def hidden_states(
        self, texts: Sequence[Text], max_length: int | None = None, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Every layer's output, the embeddings first, for each text or pair.

        Args:
          max_length: tokens kept, [CLS] and [SEP] included; default: what the model can take.
            The longer text of a pair is cut first.
        Returns: float32 [L + 1, S, D] for each text, S its own length with [CLS] and [SEP].
        """
        encoded = [self._encode(text, max_length) for text in _as_list(texts)]
        results: list[np.ndarray | None] = [None] * len(encoded)
        for rows, hidden in self._run(encoded, batch_size):
            for row, index in enumerate(rows):
                results[index] = hidden[:, row, : len(encoded[index][0])].astype(np.float32)
        return [result for result in results if result is not None]

    def embed(
        self, texts: Sequence[Text], pooling: str = "mean", max_length: int | None = None
    ) -> np.ndarray:
        """One vector a text from the last layer: float32 [texts, D].

        pooling: "mean" over the text's tokens ([CLS] and [SEP] included), or "cls".
        """
        if pooling not in ("mean", "cls"):
            raise UserError(f"pooling {pooling!r} is unknown; known: mean, cls")
        last = [states[-1] for states in self.hidden_states(texts, max_length)]
        vectors = [hidden.mean(axis=0) if pooling == "mean" else hidden[0] for hidden in last]
        return np.stack(vectors) if vectors else np.zeros((0, self.encoder.width), np.float32)

    def fill_mask(self, text: Text, top: int = 5) -> list[list[Guess]]:
        """For each [MASK] in the text (or pair), the `top` most probable tokens, best first.

        Raises: UserError when there is no [MASK] within the length the model can take.
        """
        if "mlm_head" not in self.params:
            raise UserError("this model has no masked-LM head")
        encoded = self._encode(text, None)
        places = np.flatnonzero(encoded[0] == self.tokenizer.mask_id)
        if not len(places):
            mask = self.tokenizer.tokens[self.tokenizer.mask_id]
            raise UserError(f"there is no {mask} in the first {len(encoded[0])} tokens of the text")
        (_, hidden), *_ = self._run([encoded], 1)
        probabilities = np.asarray(self._fill(self.params, hidden[-1][:, places]))[0]
        best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        return [
            [Guess(self.tokenizer.tokens[i], float(row[i])) for i in guesses]
            for row, guesses in zip(probabilities, best, strict=True)
        ]

    def _encode(self, text: Text, max_length: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and segments int32[S] of [CLS] A [SEP] or [CLS] A [SEP] B [SEP]."""
        longest = self.encoder.max_positions
        limit = longest if max_length is None else max_length
        parts = (text,) if isinstance(text, str) else text
        if not len(parts) < limit <= longest:
            raise UserError(f"max_length={limit} must lie between {len(parts) + 1} and {longest}")
        pieces = [self.tokenizer.encode(part, special=True) for part in parts]
        while sum(map(len, pieces)) > limit - 1 - len(parts):
            max(reversed(pieces), key=len).pop()  # the second where both are as long
        tokens, segments = [self.tokenizer.cls_id], [0]
        for segment, piece in enumerate(pieces):
            tokens += [*piece, self.tokenizer.sep_id]
            segments += [segment] * (len(piece) + 1)
        return np.array(tokens, np.int32), np.array(segments, np.int32)

    def _run(self, encoded: list[tuple[np.ndarray, np.ndarray]], batch_size: int):
        """Yields (indices, hidden [L + 1, B, S, D]) over batches of texts of similar length.

        Lengths are rounded up to 16, 32, 64, ... so that few programs are compiled.
        """
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index][0]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            longest = max(len(encoded[index][0]) for index in rows)
            width = min(max(16, 1 << (longest - 1).bit_length()), self.encoder.max_positions)
            size = min(batch_size, 1 << (len(rows) - 1).bit_length())
            tokens = np.full((size, width), self.tokenizer.pad_id, np.int32)
            segments = np.zeros((size, width), np.int32)
            lengths = np.ones(size, np.int32)
            for row, index in enumerate(rows):
                lengths[row] = len(encoded[index][0])
                tokens[row, : lengths[row]], segments[row, : lengths[row]] = encoded[index]
            hidden = self._states(self.params, tokens, segments, lengths)
            yield rows, np.asarray(hidden)


def _as_list(texts: Sequence[Text]) -> Sequence[Text]:
    if isinstance(texts, str):
        raise UserError("a list of texts (or of pairs) is expected, not one string")
    return texts
