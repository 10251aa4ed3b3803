"""Finds the config files that come with the package, from whatever folder it is used."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def configs() -> Path:
    """Returns the folder of the shipped config files.

    A checkout has `configs/` beside the package, an installed package has it within (setup.py).
    """
    within = _PACKAGE / "configs"
    return within if within.is_dir() else _PACKAGE.parent / "configs"


@functools.cache
def config_module(name: str) -> ModuleType:
    """Imports a shipped config file, which need not be on Python's path.

    name: of the file, without `.py`.
    """
    path = configs() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bert_jax.configs.{name}", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
