"""BERT in JAX: pre-train, ablate, fine-tune and convert, on a laptop core or a TPU pod.

Map of the package, from the top down (imports go downwards only):
  main, prepare      entries: pre-train; raw text -> tokenised corpus with its vocabulary
  finetune, score    entries: fine-tune (from what: `finetune_start`), evaluate, predict; the
                     official metrics of a prediction file
  features, convert  entries: frozen activations; weights in and out
  plan               entry: what a config costs on a TPU slice, by its compiler (`tpu`, `program`)
  reproduce          entry: a table or figure of the paper, a row of `paper`; grids are in `grid`
  report             (and task_report, reproduce_report, plan_text) what is left behind for people
  inference          (and task_inference) `load(path)` -> fill_mask, embed, classify, answer ...
  hugging_face, tf1  models of others <-> ours, by the table of names and layouts in `published`;
                     their tasks are in `hugging_face_task`
  weights            a model as one thing, wherever it comes from
  train              the one training loop; `goodput`: where its time went
  tasks              rows of four families: files -> features; outputs -> scores, official files
  settings           what each field of a config may be (`fields`), and when it has an effect
  command_line       flags of several entries; `flag_parsing`: help, and words that are no flags
  progress, disk     how far long work is; what checkpoints of many runs take
  config, optim, sharding, distributed, checkpoint, metrics, workdir, memory
  objectives         what is learnt: pure functions of (params, batch, key)
  models             layers, encoder, body of a task, heads, kernels for TPU
  data               text, tokenizer, corpus, instances by index, loader; buckets by length
  files, figures     written whole or not at all
  errors             `UserError`: one line for people, exit code 2

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
