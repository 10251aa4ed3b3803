"""Commands in processes of their own that need not import JAX each: forks of one that has.

To import takes seconds, and what is tested of a command often less. So `run` asks one process that
has imported the libraries, and has done nothing with them, for a child, which runs the command as
Python would: with its own arguments, environment, output, exit code and end.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PARENT = """
import json, os, runpy, sys
import bert_jax.data.loader, bert_jax.inference.loading, bert_jax.tasks, bert_jax.training.loop
import configs.finetune, configs.pretrain
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, file in enumerate((os.devnull, asked["stdout"], asked["stderr"])):
    os.dup2(os.open(file, os.O_RDWR), number)
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


def run(*words: str | Path, cwd: str | Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python WORDS...`, as by `subprocess.run` with captured text."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        asked = {
            "words": [str(word) for word in words], "cwd": str(cwd), "env": dict(os.environ),
            "stdout": str(files[0]), "stderr": str(files[1]),
        }  # fmt: skip
        parent = _parent()
        parent.stdin.write(json.dumps(asked) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))
