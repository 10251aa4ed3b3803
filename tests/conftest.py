"""Eight CPU devices for every test, no silent broadcasting between ranks, and shared fixtures."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

# Most of the time goes to compiling programs that run for a moment: half of it with these. XLA ends
# the process at a flag that it doesn't know, and the second may not be for ever.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import numpy as np
import pytest

pytest_plugins = ["random_text", "stub_cloud", "tiny_corpus", "tiny_tasks"]

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """What is compiled for one test is there for all: in one folder, unless one is given.

    That is for tests of other workers, which inherit the environment of the process that starts
    them, and for the programs that tests start.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = tempfile.mkdtemp(prefix="bert_jax_compiled_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


# They train models or start processes. In this order they come first, so that no worker is left
# with one when the others are done; the second does not wait for the model that the first trains.
SLOW = (
    "test_finetune", "test_processes", "test_sharding", "test_reproduce", "test_resume",
    "test_finetune_processes", "test_train", "test_faults", "test_notebooks",
    "test_finetune_start", "test_prepare_beam", "test_damaged_inputs",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts SLOW files first, and marks their tests and those of the trained model as slow."""
    places = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.stem, len(SLOW)))
    for item in items:
        if item.path.stem in SLOW or "trained" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """Reads `tests/golden/NAME.npz` as a tree: the array "a/b" is `tree["a"]["b"]`."""

    def read(name: str) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        with np.load(pathlib.Path(__file__).parent / "golden" / f"{name}.npz") as arrays:
            for path in arrays.files:
                *parents, leaf = path.split("/")
                node = tree
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[leaf] = arrays[path]
        return tree

    return read


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    """Eight devices as 4 x 2, axes "data" and "tensor"."""
    auto = jax.sharding.AxisType.Auto
    return jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(auto, auto))
