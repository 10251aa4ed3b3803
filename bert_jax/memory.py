"""The C allocator's manners, which decide a tenth to a third of a step on CPU."""

import ctypes
import sys

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


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
    mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
