"""BERT in JAX: pre-train, ablate, fine-tune and convert, on a laptop core or a TPU pod.

Map of the package, from the top down; a room imports from those below it (tests/test_rooms.py):
  prepare, main, finetune  commands: raw text -> corpus; pre-train; fine-tune, evaluate, predict
  score, features, convert, plan, reproduce, pydocs_task  more commands; nothing else is here
  experiments  many runs as one: grids, the papers' tables
  planning     what a config costs on a slice that nobody has rented
  reports      what a run leaves for people
  preparing    raw text -> corpus: sources, sentences, vocabulary, units, writer
  inference    `load(path)` -> fill_mask, embed, classify, answer, tag, choose
  weights      a model as one thing, in and out of other formats
  families     a published line of models is one file: what it selects of all below
  tasks        rows of four families of tasks: files -> features; outputs -> scores, official files
  training     the one loop, its steps, checkpoints, work directory, mesh
  objectives   what is learnt: pure functions of (params, batch, key)
  models       backbones and heads, and the layers that they are made of
  data         tokenizer, template of special tokens, corpus, layouts, instances by index, loader
  common       errors, files, locks, fields of configs, command line

Shape alphabet, used in every signature, comment and einsum:
  B batch, S sequence (T where keys and queries differ), M predicted positions, D model width,
  N heads, H head width, F feed-forward width, L layers, V vocabulary, C classes.
"""

from typing import Any

from bert_jax.common.version import VERSION

__version__ = VERSION
__all__ = ["load"]


def load(path: str, **options: Any):
    """Opens a trained model for use; see `bert_jax.inference.loading.load`."""
    from bert_jax.inference.loading import (
        load as open_run,  # late: `import bert_jax` imports no jax
    )

    return open_run(path, **options)
