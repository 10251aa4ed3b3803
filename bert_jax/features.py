"""Activations of a frozen model for every line of a text file.

  python -m bert_jax.features --checkpoint=RUN_OR_HF --input=texts.txt --output=features.npz \
      --layers=-1,-2 --level=words

One text a line; an empty line is a text without pieces and keeps its place. Texts are split at
white space and then into pieces; special tokens written in them are text. A text over the length is
read in windows that overlap by half, and each piece is taken from the one that gives it the most
context, so nothing is cut off. The .npz holds, for N rows over T texts and K layers:
  vectors  float32 [N, K, D]; rows of pieces, of words (their first pieces, BERT paper, section
           5.3) or of whole texts (the mean of their pieces, zeros without any; then N = T);
           [CLS] and [SEP] are seen by the model but have no rows
  layers   int64 [K], as given: 0 the embeddings, 1 .. L, or from the last backwards -1, -2 ..
  offsets  int64 [T + 1]; the rows of text t are offsets[t] .. offsets[t + 1] - 1
  tokens   str [N]: the pieces or words (their first 100 characters); of whole texts: none
"""

import itertools
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from bert_jax.common import entry
from bert_jax.common.command_line import OUTPUT
from bert_jax.common.errors import UserError
from bert_jax.common.files import written_whole
from bert_jax.common.flag_parsing import path_flag
from bert_jax.common.outputs import check_output
from bert_jax.common.progress import Progress
from bert_jax.data.opened import read_lines
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.inference.loading import Model, load
from bert_jax.tasks.squad_windows import Pieces, windows
from bert_jax.training import memory
from bert_jax.training.compile_cache import keep_programs

LEVELS = ("pieces", "words", "text")
_CHUNK = 1024  # texts at a time: bounds the memory, whatever the file
_LONGEST_TOKEN = 100
_ARRAYS = ("layers", "offsets", "tokens", "vectors")

_CHECKPOINT = path_flag("checkpoint", "A run, Hugging Face or TF1 folder.")
_INPUT = path_flag("input", "Text file, a text a line.")
_LAYERS = flags.DEFINE_list("layers", "-1", "Hidden states: 0 (embeddings) .. L, or from -1 back.")
_LEVEL = flags.DEFINE_enum("level", "pieces", LEVELS, "What has a vector.")
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", 0, "Of a window, [CLS] and [SEP] included; 0: what the model can take."
)


def main() -> None:
    if not (_CHECKPOINT.value and _INPUT.value and OUTPUT.value):
        raise UserError("give --checkpoint=FOLDER, --input=FILE and --output=FILE.npz")
    memory.keep_freed_memory()
    keep_programs()
    try:
        layers = [int(layer) for layer in _LAYERS.value]
    except ValueError:
        raise UserError(f"--layers={','.join(_LAYERS.value)} must be numbers: -1,-2") from None
    texts, output = Path(_INPUT.value), Path(OUTPUT.value)
    check_output(output, _is_ours, [texts])  # before the model is opened
    shape = write_features(
        load(_CHECKPOINT.value), texts, output, layers, _LEVEL.value, _MAX_LENGTH.value
    )
    print(f"{output}: {shape[0]} rows x {shape[1]} layers x {shape[2]}", file=sys.stderr)


def write_features(
    model: Model,
    texts: Path,
    output: Path,
    layers: Sequence[int],
    level: str = "pieces",
    max_length: int = 0,
) -> tuple[int, int, int]:
    """Writes the activations, whole or not at all; arguments as the flags.

    The file is read twice: the first time to count, so vectors go straight to the disk.

    Returns: [N, K, D].
    Raises: UserError: a layer or length that the model does not have; no readable, non-empty file,
      or one that changes; `output` is one of the texts, or holds something else than features.
    """
    output = check_output(output, _is_ours, [texts])
    if texts.exists() and not texts.is_file():
        raise UserError(f"{texts} is not a file, which can be read twice: write the texts to one")
    longest = model.backbone.max_positions
    if not layers:
        raise UserError("--layers names no layer")
    model.check_layers(layers)
    if max_length and not 3 <= max_length <= longest:
        raise UserError(f"max_length={max_length} must lie between 3 and {longest}")
    room = (max_length or longest) - model.tokenizer.template.around(1)
    counts, tokens = [], []
    for words, pieces in _encoded(texts, model.tokenizer):
        ids = list(itertools.chain(*pieces))
        names = {"pieces": [model.tokenizer.tokens[i] for i in ids], "words": words, "text": [""]}
        counts.append(len(names[level]))
        tokens += [token[:_LONGEST_TOKEN] for token in names[level] if token]
    if not counts:
        raise UserError(f"{texts} is empty")
    shape = sum(counts), len(layers), model.backbone.width
    with written_whole(output) as made:
        with zipfile.ZipFile(made, "w") as file:
            small = {
                "layers": np.array(layers, np.int64),
                "offsets": np.cumsum([0, *counts], dtype=np.int64),
                "tokens": np.array(tokens, np.str_),
            }
            for name, array in small.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
            with (
                file.open("vectors.npy", "w", force_zip64=True) as entry,
                Progress(len(counts), "text") as progress,
            ):
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
                found = []
                for vectors in _vectors(model, texts, layers, level, room):
                    entry.write(vectors.astype("<f4").tobytes())
                    found.append(len(vectors))
                    progress.update()
        if found != counts:
            raise UserError(f"{texts} changed while it was read")
    return shape


def _is_ours(path: Path) -> bool:
    """Says whether a file holds features, so that new ones may replace it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return sorted(file.namelist()) == sorted(f"{name}.npy" for name in _ARRAYS)


def _encoded(path: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[str], list[list[int]]]]:
    """Of each text its words, and the ids of each word; [UNK] where a word gives none."""
    lines = read_lines(path)
    while chunk := [line.split() for line in itertools.islice(lines, _CHUNK)]:
        ids = iter(tokenizer.encode_batch(list(itertools.chain(*chunk))))
        for words in chunk:
            yield words, [next(ids) or [tokenizer.unk_id] for _ in words]


def _vectors(
    model: Model, path: Path, layers: Sequence[int], level: str, room: int
) -> Iterator[np.ndarray]:
    """float32 [rows, K, D] of each text."""
    texts, template = _encoded(path, model.tokenizer), model.tokenizer.template
    while chunk := list(itertools.islice(texts, _CHUNK)):
        sequences, places = [], []  # of a window: its text, the pieces it gives, and where in it
        results = []
        for number, (_, pieces) in enumerate(chunk):
            ids = np.array(list(itertools.chain(*pieces)), np.int32)
            results.append(np.zeros((len(ids), len(layers), model.backbone.width), np.float32))
            passage = Pieces(ids, np.zeros((len(ids), 2), np.int32))
            for start, window in windows(passage, room, max(room // 2, 1), len(template.before)):
                inside = ids[start : start + room]
                sequences.append(template.join(inside))
                kept = np.flatnonzero(window.max_context)
                places.append((number, start + kept, window.first + kept))
        for index, hidden in model.activations(sequences, layers):
            number, rows, positions = places[index]
            results[number][rows] = hidden[:, positions].swapaxes(0, 1)
        for (_, pieces), vectors in zip(chunk, results, strict=True):
            if level == "words":
                vectors = vectors[np.cumsum([0, *map(len, pieces[:-1])])] if pieces else vectors
            elif level == "text":
                vectors = vectors.sum(axis=0, keepdims=True) / max(len(vectors), 1)
            yield vectors


if __name__ == "__main__":
    entry.run(main)
