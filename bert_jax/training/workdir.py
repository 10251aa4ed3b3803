"""The work directory of a run: its config, and what a second start must find unchanged."""

import contextlib
import filecmp
import json
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from bert_jax.common import run_format
from bert_jax.common.errors import UserError
from bert_jax.common.files import UNFINISHED, write_json
from bert_jax.common.locks import locked
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.training import distributed, seal


def check_same(
    workdir: Path,
    config: Mapping[str, Any],
    may_change: Collection[str],
    may_grow: Collection[str] = (),
    whole: bool = True,
) -> None:
    """Checks that a work directory was made with this config.

    may_change: fields, or whole sections, that may differ. may_grow: numbers that may be larger.
    whole: if not, fields that `config` does not have may differ, too.
    Raises: UserError, listing what differs.
    """
    stored = run_format.read_config(workdir)
    before = _flat({name: value for name, value in stored.items() if name != "format"})
    now = _flat(json.loads(json.dumps(config)))
    if whole and (unknown := before.keys() - now.keys() - run_format.MEANT.keys()):
        raise run_format.newer(workdir / "config.json", f"setting {min(unknown)}")
    changed = [
        f"{name} was {before.get(name)}, is {now[name]}"
        for name in sorted(now)
        if before.get(name) != now[name]
        and not {name, name.split(".")[0]} & set(may_change)
        and not (name in may_grow and now[name] > before.get(name, math.inf))
    ]
    if changed:
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        kept = any((workdir / "checkpoints").glob("*"))
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed[:5])}{more}); "
            + (
                "undo that, or start a new run from this one: "
                f"--config.init_from={workdir} --workdir=NEW"
                if kept
                else "undo that, delete the folder, which has no checkpoint yet, or choose another "
                "--workdir"
            )
        )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by dotted name, as they are set."""
    return flatten_dict(config, sep=".", keep_empty_nodes=True)


def prepare_workdir(
    workdir: Path,
    config: Mapping[str, Any],
    may_change: Collection[str],
    tokenizer: Tokenizer,
    write: Callable[[Path], None] = lambda folder: None,
    check: Callable[[], None] = lambda: None,
    may_grow: Collection[str] = (),
) -> None:
    """Writes tokenizer/ and config.json, or checks that the folder is of the same run.

    Of several processes all check, and the main one writes.

    Args:
      config: plain values.
      may_change, may_grow: its fields that may differ when a run is continued, as in `check_same`.
      write: called with the folder of a new run before config.json is there, to put more there.
      check: called of a run that is continued, to raise a UserError where something else differs.
    Raises: UserError: the folder holds something else.
    """
    seal.check_path(workdir)
    path = workdir / "config.json"
    is_there = distributed.from_main(path.exists())
    if path.exists():
        check_same(workdir, config, may_change, may_grow)
        check()
        if (workdir / "compiled").exists():  # of earlier versions; whoever loads it executes it
            distributed.say(f"{workdir}/compiled is not used any more and may be deleted")
    elif workdir.exists() and not is_there:
        # What a start that was killed may have left, if it is what this one would write; with
        # .tmp, one of an earlier version, which nobody reads.
        begun = {"tokenizer", "corpus.json", "task.json", "config.json"}
        begun |= {f"{name}.tmp" for name in begun}
        names = {path.name for path in workdir.iterdir() if path.suffix != UNFINISHED}
        if names - begun:
            raise _holds_no_run(workdir)
    distributed.wait_for_all("the work directory is checked")
    if distributed.is_main():
        if not path.exists():
            workdir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(UNFINISHED, ".", workdir) as folder:
                made = Path(folder)
                tokenizer.save(made / "tokenizer")
                write(made)
                _move_into(workdir, made)
        write_json(path, {"format": run_format.format_of(workdir), **config})
    distributed.wait_for_all("the work directory is there")
    distributed.check_shared(workdir)


def _move_into(workdir: Path, made: Path) -> None:
    """Moves what is in the folder `made` into the work directory; what is there already stays.

    Raises: UserError: what is there is not the same.
    """
    new = []
    for entry in sorted(made.rglob("*")):
        there = workdir / entry.relative_to(made)
        if not os.path.lexists(there):
            new.append((entry, there))
        elif entry.is_dir() != there.is_dir() or (
            entry.is_file() and not (there.is_file() and filecmp.cmp(entry, there, shallow=False))
        ):
            raise _holds_no_run(workdir)
    for entry, there in new:
        if entry.exists():  # else it has moved with its folder
            entry.rename(there)


def _holds_no_run(workdir: Path) -> UserError:
    return UserError(f"{workdir} is not empty and holds no run; choose another --workdir")


def format_of(workdir: Path) -> int:
    """Gives the format of the run in a folder, as the main process sees it; of none, the newest.

    Raises: UserError: as `run_format.read_config`.
    """
    return distributed.from_main(run_format.format_of(workdir))


@contextlib.contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Gives whether this run may work at what the file stands for; the main process locks it."""
    with locked(file) if distributed.is_main() else contextlib.nullcontext(True) as mine:
        yield distributed.from_main(mine)


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Raises UserError: another run is at work there, whose files this one would replace."""
    with claimed(workdir / "lock") as mine:
        if not mine:
            raise UserError(f"another run is at work in {workdir}; wait for it, or stop it first")
        yield
