"""Commands in processes of their own that need not import JAX each: forks of one that has.

To import takes seconds, and what is tested of a command often less. So one process that has
imported the libraries, and has done nothing with them, is asked for a child, which runs the command
as Python would: with its own arguments, environment, output, exit code and end. JAX reads its part
of the environment when it is imported: that is as of the first command.
"""

import atexit
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PARENT = """
import json, os, runpy, sys
import bert_jax.data.loader, bert_jax.inference.loading, bert_jax.tasks, bert_jax.training.loop
import configs.finetune, configs.pretrain, matplotlib.backends.backend_agg, matplotlib.figure
for line in sys.stdin:
    asked = json.loads(line)
    if "pid" in asked:  # has it ended?
        pid, status = os.waitpid(asked["pid"], asked["options"])
        print(os.waitstatus_to_exitcode(status) if pid else None, flush=True)
        continue
    names = (os.devnull, asked["stdout"], asked["stderr"])
    files = [os.open(name, os.O_RDWR | os.O_APPEND | os.O_NOCTTY) for name in names]
    child = os.fork()
    if not child:
        break
    for file in files:
        os.close(file)
    print(child, flush=True)
else:
    sys.exit()
for number, file in enumerate(files):
    os.dup2(file, number)
# Those of the parent know what kind of file theirs was.
sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["env"])
sys.argv = asked["words"]
if sys.argv[0] == "-m":
    sys.argv.pop(0)
    sys.path[0] = os.getcwd()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@functools.cache
def _parent() -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={"JAX_PLATFORMS": "cpu", **os.environ},
    )  # fmt: skip
    atexit.register(process.kill)
    return process


def _ask(**asked: Any) -> int | None:
    parent = _parent()
    parent.stdin.write(json.dumps(asked) + "\n")
    parent.stdin.flush()
    return json.loads(parent.stdout.readline().replace("None", "null"))


class Program:
    """A command that is running; of `subprocess.Popen` what is needed."""

    def __init__(self, words: Sequence[str | Path], cwd: str | Path, stdout: str, stderr: str):
        self.pid = _ask(
            words=[str(word) for word in words], cwd=str(cwd), env=dict(os.environ),
            stdout=stdout, stderr=stderr,
        )  # fmt: skip
        self.returncode: int | None = None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(pid=self.pid, options=options)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        begin = time.monotonic()
        while self.poll(0 if timeout == math.inf else os.WNOHANG) is None:
            if time.monotonic() > begin + timeout:
                raise TimeoutError
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(*words: str | Path, stdout: str | Path, stderr: str | Path) -> Program:
    """`python WORDS...`; what is said is added to these files, which must be there."""
    return Program(words, ROOT, str(stdout), str(stderr))


def run(*words: str | Path, cwd: str | Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python WORDS...`, as by `subprocess.run` with captured text."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        code = Program(words, cwd, *map(str, files)).wait()
        return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))
