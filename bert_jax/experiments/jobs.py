"""Many runs as one: each has a folder, and is done when its result is there.

What is finished is not run again. Processes that are given the same jobs share them: on one
machine, or on several with the same disk.
"""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.common.progress import Progress
from bert_jax.training import distributed
from bert_jax.training.workdir import check_same, claimed

_POLL_SECONDS = 5.0  # between looks at what other processes are doing


@dataclasses.dataclass(frozen=True)
class Job:
    """A run in a folder: done when its `result` is there, ready when that of `needs` is."""

    folder: Path
    result: Path
    run: Callable[[], Any]
    needs: Path | None = None
    config: Any = None  # what the run in the folder must have been made with
    may_change: Sequence[str] = ()

    def check(self) -> None:
        """Raises UserError: the run is done, or begun, with another config."""
        if (self.folder / "config.json").exists():
            check_same(self.folder, self.config.to_dict(), self.may_change, whole=False)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Prints nothing of what is run inside: what a run says about itself is in its folder."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def work(todo: Sequence[Job], after: Callable[[], None] = lambda: None) -> None:
    """Runs the jobs that are not done, leaving those to others that others are at.

    after: is called after each.
    """
    with Progress(len(todo), "run", quiet=not distributed.is_main()) as progress:
        while True:
            done = distributed.from_main([job.result.exists() for job in todo])
            progress.update(sum(done) - progress.done)
            if all(done):
                return
            results = {job.result for job, is_done in zip(todo, done, strict=True) if is_done}
            for job in todo:
                if job.result in results or not (job.needs is None or job.needs in results):
                    continue
                with claimed(job.folder.with_name(job.folder.name + ".lock")) as mine:
                    if mine and distributed.from_main(not job.result.exists()):
                        progress.show(now="/".join(job.folder.parts[-3:]))
                        job.run()
                        after()
                        break  # look again what is done
            else:
                time.sleep(_POLL_SECONDS)  # all that could be done is being done by others
