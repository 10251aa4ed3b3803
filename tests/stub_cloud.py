"""A cloud that only writes down what it is asked, and a run to launch on it.

Its fixture is there for every test (conftest.py).
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VM = ["--name=bert", "--zone=us-west4-a", "--type=v5litepod-256"]
DATA = ["--bucket=my-bucket", "--corpus=gs://my-bucket/corpora/wiki"]
ENTRY = ["python", "-m", "bert_jax.main", "--config.corpus=corpora/wiki",
         "--workdir=gs://my-bucket/runs/base"]  # fmt: skip


@pytest.fixture
def cloud(tmp_path):
    """Runs a script where `gcloud`, `xpk` and `kubectl` write down their words and obey `answer`.

    Returns run(script, *arguments, **environment); run.calls() are the calls so far.
    """
    bin_folder, log = tmp_path / "bin", tmp_path / "calls"
    bin_folder.mkdir()
    log.touch()
    answer = tmp_path / "answer"
    answer.write_text("")
    for name in ("gcloud", "xpk", "kubectl"):
        stub = bin_folder / name
        stub.write_text(
            f'#!/usr/bin/env bash\nprintf "%s\\0" {name} "$@" >> {log}\necho >> {log}\n'
            f"source {answer}\n"
        )
        stub.chmod(0o755)

    def run(script, *arguments, **environment):
        # Nothing else, so that no setting comes from the machine.
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        clean = {"PATH": path, "HOME": str(tmp_path), "TMPDIR": "/scratch"}
        return subprocess.run(
            ["bash", str(ROOT / "launch" / script), *arguments],
            env=clean | environment, text=True, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    run.calls = lambda: [call.split("\0")[:-1] for call in log.read_text().splitlines()]
    run.answer = answer
    return run
