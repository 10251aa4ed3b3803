"""The package as `pip install` leaves it: its command, its version, and configs from any folder."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bert_jax
from bert_jax import __main__
from bert_jax.common import shipped
from bert_jax.common.errors import UserError
from bert_jax.common.flag_parsing import _config_word

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python(*words: str, cwd: Path, path: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, text=True, capture_output=True,
        timeout=100, check=False,
    )  # fmt: skip


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "bert_jax.common.version.VERSION"
    }
    assert re.fullmatch(r"\d+\.\d+\.\d+", bert_jax.__version__)
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{bert_jax.__version__}]" in log or "## [Unreleased]" in log


def test_every_folder_of_the_package_is_found_by_setup():
    """`find_packages` leaves out folders without `__init__.py`, and what is in them."""
    folders = {path.parent for path in (ROOT / "bert_jax").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    assert (ROOT / "bert_jax" / "py.typed").exists()


def test_the_command_runs_modules_as_python_does(monkeypatch):
    assert PROJECT["project"]["scripts"] == {"bert-jax": "bert_jax.__main__:run"}
    for module in __main__.COMMANDS.values():
        assert '\nif __name__ == "__main__":' in (ROOT / "bert_jax" / f"{module}.py").read_text()
    seen = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **how: seen.append((name, how)))
    monkeypatch.setattr(sys, "argv", ["bert-jax", "pretrain", "--workdir=run", "--help"])
    __main__.run()
    assert seen == [("bert_jax.main", {"run_name": "__main__", "alter_sys": True})]
    assert sys.argv == ["bert-jax", "--workdir=run", "--help"]


def test_a_wrong_command_is_one_line(tmp_path):
    done = python("-m", "bert_jax", "pretrian", cwd=tmp_path, path=ROOT)
    assert done.returncode == 2
    assert done.stderr == ("error: there is no command 'pretrian'. Did you mean \"pretrain\"?\n")


def test_the_list_of_commands_imports_no_jax(tmp_path):
    code = "import sys, bert_jax.__main__ as m; m._answer([]); print('jax' in sys.modules)"
    done = python("-c", code, cwd=tmp_path, path=ROOT)
    assert done.stdout.endswith("False\n"), done.stderr
    for name in __main__.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.|\?$", done.stdout, re.MULTILINE), name


def test_a_config_of_this_folder_goes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _config_word("--config=configs/pretrain.py:size=mini") == (
        f"--config={ROOT}/configs/pretrain.py:size=mini"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "pretrain.py").touch()
    assert _config_word("--config=configs/pretrain.py") == "--config=configs/pretrain.py"
    with pytest.raises(UserError, match=r"mine/pretrain.py does not exist"):
        _config_word("--config=mine/pretrain.py")
    with pytest.raises(UserError, match=r'Did you mean "configs/finetune.py"'):
        _config_word("--config=configs/finetun.py")


def test_an_installed_package_has_its_configs_within(tmp_path):
    """Laid out as setup.py says; reproduce's config is made of two others."""
    installed = tmp_path / "site"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bert_jax", installed / "bert_jax", ignore=no_caches)
    shutil.copytree(shipped.configs(), installed / "bert_jax" / "configs", ignore=no_caches)
    done = python(
        "-P", "-m", "bert_jax", "reproduce", "--config=configs/reproduce.py:table=5", "--help",
        cwd=tmp_path, path=installed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--config.pretraining.steps=6000\n" in done.stdout
    assert f"{installed}/bert_jax/configs/reproduce.py" in done.stdout
