"""Small models as `transformers` wrote them, and comparing parameters."""

import json
from pathlib import Path

import jax
import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "hugging_face"
CLASSES = ["pretraining", "encoder", "classification", "tagging", "answering", "choice"]


def same(one, other) -> bool:
    """Whether two trees have the same names and the same bits."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def plain(params):
    return jax.tree.map(np.asarray, dict(params))


def change_config(folder: Path, **changes) -> None:
    """Gives fields of a copy's config.json other values."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
