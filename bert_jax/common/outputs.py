"""Where a command writes to is checked before its work starts.

Nothing is overwritten that the command did not make: not a file of the user's, under whatever name
it is reached, and not a device, which root could replace by a file.
"""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_jax.common.errors import UserError
from bert_jax.common.files import read_json


def check_output(
    path: Path,
    is_ours: Callable[[Path], bool] = lambda path: False,
    inputs: Sequence[Path] = (),
    option: str = "--output",
) -> Path:
    """Checks that a file can be written at a path, and that nothing is lost by it.

    Args:
      is_ours: says of a file that is not empty whether this command made it, and so may replace it.
      inputs: files that the command reads. option: how the path was given.
    Returns: the path without symbolic links, so that what is moved there replaces none.
    Raises: UserError: it is an input, a folder, a device or another special file, or holds
      something else; its folder cannot be written into.
    """
    given, found = path, None
    try:
        path = path.resolve()
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # nothing is there, the second because a file is where its folder should be
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        reason = getattr(error, "strerror", None) or "its links lead in a circle"
        raise UserError(f"{option}={given} cannot be written: {reason}") from None
    if found is not None:
        if stat.S_ISDIR(found.st_mode):
            raise UserError(f"{option}={given} is a folder; name a file")
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{option}={given} is a device or another special file; name another")
        if any(source.exists() and source.samefile(path) for source in inputs):
            raise UserError(f"{option}={given} is the input itself; name another file")
        if found.st_size and not is_ours(path):
            raise UserError(f"{option}={given} exists and holds something else; name another file")
    _check_parent(path.parent, f"{option}={given}")
    return path


def check_folder(path: Path, option: str = "--workdir") -> Path:
    """Checks that files can be written into a folder, which need not be there yet.

    Returns: the path. Raises: UserError: it is a file, a device or another special file, or lies
      in one; it cannot be written into.
    """
    try:
        _check_parent(path.resolve(), f"{option}={path}")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "its links lead in a circle"
        raise UserError(f"{option}={path} cannot be a folder: {reason}") from None
    return path


def _check_parent(folder: Path, given: str) -> None:
    """Raises UserError: the folder, or the first one above it that is there, takes no files."""
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not there.is_dir():
        raise UserError(f"{given}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{given}: {there} cannot be written into")


def check_report(folder: Path, names: Sequence[str], keys: Sequence[str]) -> None:
    """Checks that the report files of a command in a folder are those of an earlier run of it.

    Args:
      names: of the files, the JSON file first. keys: what that file must hold to be one of ours.
    Raises: UserError: one of them is there, and is not of such a report.
    """
    there = [folder / name for name in names if os.path.lexists(folder / name)]
    if not there:
        return
    try:
        ours = there[0].name == names[0] and set(keys) <= read_json(there[0]).keys()
    except UserError:
        ours = False
    if not ours or not all(path.is_file() for path in there):
        raise UserError(f"{there[0]} was not made by this command; choose another --workdir")
