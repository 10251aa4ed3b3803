"""Locks: of the processes on a folder, one works there at a time."""

import contextlib
import errno
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
# Some network disks, FUSE and container file systems cannot lock.
_CANNOT = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Gives whether this process has the lock that `file` stands for, until the end of the block.

    The lock ends with the process, however that ends; the file stays. Where the system has no
    locks, a warning says so, and the answer is yes.

    Raises: OSError: the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:  # one that was there keeps what is in it
        mine = True
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _CANNOT:
                _warn(file.parent)
            elif error.errno in _HELD:
                mine = False
            else:
                raise OSError(error.errno, error.strerror, str(file)) from error
        yield mine


@functools.cache  # once a folder
def _warn(folder: Path) -> None:
    print(
        f"warning: {folder} is on a file system without locks: nothing keeps a second process from "
        "working there at the same time, which would damage what both write; start only one",
        file=sys.stderr,
    )
