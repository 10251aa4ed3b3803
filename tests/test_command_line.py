"""Command lines: help of every entry, home folders, and words that may be given in other ways."""

import os
import re
import subprocess
import sys
from pathlib import Path

import programs
import pytest
from kinds import settings_of

from bert_jax.__main__ import COMMANDS
from bert_jax.common.errors import UserError
from bert_jax.common.fields import Field, flat
from bert_jax.common.files import from_home
from configs import finetune, pretrain, reproduce

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = [
    *(f"bert_jax.{name}" for name in (*COMMANDS.values(), "pydocs_task")),
    "launch.sweep", "launch.glue_submission",
]  # fmt: skip
# Prints the help of each entry as `python -m ENTRY --help` does, once into a pipe that nobody
# reads; the imports that they share are made once.
HELP = """
import importlib, os, sys
from bert_jax import finetune
from bert_jax.common import entry
for name in sys.argv[1].split(","):
    if pid := os.fork():
        os.waitpid(pid, 0)
        continue
    module = importlib.import_module(name)
    for read in (True, False):
        sys.stdout.flush()
        if pid := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(f"{name} {read} ended with {code}", flush=True)
            continue
        if not read:
            ours, theirs = os.pipe()
            os.close(ours)
            os.dup2(theirs, 1)
        code = 0
        try:
            sys.argv = [name, "--help"]
            entry.run(module.main)
        except SystemExit as stop:
            code = stop.code or 0
        sys.stdout.flush()
        os._exit(code)
    os._exit(0)
"""


def test_help_of_every_entry_survives_head():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", HELP, ",".join(ENTRIES)],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    for entry in ENTRIES:
        assert f"{entry} True ended with 0" in done.stdout
        assert f"{entry} False ended with 0" in done.stdout
    assert done.stdout.count("Flags:") == len(ENTRIES)
    for flag in ("workdir", "out", "src", "gold", "topology", "grid"):
        assert re.search(rf"^  --{flag}: ", done.stdout, re.MULTILINE), flag


def test_help_with_a_config_lists_its_settings_from_any_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [
            sys.executable, "-m", "bert_jax.main", "--help",
            "--config=configs/pretrain.py:size=mini",
        ],
        capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--config.model.layers=4\n" in done.stdout and "Arguments (after" in done.stdout


def test_the_package_lists_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "bert_jax"], capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0 and "  finetune   Fine-tuning" in done.stdout


def test_a_flag_of_another_entry_is_refused(tmp_path):
    """It is defined in the module that defines the entry's own, and would have no effect."""
    for entry, flag in (
        ("bert_jax.prepare", "--workdir=x"), ("bert_jax.main", "--output=x"),
        ("bert_jax.score", "--slices=2"), ("bert_jax.main", "--nosearch"),
    ):  # fmt: skip
        done = programs.run("-m", entry, flag, cwd=ROOT)
        name = flag.removeprefix("--").partition("=")[0]
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: there is no flag --{name}"), done.stderr


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert from_home("~/runs/a") == "/home/me/runs/a"
    assert from_home("tfds:~/mnli") == "tfds:/home/me/mnli"
    assert from_home("runs/~a") == "runs/~a"
    with pytest.raises(UserError, match="there is no home folder ~no_one"):
        from_home("~no_one/x")
    for config in (
        pretrain.get_config(), finetune.get_config(), reproduce.get_config("table=5,tasks=mrpc"),
    ):  # fmt: skip
        paths = [name for name, field in settings_of(config).rows.items() if field.kind == "path"]
        config.update_from_flattened_dict(dict.fromkeys(paths, "~/x"))
        settings_of(config).expand_paths(config)
        values = dict(flat(config))
        assert paths and {values[name] for name in paths} == {"/home/me/x"}


def test_every_flag_that_names_a_file_or_folder_knows_the_home_folder():
    for path in [*ROOT.glob("bert_jax/**/*.py"), *ROOT.glob("launch/*.py")]:
        for flag, about in re.findall(
            r'DEFINE_string\(\s*"(\w+)", [^"]*"([^"]*)"', path.read_text(encoding="utf-8")
        ):
            assert not re.search(r"\b([Ff]ile|[Ff]older)\b", about), (path.name, flag)


def test_a_path_that_the_system_cannot_take_names_its_field(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path, why in (
        ("x" * 300, "File name too long"), ("a\0b", "null"), (str(tmp_path / "a"), "links"),
    ):  # fmt: skip
        wrong = Field("path").wrong("corpus", path)
        assert re.search(f"^corpus=.* cannot be a path: .*{why}", wrong)
    assert Field("path").wrong("corpus", str(tmp_path / "nothing")) == ""
