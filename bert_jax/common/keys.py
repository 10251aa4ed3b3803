"""The random keys of a run: one for each purpose, so that no two purposes share their draws.

What is random on the host (the order of the data, the cuts of texts, the pairs) has its own
purposes in `data.draws`. Runs of format 1 had one root for all purposes, and go on with it.
"""

import enum
from typing import Any

import jax


class Purpose(enum.IntEnum):
    """What a key is for. The numbers are part of every run: never reuse one."""

    INIT = 1  # the parameters before the first step
    DROPOUT = 2  # folded with the step, then with the micro-batch, then with the place in the model
    CORRUPTION = 3  # folded with the pass and the index of an instance


# Dropout's places in a model beside the layers 0 .. L-1, and L for the embeddings.
HEAD = 1_000_000
BILSTM = 1_000_001


# The corruption of held-out text is the same for all runs of all formats, so that they compare: it
# comes from the bare key of seed 0, folded with pass 0, which no number of a purpose equals.
HELD_OUT_SEED = 0


def root(seed: Any, purpose: Purpose, format: int) -> jax.Array:
    """Gives the key that all draws of a purpose come from.

    seed: of the run, an integer or uint32[]. format: of the run, see `run_format`.
    """
    key = jax.random.key(seed)
    return key if format < 2 else jax.random.fold_in(key, purpose)
