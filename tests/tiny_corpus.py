"""A small corpus with a grammar that a tiny model learns in seconds, and a run shrunk to it.

Its fixtures are there for every test (conftest.py).
"""

import fcntl
import functools
import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bert_jax import main
from bert_jax.data.corpus import Corpus, open_corpus
from bert_jax.data.instances import empty_batch
from bert_jax.data.tokenizer import Tokenizer, wordpiece_tokenizer
from bert_jax.families import build_objective
from bert_jax.preparing.corpus_writer import UnitWriter, assemble
from bert_jax.training import loop, optim, sharding
from bert_jax.training.trainer import Trainer
from configs import pretrain

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ADJECTIVES = "old new big small red blue green dark bright cold warm quiet loud heavy light"
# A document has one topic: nouns, then verbs of its own.
TOPICS = [
    ("ship sailor wave harbor island captain storm anchor", "sees crosses leaves fears"),
    ("garden flower bee tree root seed leaf farmer", "plants waters grows finds"),
    ("bread oven cook kitchen table soup knife spoon", "cuts eats serves tastes"),
    ("song singer violin drum stage choir dancer melody", "hears plays praises follows"),
    ("city street tower bridge market wall gate soldier", "guards builds enters passes"),
    ("book letter poet page story word pen library", "reads writes keeps copies"),
    ("star moon planet sky comet night telescope scholar", "watches counts names draws"),
    ("horse rider valley river hill wolf shepherd flock", "drives chases leads loses"),
]
SMALL = {  # of a config: what makes it a run of a second; the dropout of the preset stays
    "batch_size": 16,
    "seq_length": 32,
    "steps": 12,
    "learning_rate": 3e-3,
    "model.layers": 2,
    "model.width": 16,
    "model.heads": 2,
    "model.max_positions": 64,
    "log_every": 4,
    "eval_every": 6,
    "eval_instances": 40,
    "checkpoint_every": 6,
}


_TRAINERS: dict[tuple[str, jax.sharding.Mesh], Trainer] = {}


def sentence(rng: random.Random, topic: int) -> str:
    """`the [ADJECTIVE] NOUN VERB the [ADJECTIVE] NOUN.`, some nouns in the plural."""
    nouns, verbs = (words.split() for words in TOPICS[topic])

    def noun() -> str:
        adjective = f"{rng.choice(ADJECTIVES.split())} " if rng.random() < 0.5 else ""
        return f"the {adjective}{rng.choice(nouns)}{rng.choice(['', 'zz'])}"

    return f"{noun()} {rng.choice(verbs)} {noun()}."


def documents() -> list[list[str]]:
    """240 documents of 4 to 12 sentences; the same every time."""
    rng = random.Random(0)
    return [
        [sentence(rng, number % len(TOPICS)) for _ in range(rng.randint(4, 12))]
        for number in range(240)
    ]


def tokenizer() -> Tokenizer:
    """A WordPiece of the words above and of single letters: 201 ids."""
    words = [word for part in TOPICS for words in part for word in words.split()]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["##" + letter for letter in letters] + ["##zz", "the", ".", ","]
    return wordpiece_tokenizer([*SPECIAL, *pieces, *letters, *ADJECTIVES.split(), *words])


def write_corpus(folder: Path) -> Path:
    """Writes the corpus; every tenth document is held out."""
    made = tokenizer()
    unit = folder / ".partial" / "unit-00000"
    writer = UnitWriter(unit, made.vocab_size)
    for number, sentences in enumerate(documents()):
        ids = made.encode_batch(sentences)
        lengths = np.array([len(tokens) for tokens in ids], np.int32)
        split = "train" if number % 10 else "held_out"
        flat = np.array(list(itertools.chain(*ids)), np.int32)
        writer.add(split, number, flat, lengths, sum(map(len, sentences)))
    writer.close({})
    assemble(folder, [unit], made, {})
    return folder


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    """Folder of the tiny corpus; not to be changed."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def corpus(corpus_path) -> Corpus:
    """The tiny corpus, opened."""
    return open_corpus(corpus_path)


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> Path:
    """Work directory of a model that has learnt something; not to be changed.

    It is trained once, by the worker that needs it first; the others wait for it.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    workdir = folder / "trained"
    with (folder / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not workdir.exists():
            _train(corpus, workdir.with_name("trained.tmp")).rename(workdir)
    return workdir


def _train(corpus: Corpus, workdir: Path) -> Path:
    config = small_config(
        "size=tiny,preset=laptop", steps=500, warmup_steps=50, model__width=64, model__heads=4,
        log_every=50, eval_every=500, checkpoint_every=500,
    )  # fmt: skip
    corpus.tokenizer.save(workdir / "tokenizer")
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    trainer, phases = make_trainer(config, corpus)
    loop.run(trainer, phases, make_schedule(config), workdir)
    return workdir


def overrides(**changes: Any) -> dict[str, Any]:
    """SMALL with changes by name; `__` stands for the dot, as in `model__width=8`."""
    return SMALL | {name.replace("__", "."): value for name, value in changes.items()}


def small_config(arg: str = "size=tiny", **changes: Any) -> ConfigDict:
    """The shipped config with `overrides`."""
    config = pretrain.get_config(arg)
    config.lock()
    config.update_from_flattened_dict(overrides(**changes))
    return config


def flags(folder: Path, workdir: Path, arg: str = "size=tiny", /, **changes: Any) -> dict[str, str]:
    """The flags of the same run on the corpus in `folder`."""
    config = Path(pretrain.__file__).resolve()
    values = {"corpus": folder, **overrides(**changes)}
    result = {"--config": f"{config}:{arg}", "--workdir": str(workdir)}
    return result | {f"--config.{name}": str(value) for name, value in values.items()}


def words(flags: dict[str, str]) -> list[str]:
    """Flags as words of a command line."""
    return [f"{name}={value}" for name, value in flags.items()]


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device alone."""
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), sharding.MESH_AXES, axis_types=auto, devices=jax.devices()[:1])


def make_trainer(
    config: ConfigDict, corpus: Corpus, mesh: jax.sharding.Mesh | None = None
) -> tuple[Trainer, list[loop.Phase]]:
    """The run of a config up to its loop; on one device unless `mesh` is given.

    A trainer of a config is made, and so compiled, once a session, whatever the config's schedule.
    """
    mesh = mesh or one_device()
    objective = build_objective(config, corpus.tokenizer.vocabulary)
    phases = main.build_phases(config, corpus, objective, mesh)
    known = config.to_dict()
    for name in ("log_every", "eval_every", "eval_instances", "checkpoint_every",
                 "checkpoint_minutes"):  # fmt: skip
        del known[name]
    key = json.dumps(known), mesh
    if key not in _TRAINERS:
        rate = optim.learning_rate(
            config.learning_rate, config.steps, max(config.warmup_steps, 0), "warmup"
        )
        optimizer = functools.partial(optim.optimizer, config.optimizer)
        example = empty_batch(objective.layout, 1, phases[0].seq_length)
        _TRAINERS[key] = Trainer(
            objective, optimizer, rate, mesh, example, config.seed, config.accumulation
        )
    return _TRAINERS[key], phases


def make_schedule(config: ConfigDict) -> loop.Schedule:
    """The schedule of a config."""
    return loop.Schedule(
        config.steps, config.log_every, config.eval_every, config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints, checkpoint_minutes=config.checkpoint_minutes,
    )  # fmt: skip
