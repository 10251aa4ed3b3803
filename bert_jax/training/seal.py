"""Checks a checkpoint's files: that what was written can be read, and is still what was written.

The arrays have a fingerprint of their bits (`checkpoint`). The small files beside them, by which
they are found, get digests once the checkpoint was read back; then it counts as sealed.
"""

import glob
import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from bert_jax.common.errors import UserError
from bert_jax.common.files import UNFINISHED, write_json

_SEAL = "digests.json"
_PIECE = 1 << 20  # elements hashed at a time: temporaries stay small
_SCORE = Path("metrics") / "metrics"  # where Orbax puts what `scored` gives


_glob = epath.gpath.PosixGPath.glob


def _escaped_glob(self: Any, pattern: str) -> Iterator[Any]:
    folder = os.fspath(self)
    if "://" in folder:  # of a bucket
        return _glob(self, pattern)
    return map(self._new, sorted(glob.glob(os.path.join(glob.escape(folder), pattern))))


# That of etils takes the folder itself for a pattern, so Orbax finds nothing in one that is called
# "[old]", and leaves out what it wrote.
epath.gpath.PosixGPath.glob = _escaped_glob


def check_path(folder: Path) -> None:
    """Checks that checkpoints can be kept in a folder of this name.

    Raises: UserError: TensorStore, which writes them, does not take it.
    """
    path = os.path.abspath(folder)
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode(errors="surrogateescape").decode(errors="replace")
        raise UserError(f"the name of {shown} is not UTF-8; choose another folder") from None
    if ":/" in path or (os.sep == "/" and "\\" in path):
        what = "ends with a colon" if ":/" in path else "has a backslash"
        raise UserError(
            f"checkpoints cannot be kept in {path}, as the name of a folder {what}; choose another"
        )


def scored(score: float | None) -> dict[str, Any] | None:
    """What is stored about a checkpoint's score: twice, so that damage shows. None: no score."""
    if score is None or not math.isfinite(score):  # JSON has no other numbers
        return None
    return {"score": score, "hex": float(score).hex()}


def score_of(checkpoint: Path) -> float | None:
    """Reads the score of a checkpoint; None where it has none.

    Raises: ValueError: the file is damaged.
    """
    if not (checkpoint / _SCORE.parent).exists():
        return None
    stored = _json(checkpoint / _SCORE)
    score = stored.get("score") if isinstance(stored, dict) else None
    if not isinstance(score, float | int):
        raise ValueError(f"{_SCORE} does not hold a score")
    if "hex" in stored and stored["hex"] != float(score).hex():  # runs of before have none
        raise ValueError(f"{_SCORE} is not as it was written")
    return -math.inf if math.isnan(score) else float(score)


def check_files(checkpoint: Path) -> None:
    """Checks the small files of a checkpoint: those by which its arrays are found.

    Raises: ValueError: one is not there, or is not as it was written.
    """
    for path in checkpoint.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):  # to open it could block
            raise ValueError(f"{path.name} is a pipe or a device")
    for path in _small_files(checkpoint):
        if path.name in ("_METADATA", "_CHECKPOINT_METADATA"):
            _json(path)
    score_of(checkpoint)
    try:
        digests = _json(checkpoint / _SEAL)
    except ValueError:
        return  # not sealed, or the seal alone is damaged: the arrays have their fingerprint
    for name, digest in digests.items() if isinstance(digests, dict) else ():
        path = checkpoint / name
        if not path.is_file() or _digest(path) != digest:
            raise ValueError(f"{name} is not as it was written")


def seal(checkpoint: Path) -> None:
    """Writes the digests of the small files, of a checkpoint that was found sound."""
    names = {str(path.relative_to(checkpoint)): _digest(path) for path in _small_files(checkpoint)}
    write_json(checkpoint / _SEAL, names)


def _json(path: Path) -> Any:
    """Reads a small file; raises ValueError where it is damaged or gone."""
    if path.exists() and not path.is_file():  # to open a pipe could block
        raise ValueError(f"{path.name} is not a file")
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _small_files(checkpoint: Path) -> list[Path]:
    """All files but those in the folders of array data."""
    return [
        path
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
        and "d" not in path.relative_to(checkpoint).parts[:-1]
        and path.name != _SEAL
        and path.suffix != UNFINISHED
    ]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_arrays(
    checkpoint: Path, names: Mapping[str, Sequence[str]], prints: Any, stop: threading.Event
) -> bool:
    """Reads the arrays of a checkpoint, and compares their bits with what was saved.

    It takes neither a device nor other processes, and memory for one array at a time, so it can run
    beside the training.

    Args:
      names: of each entry of the state, its leaves' names in the checkpoint.
      prints: of each entry, uint32[leaves], the `checkpoint.fingerprint` of what was saved.
      stop: when it is set, there is no time to go on.
    Returns: whether all were compared.
    Raises: ValueError: an array cannot be read, or differs.
    """
    for entry, leaves in names.items():
        for leaf, expected in zip(leaves, np.asarray(prints[entry]), strict=True):
            if stop.is_set():
                return False
            if _fingerprint(_read(checkpoint, f"state.{leaf}")) != expected:
                raise ValueError(f"the bits of {leaf} are not those that were saved")
    return True


def _read(checkpoint: Path, name: str) -> np.ndarray:
    folder = {"driver": "file", "path": f"{checkpoint / 'state'}/"}
    spec = {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": folder, "path": f"{name}/"}}
    return tensorstore.open(spec, read=True).result().read().result()


def _fingerprint(array: np.ndarray) -> int:
    """What `checkpoint.fingerprint` gives for a leaf, without a device."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = flat.view(f"u{flat.dtype.itemsize}")
    total = 0
    for start in range(0, bits.size, _PIECE):
        piece = bits[start : start + _PIECE].astype(np.uint32)
        places = np.arange(start, start + piece.size, dtype=np.uint32)
        total += int(np.sum(piece * (2 * places + np.uint32(1)), dtype=np.uint32))
    return total % 2**32
