# ruff: noqa: E402
"""Writes losses.json: the losses of twenty steps of every family, as they are now.

python tests/families/losses.py, in the root of the repository. Look at what changes before it is
committed: it is what a family computes.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent), "."]
import conftest  # noqa: F401
import invented
import tiny_corpus
from test_contract import LOSSES, trained

from bert_jax.data.corpus import open_corpus
from bert_jax.families import FAMILIES

FAMILIES[invented.FAMILY.name] = invented.FAMILY
losses = {}
with tempfile.TemporaryDirectory() as folder:
    corpus = open_corpus(tiny_corpus.write_corpus(Path(folder) / "corpus"))
    for name, family in FAMILIES.items():
        workdir = Path(folder) / name
        lines = trained(family, corpus, workdir, steps=20, log_every=1, eval_every=20)
        losses[name] = [line["loss"] for line in lines if line["split"] == "train"]
LOSSES.write_text(json.dumps(losses, indent=1) + "\n")
