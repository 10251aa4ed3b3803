"""Compiled programs are kept for later starts, in one folder per user.

Never in a work directory: such folders travel, and whoever loads a compiled program executes it.
"""

import hashlib
import os
import platform
import stat
from pathlib import Path

import jax

from bert_jax.training import distributed

MOST_BYTES = 4 * 2**30  # of all programs together; a step of Base takes about 3 MB


def keep_programs() -> None:
    """Has JAX keep what it compiles from now on, and load what an earlier start has compiled.

    Call it before anything is compiled. The folder is the environment's JAX_COMPILATION_CACHE_DIR,
    which is left as it is; else one in the user's cache folder, from which the programs that were
    not used for longest are removed. Where that cannot be written, nothing is kept.
    """
    # The small ones too: a start has many, and each is several times faster to load.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = user_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ours(folder)
        trim(folder, MOST_BYTES)
        folder = folder / _machine()
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / ".written").touch()
    except (OSError, RuntimeError) as error:  # RuntimeError: nothing says where home is
        distributed.say(
            f"compiled programs are not kept for later starts ({error}); "
            "JAX_COMPILATION_CACHE_DIR=FOLDER keeps them elsewhere"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def user_folder() -> Path:
    """Returns the folder of this user's compiled programs, by the XDG base directory rules."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "bert_jax" / "compiled"


def trim(folder: Path, most: int) -> None:
    """Removes the programs that were not used for longest until `most` bytes are left.

    Other processes may do the same at that moment.
    """
    programs = []
    for path in folder.glob("*/*-cache"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        # Reading sets the time of access at most once a day, on many file systems: enough here.
        programs.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in programs)
    for _, size, path in sorted(programs):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size


def _check_ours(folder: Path) -> None:
    """Raises PermissionError: somebody else could put programs there for us to execute."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others can write to {folder}")


def _machine() -> str:
    """Returns a name for this kind of processor: JAX does not tell them apart, and a program that
    was compiled for another may use instructions that this one lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    wanted = ("flags", "Features", "model name")
    about = sorted({line for line in lines if line.startswith(wanted)} or set(lines[:1]))
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}"
