"""Large arrays that all processes of a run's input share: one makes each, all map it into memory.

NumPy only, as `instances`.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bert_jax.common.locks import locked


class SharedArrays:
    """Arrays by name, each a function of its name alone, in a temporary folder of the run."""

    def __init__(self, folder: Path | None):
        """folder: that of all processes; None: the arrays are of this process alone."""
        self.folder = folder

    def get(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the array, read-only where it is shared.

        The first process that asks makes it, and the others wait for that. Where the folder has no
        room, or is gone, each makes its own.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npy"
        try:
            while not path.exists():
                with locked(path.with_suffix(".lock")) as mine:
                    if mine and not path.exists():
                        _write(path, make())
                if not mine:
                    time.sleep(0.02)
            # A plain view of the memory map: slices of np.memmap itself are slow to make.
            return np.load(path, mmap_mode="r").view(np.ndarray)
        except OSError:
            return make()

    def drop(self, name: str) -> None:
        """Removes an array from the folder; who has it keeps it."""
        if self.folder is not None:
            (self.folder / f"{name}.npy").unlink(missing_ok=True)


def _write(path: Path, array: np.ndarray) -> None:
    """Writes the array under a name of this process, and moves it to `path`.

    Not into a memory map: on a full disk that would end the process.
    """
    part = path.with_suffix(f".{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.save(file, array)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
