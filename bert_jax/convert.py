"""Weights in and out: Hugging Face <-> work directories, and TF1 releases in.

  python -m bert_jax.convert --from=hf --src=bert-base-uncased --dst=RUN
  python -m bert_jax.convert --from=tf1 --src=uncased_L-12_H-768_A-12 --dst=RUN
  python -m bert_jax.convert --to=hf --src=RUN --dst=FOLDER
  python -m bert_jax.convert --src=RUN --dst=RUN2 --add_tokens=tokens.txt

`--config.init_from` and `bert_jax.load` take such folders directly; this is for keeping one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags

from bert_jax.common import entry
from bert_jax.common.errors import UserError
from bert_jax.common.flag_parsing import path_flag
from bert_jax.common.outputs import check_folder
from bert_jax.models.layers import ACTIVATIONS
from bert_jax.weights import hugging_face, tf1
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import Pretrained, add_tokens, read_tokens, save_model

_READERS = {"run": open_model, "hf": hugging_face.read, "tf1": tf1.read}
_WRITERS: dict[str, Callable[[str, Pretrained], Sequence[str] | None]] = {
    "run": save_model,
    "hf": hugging_face.write,
}
_FROM = flags.DEFINE_enum("from", "run", list(_READERS), "What --src is; run: a work directory.")
_TO = flags.DEFINE_enum("to", "run", list(_WRITERS), "What --dst becomes.")
_SRC = path_flag("src", "Folder to read.")
_DST = path_flag("dst", "Folder to write; new, or empty.")
_ADD_TOKENS = path_flag("add_tokens", "File of new tokens, one a line.")
_ACTIVATION = flags.DEFINE_enum(
    "activation", None, list(ACTIVATIONS), "The activation it was trained with, if src is wrong."
)


def main() -> None:
    if not _SRC.value or not _DST.value:
        raise UserError("both --src=FOLDER and --dst=FOLDER are needed")
    if (_FROM.value, _TO.value) == ("run", "run") and not (_ADD_TOKENS.value or _ACTIVATION.value):
        raise UserError("nothing to do: give --from=hf|tf1, --to=hf or --add_tokens=FILE")
    check_folder(Path(_DST.value), "--dst")
    tokens = read_tokens(_ADD_TOKENS.value) if _ADD_TOKENS.value else []
    pretrained = _READERS[_FROM.value](_SRC.value)
    if _ACTIVATION.value:
        model = {**pretrained.model, "activation": _ACTIVATION.value}
        notes = tuple(note for note in pretrained.notes if not note.startswith("activation:"))
        pretrained = dataclasses.replace(pretrained, model=model, notes=notes)
    if tokens:
        pretrained = add_tokens(pretrained, tokens)
    told = _WRITERS[_TO.value](_DST.value, pretrained) or ()
    print("\n".join([describe(pretrained), *told]))
    print(f"{_SRC.value} -> {_DST.value}")


def describe(pretrained: Pretrained) -> str:
    """A table of the parts of a model, and its notes."""
    lines = [f"{'part':<12} {'arrays':>6} {'parameters':>13}"]
    for part, tree in pretrained.params.items():
        leaves = jax.tree.leaves(tree)
        lines.append(f"{part:<12} {len(leaves):>6} {sum(leaf.size for leaf in leaves):>13,}")
    model, tokenizer = pretrained.model, pretrained.tokenizer
    lines.append(
        f"{model['layers']} layers, width {model['width']}, {model['heads']} heads, "
        f"{model['activation']}; {tokenizer.vocab_size:,} tokens ({tokenizer.kind})"
    )
    return "\n".join([*lines, *pretrained.notes])


if __name__ == "__main__":
    entry.run(main)
