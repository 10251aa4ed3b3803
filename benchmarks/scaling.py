"""How time grows with corpus, batch, model and devices. A table, a plot, and one JSON line.

  python -m benchmarks.scaling --output=scaling.png [--repeats=5]

One axis at a time, the others as in BASE:

  documents  of a made-up corpus (of BERT-like lengths): planning and shuffling a pass, which is
             what a start and each new pass wait for; and making batches
  rows       of a step
  size       of the model: a step, and a save that is waited for
  devices    of this machine's cores, the rows of a step staying the same: what sharing costs

Each point is a process of its own, and those of a curve take turns: a busy machine bends none.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from benchmarks.contest import Contender, Result, Turn, as_json, contest, show
from benchmarks.our_step import Shape, ours, trainer_of
from bert_jax.common import entry, errors, figures
from bert_jax.common.command_line import OUTPUT
from bert_jax.common.outputs import check_output
from bert_jax.data.corpus import open_corpus
from bert_jax.data.instances import Instances
from bert_jax.data.loader import train_batches
from bert_jax.data.template import Template
from bert_jax.data.tokenizer import wordpiece_tokenizer
from bert_jax.families.bert import SIZES
from bert_jax.preparing.corpus_writer import UnitWriter, assemble
from bert_jax.training.checkpoint import Checkpoints

_DOCUMENTS = flags.DEFINE_list("documents", ["1000", "10000", "100000"], "Sizes of corpora.")
_ROWS = flags.DEFINE_list("rows", ["4", "8", "16", "32"], "Rows of a step.")
_SIZES = flags.DEFINE_list("sizes", ["tiny", "mini", "small", "medium"], "Models.")
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Devices.")

BASE = Shape("mini", 16, 128, "float32")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_corpus(folder: Path, documents: int) -> None:
    """Documents of some 20 sentences of some 20 tokens, all at random."""
    draw = np.random.default_rng(0)
    vocab = [*SPECIAL, *(f"w{number}" for number in range(2000))]
    tokenizer = wordpiece_tokenizer(vocab)
    folder.mkdir()
    unit = folder / ".partial" / "unit-00000"
    writer = UnitWriter(unit, len(vocab))
    for number in range(documents):
        lengths = draw.integers(5, 36, draw.integers(5, 36)).astype(np.int32)
        tokens = draw.integers(len(SPECIAL), len(vocab), lengths.sum(), np.int32)
        writer.add("held_out" if number % 100 == 0 else "train", number, tokens, lengths, 0)
    writer.close({})
    assemble(folder, [unit], tokenizer, {})


def opened(corpus: str) -> Instances:
    """The training instances of a corpus, nothing planned yet."""
    split = open_corpus(corpus).splits["train"]
    return Instances(split, BASE.seq_length, 0, Template((2,), (3,), (3,), 0))


def plan_a_pass(corpus: str) -> Turn:
    """From the opened corpus to the order of a pass."""

    def turn(times: int) -> None:
        for _ in range(times):
            opened(corpus).order(0)

    return turn


def make_batches(corpus: str) -> Turn:
    """The next batches of a pass that is under way: so many that those made ahead do not count."""
    batches = train_batches(opened(corpus), 256, 0, 10**9)

    def turn(times: int) -> None:
        for _ in range(100 * times):
            next(batches)

    return turn


def step(shape: Shape, devices: int) -> Turn:
    """A training step."""
    jax.config.update("jax_num_cpu_devices", devices)
    return ours(shape)


def save(shape: Shape, folder: Path) -> Turn:
    """A save of the state, waited for."""
    state = trainer_of(shape)[0].init()
    checkpoints, number = Checkpoints(folder, keep=1), 0

    def turn(times: int) -> None:
        nonlocal number
        for _ in range(times):
            number += 1
            checkpoints.save(number, state)
            checkpoints.wait()

    return turn


def points(folder: Path) -> dict[str, dict[str, Contender]]:
    """By curve, by place on its axis."""
    curves: dict[str, dict[str, Contender]] = {}
    for documents in _DOCUMENTS.value:
        corpus = folder / documents
        write_corpus(corpus, int(documents))
        measures = {"planning a pass": plan_a_pass, "100 batches of 256": make_batches}
        for name, measure in measures.items():
            curve = curves.setdefault(f"{name}, by documents", {})
            curve[documents] = functools.partial(measure, str(corpus))
    curves["a step, by rows"] = {
        rows: functools.partial(step, dataclasses.replace(BASE, batch_size=int(rows)), 1)
        for rows in _ROWS.value
    }
    sized = {size: dataclasses.replace(BASE, size=size) for size in _SIZES.value}
    curves["a step, by size"] = {
        size: functools.partial(step, one, 1) for size, one in sized.items()
    }
    curves["a save, by size"] = {
        size: functools.partial(save, one, folder / size) for size, one in sized.items()
    }
    curves["a step, by devices"] = {
        devices: functools.partial(step, BASE, int(devices)) for devices in _DEVICES.value
    }
    return curves


def plot(curves: dict[str, dict[str, Result]], path: Path) -> None:
    """A panel for each curve, doubly logarithmic, beside growth in proportion."""
    figure = Figure(figsize=(14, 7))
    axes = figure.subplots(2, 3)
    for axis, (name, curve) in zip(axes.flat, curves.items(), strict=True):
        what, by = name.split(", by ")
        layers = {size: 12 * one["layers"] * one["width"] ** 2 for size, one in SIZES.items()}
        places = [float(layers[place]) if place in SIZES else float(place) for place in curve]
        seconds = [result.seconds for result in curve.values()]
        spread = [
            [r.seconds - min(r.wall) for r in curve.values()],
            [max(r.wall) - r.seconds for r in curve.values()],
        ]
        axis.errorbar(places, seconds, spread, marker="o", capsize=3)
        if by == "devices":  # they share the same cores: at best they are no slower
            axis.axhline(seconds[0], linestyle="--", color="grey", label="constant")
        else:
            ideal = [seconds[-1] * place / places[-1] for place in places]
            axis.plot(places, ideal, "--", color="grey", label="in proportion")
        axis.set(xscale="log", yscale="log", title=what, ylabel="seconds")
        axis.set_xticks(places, labels=list(curve))
        axis.set_xticks([], minor=True)
        axis.set_xlabel("size, by parameters of the layers" if by == "size" else by)
        axis.legend()
    figures.save(figure, path)


def main() -> None:
    """Measures all points, curve by curve."""
    if not OUTPUT.value:
        raise errors.UserError("--output=FILE.png is needed")
    output = check_output(Path(OUTPUT.value))
    with tempfile.TemporaryDirectory() as folder:
        curves = points(Path(folder))
        results = {name: contest(curve) for name, curve in curves.items()}
    plot(results, output)
    for name, curve in results.items():
        print(f"\n{name}\n")
        show(curve, {})
    flat = {f"{name}: {place}": r for name, curve in results.items() for place, r in curve.items()}
    print(as_json("scaling", flat))


if __name__ == "__main__":
    entry.run(main)
