"""The C allocator's manners, which decide a tenth to a third of a step on CPU."""

import ctypes
import sys

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER, _LARGEST = -1, 2**31 - 1


def keep_freed_memory() -> None:
    """Has the process keep what it frees: call it once, before JAX computes anything.

    XLA on CPU allocates the temporaries of every step anew. By default glibc maps and unmaps them
    each time, and the kernel clears and faults in every page again. Elsewhere than glibc nothing
    happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # One arena: those of other threads are too small for temporaries, which would be mapped again.
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)


def compiler_options(platform: str) -> dict[str, int] | None:
    """Of `jax.jit`, for a program with many temporaries.

    On CPU XLA makes one block of them, which malloc maps anew in each call if it is above
    `_LARGEST`; so in blocks of 1 GiB (or of one array, where that is larger).
    """
    return {"xla_multiheap_size_constraint_per_heap": 2**30} if platform == "cpu" else None
