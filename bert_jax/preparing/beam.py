"""Preparing on many machines: the same work units as the pool's, run by Apache Beam.

A pipeline moves no text: each element names a unit, whose input and output are files that every
worker reads and writes under the same paths. So what comes out is, to the byte, what the pool
makes, with any runner. TFDS's own Beam writer would not do: it deals examples out to shards by a
hash, and a corpus is in the order of its input. Apache Beam is the optional extra `beam`.
"""

import contextlib
import io
import os
import platform
import shlex
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.common.errors import UserError


class Beam:
    """A Beam runner and its options, checked; `runner` is its name."""

    def __init__(self, runner: str, options: str = ""):
        """`options` are written as for any Beam pipeline: "--project=P --region=R".

        Raises:
          UserError: Beam is not installed, or the runner or its options are not what it takes.
        """
        try:
            import apache_beam  # noqa: F401
        except ImportError as error:
            raise UserError(
                "--runner needs Apache Beam: pip install apache-beam "
                "(for DataflowRunner: 'apache-beam[gcp]')"
            ) from error
        self.runner, self._options = runner, options
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                pipeline = self._pipeline()
        except SystemExit:  # how the parser of the options refuses a value
            message = said.getvalue().strip().rpartition("\n")[2].partition("error: ")[2]
            raise UserError(f"--beam_options: {message}") from None
        except Exception as error:  # whatever the runner raises
            raise UserError(f"--runner={runner}: {_one_line(error)}") from error
        shutil.rmtree(pipeline.local_tempdir)

    def _pipeline(self) -> Any:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions(shlex.split(self._options), runner=self.runner)
        options.get_all_options()  # parses all of them
        return apache_beam.Pipeline(options=options)

    def run(self, tasks: Sequence[tuple], folder: Path) -> None:
        """Runs `(function, input, output, *others)` tasks, each of which makes the path `output`.

        A task may be run twice, even at the same time: runners try again, and start a second copy
        of a slow task. Each try therefore has a folder of its own in that of the job, and moves
        what it made into place. Workers of an earlier job, whose driver was killed, find the folder
        of their job gone and leave nothing behind.

        Args:
          folder: an absolute path that all workers see, for the folder of the job.

        Raises:
          UserError: from a task, or because the runner failed.
        """
        import apache_beam

        if not tasks:
            return
        for old in folder.glob("job-*"):
            shutil.rmtree(old)
        job = folder / f"job-{uuid.uuid4().hex}"
        job.mkdir()
        try:
            pipeline = self._pipeline()
            # Reshuffle: without it, a runner may give all tasks to one worker.
            units = pipeline | apache_beam.Create(tasks) | apache_beam.Reshuffle()
            units | apache_beam.Map(_make, job)
            result = pipeline.run()
            try:
                result.wait_until_finish()
            except KeyboardInterrupt:
                result.cancel()
                raise
        except Exception as error:  # whatever the runner raises
            raise UserError(f"{self.runner} failed: {_one_line(error)}") from error
        if (job / "error").exists():
            raise UserError((job / "error").read_text(encoding="utf-8"))
        missing = [task[2].name for task in tasks if not task[2].exists()]
        if missing:
            raise UserError(
                f"{self.runner} ended without {missing[0]} in {folder}; run the same command again "
                "to go on"
            )
        shutil.rmtree(job)


def _make(task: tuple, job: Path) -> None:
    """Runs a task on a worker, unless its output is there or another task of the job failed.

    A `UserError` goes into a file, as a runner would try the task again and bury the message.
    """
    function, given, output, *others = task
    if output.exists() or (job / "error").exists():
        return
    own = job / uuid.uuid4().hex
    try:
        own.mkdir()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"worker {platform.node()} has no {job}: --out and the input must be on a file system "
            "that all workers mount at the same path"
        ) from None
    try:
        function(given, own / output.name, *others)
    except UserError as error:
        (job / "error").write_text(str(error), encoding="utf-8")
        return
    try:
        os.replace(own / output.name, output)
    except OSError:  # a folder does not replace a folder
        if not output.exists():
            raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
