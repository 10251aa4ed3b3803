"""Memory: what fits is told before it is tried, and what is freed on CPU is kept.

The C allocator's manners decide a tenth to a third of a step on CPU.
"""

import ctypes
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax.common.errors import UserError

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


def check_fits(needed: int, what: str, advice: str, devices: int | None = None) -> None:
    """Checks that a device of this process has as much memory as `needed`; CPUs share theirs.

    What cannot fit is refused: tried, it may take the machine's memory until the system ends the
    process, or make it wait for ever.

    Args:
      needed: bytes on one device, at the least.
      what: needs them. advice: what to do about it.
      devices: of this process, that need so much each; None: all.
    Raises: UserError: there are not so many. Where their number is not known, nothing happens.
    """
    device = jax.local_devices()[0]
    if on_cpu := device.platform == "cpu":
        needed, there = needed * (devices or jax.local_device_count()), host_bytes()
    else:
        there = (device.memory_stats() or {}).get("bytes_limit")
    if there is not None and needed > there:
        place = "this machine" if on_cpu else f"a {device.device_kind}"
        raise UserError(
            f"{what} needs at least {_readable(needed)} of memory, and {place} has "
            f"{_readable(there)}: {advice}"
        )


def tree_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of arrays or `jax.ShapeDtypeStruct`, by their shardings."""

    def one(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


class Checked:
    """A jitted function that is checked for its memory when it was compiled, before it runs."""

    def __init__(
        self,
        function: Callable[..., Any],
        what: str,
        advice: str = "lower batch_size or the length",
    ):
        """what: it is, for the message. advice: what to do where it does not fit."""
        self._function, self._what, self._advice = function, what, advice
        self._known: set[Any] = set()

    def __call__(self, *args: Any) -> Any:
        """Calls it. Raises: UserError: there is too little memory for arguments of such shapes."""
        leaves, structure = jax.tree.flatten(args[1:])  # the first is the same tree in every call
        shapes = structure, tuple(getattr(leaf, "shape", leaf) for leaf in leaves)
        if shapes not in self._known:
            # JAX keeps what is compiled here, and takes it for the call.
            compiled = self.lower(*args).compile()
            if (found := compiled.memory_analysis()) is not None:
                kept = found.output_size_in_bytes - found.alias_size_in_bytes
                check_fits(
                    found.argument_size_in_bytes + kept + found.temp_size_in_bytes,
                    self._what,
                    self._advice,
                    len(compiled.runtime_executable().local_devices()),
                )
            self._known.add(shapes)
        return self._function(*args)

    def __getattr__(self, name: str) -> Any:
        """What else a jitted function has, as `lower`."""
        return getattr(self._function, name)


def host_bytes() -> int | None:
    """Memory that this process may use: the machine's, or what its control group is allowed."""
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    groups = Path("/sys/fs/cgroup")
    own = Path("/proc/self/cgroup")
    names = [line.split(":")[-1] for line in own.read_text().split()] if own.exists() else []
    folders = [groups, groups / "memory"]  # version 2, version 1
    folders += [folder / name.lstrip("/") for folder in folders for name in names]
    for folder in folders:
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            limits += [int(text)] if text.isdecimal() else []
    return min(limits, default=None)


def _readable(count: int) -> str:
    value = count / 1e6
    for unit in ("MB", "GB"):
        if value < 1000:
            return f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
