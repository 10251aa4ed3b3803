"""Random decisions about text as pure functions of integer keys, the same on every machine.

NumPy's own generators are not used: their streams may change with its version, and they give
numbers in order only.
"""

import enum
from typing import Any

import numpy as np


class Purpose(enum.IntEnum):
    """What a random decision is for. The numbers are part of every run's data: never reuse one."""

    SHORT = 1  # is the target length of this document short?
    SHORT_LENGTH = 2  # then: how long
    A_END = 3  # how many sentences of the chunk make segment A
    RANDOM_NEXT = 4  # is segment B random?
    RANDOM_DOCUMENT = 5  # counter: the try
    RANDOM_SENTENCE = 6  # where segment B starts in the random document
    CUT_A = 7  # bit c of the words 0, 1, ...: does cut c of segment A take from the front?
    CUT_B = 8
    ORDER = 9  # sort key of a chunk in the shuffled order
    BLOCK_SHIFT = 10  # how far a document's blocks are shifted


_ALL_BITS = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def random_bits(*keys: Any) -> np.ndarray:
    """64 random bits as a pure function of integer keys.

    Every key in turn is folded in with one step of SplitMix64 (Steele, Lea, Flood 2014, "Fast
    splittable pseudorandom number generators", fig. 17).

    Args:
      keys: integers or integer arrays, broadcast together; put the scalars first, they are cheap.

    Returns:
      uint64 array of the broadcast shape, at least 1-dimensional.
    """
    bits = np.zeros(1, np.uint64)
    for key in keys:
        # Modulo 2^64, so that a negative or a huge seed is as good as any other. Arrays wrap
        # silently, which is meant; NumPy's scalars would warn.
        key = np.uint64(key & _ALL_BITS) if isinstance(key, int) else key
        bits = bits + (np.atleast_1d(key).astype(np.uint64) + np.uint64(1)) * _STEP
        bits ^= bits >> np.uint64(30)
        bits *= _MIX_1
        bits ^= bits >> np.uint64(27)
        bits *= _MIX_2
        bits ^= bits >> np.uint64(31)
    return bits


def uniform(*keys: Any) -> np.ndarray:
    """Uniform float64 in [0, 1) from the high 53 bits of `random_bits(*keys)`."""
    return (random_bits(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(draws: np.ndarray, bound: Any) -> np.ndarray:
    """int64 in [0, bound) from `uniform` draws; 0 where bound is 0. Bias below bound / 2^53."""
    return (draws * bound).astype(np.int64)
