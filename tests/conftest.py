"""Eight CPU devices for every test, no silent broadcasting between ranks, and shared fixtures."""

import os
import pathlib
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


SLOW = ("test_processes", "test_resume", "test_reproduce", "test_finetune", "test_launch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: item.path.stem not in SLOW)


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
