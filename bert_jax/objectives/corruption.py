"""BERT's corruption of tokens, on the device: a pure function of (tokens, key), per instance.

Source: google-research/bert `create_pretraining_data.py`, `create_masked_lm_predictions`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which tokens are predicted and what the model sees in their place."""

    vocab_size: int  # V
    mask_id: int
    never: tuple[int, ...]  # ids that are never predicted: [CLS] and [SEP]
    rate: float = 0.15  # share of all tokens, [CLS] and [SEP] included, that is predicted
    max_predictions: int | None = None  # per sequence; None: what the rate gives
    mask_share: float = 0.8  # of the predicted tokens: shown as [MASK]
    random_share: float = 0.1  # ... as a uniformly drawn id of the whole vocabulary; rest: as is
    continuation: np.ndarray | None = None  # bool[V]: pieces inside a word; given: whole words

    def slots(self, sequence_length: int) -> int:
        """M, the number of prediction slots of a sequence of S tokens."""
        most = max(1, round(sequence_length * self.rate))
        return most if self.max_predictions is None else min(most, self.max_predictions)


def instance_keys(key: jax.Array, instance: jax.Array) -> jax.Array:
    """One key per instance id (pass, index), int[B, 2]: the same wherever the instance stands."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i[0]), i[1]))(instance)


def corrupt(
    masking: Masking, tokens: jax.Array, lengths: jax.Array, keys: jax.Array
) -> dict[str, jax.Array]:
    """Chooses and hides the tokens to predict.

    Args:
      tokens: int[B, S]. lengths: int[B], real tokens. keys: [B], one an instance.
    Returns:
      tokens int[B, S] as the model sees them; positions int[B, M], ascending; labels int[B, M];
      weights float32[B, M], 0 in unused slots (position 0, label 0).
    """
    return jax.vmap(lambda *row: _corrupt_one(masking, *row))(tokens, lengths, keys)


def _corrupt_one(
    masking: Masking, tokens: jax.Array, length: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
    size = tokens.shape[0]
    slots = masking.slots(size)
    order_key, kind_key, word_key = jax.random.split(key, 3)
    place = jnp.arange(size)
    candidate = place < length
    for special in masking.never:
        candidate &= tokens != special
    # As released: the share is of all tokens, rounded half to even, at least one. A table, because
    # in float32 a tie such as 0.3·95 = 28.5 would fall to the wrong side.
    share = np.array([max(1, round(n * masking.rate)) for n in range(size + 1)], np.int32)
    wanted = jnp.minimum(jnp.asarray(share)[length], slots)
    priority = jax.random.uniform(order_key, (size,))
    if masking.continuation is None:
        rank = jnp.argsort(jnp.argsort(jnp.where(candidate, priority, 2.0)))
        chosen = candidate & (rank < wanted)
    else:
        continues = jnp.asarray(masking.continuation)[tokens]
        chosen = _whole_words(candidate, continues, priority, wanted)
    positions = jnp.sort(jnp.where(chosen, place, size))[:slots]
    used = positions < size
    positions = jnp.where(used, positions, 0)
    labels = jnp.where(used, tokens[positions], 0)
    # Drawn for each piece on its own, also within a whole word (as released).
    kind = jax.random.uniform(kind_key, (slots,))
    random_word = jax.random.randint(word_key, (slots,), 0, masking.vocab_size, tokens.dtype)
    shown = jnp.where(kind < masking.mask_share + masking.random_share, random_word, labels)
    shown = jnp.where(kind < masking.mask_share, masking.mask_id, shown)
    seen = tokens.at[jnp.where(used, positions, size)].set(shown, mode="drop")
    return {
        "tokens": seen,
        "positions": positions,
        "labels": labels,
        "weights": used.astype(jnp.float32),
    }


def _whole_words(
    candidate: jax.Array, continues: jax.Array, priority: jax.Array, wanted: jax.Array
) -> jax.Array:
    """Takes words in order of priority; one that would overshoot is skipped. All [S] -> bool[S]."""
    size = candidate.shape[0]
    starts = candidate & (~continues | (jnp.cumsum(candidate) == 1))
    word = jnp.where(candidate, jnp.cumsum(starts) - 1, size - 1)  # a filler id for the rest
    pieces = jnp.zeros(size, jnp.int32).at[word].add(candidate.astype(jnp.int32))

    def take(total: jax.Array, word_size: jax.Array) -> tuple[jax.Array, jax.Array]:
        fits = (word_size > 0) & (total + word_size <= wanted)
        return total + jnp.where(fits, word_size, 0), fits

    order = jnp.argsort(priority)
    _, fits = jax.lax.scan(take, jnp.int32(0), pieces[order])
    taken = jnp.zeros(size, bool).at[order].set(fits)
    return candidate & taken[word]
