"""Pre-training, from a prepared corpus to a work directory.

  python -m bert_jax.main --config=configs/pretrain.py:size=base,seq=128 \
      --config.corpus=CORPUS --workdir=RUN

The same command continues a run that was stopped or killed, to the bit. The start is, in this
order: the newest checkpoint of the work directory, `init_from`, scratch.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.common import entry
from bert_jax.common.command_line import CONFIG, WORKDIR, changed, read_config
from bert_jax.common.errors import UserError
from bert_jax.common.files import read_json, read_text, write_whole
from bert_jax.common.outputs import check_folder
from bert_jax.data.corpus import Corpus, Split, open_corpus
from bert_jax.data.instances import Batch, Instances, empty_batch
from bert_jax.data.loader import eval_batches, logged, train_batches
from bert_jax.data.template import Template
from bert_jax.families import build_objective, family_of
from bert_jax.objectives.base import Pretraining
from bert_jax.reports.pretraining import is_finished, write_report
from bert_jax.training import distributed, loop, memory, sharding
from bert_jax.training.checkpoint import has_checkpoint
from bert_jax.training.compile_cache import keep_programs
from bert_jax.training.config import Stretch, stretches
from bert_jax.training.settings import PRETRAIN
from bert_jax.training.trainer import Trainer, build_trainer
from bert_jax.training.workdir import alone_in, format_of, prepare_workdir
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import merge

# What may change when a run is continued, and what may grow; else it would be another run.
MAY_CHANGE = (
    "corpus", "init_from", "workers", "log_every", "eval_every", "eval_instances",
    "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "keep_every", "mesh",
    "log_instances", "accumulation", "model.remat", "model.scan_layers",
)  # fmt: skip
MAY_GROW = ("steps",)


def main() -> None:
    config = read_config(CONFIG, PRETRAIN)
    if config is None or not WORKDIR.value:
        raise UserError("both --config=configs/pretrain.py:... and --workdir=FOLDER are needed")
    memory.keep_freed_memory()
    distributed.initialize()
    keep_programs()
    pretrain(config, check_folder(Path(WORKDIR.value)), changed())


def pretrain(config: Any, workdir: Path, chosen: Collection[str] = ()) -> None:
    """Trains to the end and reports, from wherever the work directory is.

    chosen: names of fields that the user set.
    Raises: UserError: a setting, the corpus, `init_from` or what lies in `workdir` does not fit;
      else as `loop.run`.
    """
    family = family_of(config)
    family.settings.check(config, chosen)
    if not config.corpus:
        raise UserError("--config.corpus=FOLDER is needed")
    corpus = open_corpus(config.corpus)
    format = format_of(workdir)
    objective = build_objective(config, corpus.tokenizer.vocabulary, format)
    mesh = sharding.make_mesh(config.mesh)
    phases = build_phases(config, corpus, objective, mesh)
    schedule = build_schedule(config, objective)
    example = empty_batch(objective.layout, 1, phases[0].seq_length)
    trainer = build_trainer(config, mesh, config.steps, objective, example, format=format)
    trainer.check_memory()
    starts = config.init_from and not distributed.from_main(has_checkpoint(workdir))
    initial = _initial_params(config, corpus, trainer) if starts else None
    longer = loop.longer(config, config.steps, workdir)
    # Only now: a config that cannot be leaves nothing behind.
    _prepare(config, corpus, workdir)
    distributed.say(longer)
    if distributed.from_main(is_finished(workdir, config.steps)):
        if distributed.is_main():
            print(read_text(workdir / "report.md"))
            print(f"{workdir} is finished: nothing left to train")
        return
    if config.log_instances:
        path = workdir / f"instances-{jax.process_index()}.jsonl"
        phases = [dataclasses.replace(p, batches=_logged(p.batches, path)) for p in phases]
    for line in family.settings.never_reached(config, config.steps, chosen):
        distributed.say(line)
    distributed.say(passes(phases))
    with alone_in(workdir):
        state, held_out = loop.run(trainer, phases, schedule, workdir, initial)
    params = sharding.to_host(state["params"])
    if distributed.is_main():
        last = phases[-1]
        batches = held_out_batches(config, corpus, objective, last.seq_length, last.batch_size)
        write_report(workdir, corpus, objective, params, config.steps, held_out, batches)
    distributed.wait_for_all("the report is written")


def build_schedule(config: Any, objective: Pretraining) -> loop.Schedule:
    """How often the loop does what."""
    return loop.Schedule(
        config.steps, config.log_every, config.eval_every, config.checkpoint_every,
        config.keep_checkpoints, config.keep_every, objective.metrics[0],
        config.checkpoint_minutes,
    )  # fmt: skip


def build_phases(
    config: Any, corpus: Corpus, objective: Pretraining, mesh: jax.sharding.Mesh
) -> list[loop.Phase]:
    """One phase, or a short one and a long one (paper, A.2)."""
    return [_phase(config, corpus, objective, mesh, part) for part in stretches(config)]


def _phase(
    config: Any,
    corpus: Corpus,
    objective: Pretraining,
    mesh: jax.sharding.Mesh,
    part: Stretch,
) -> loop.Phase:
    size, seq_length = part.batch_size, part.seq_length
    sharding.check_batch(mesh, size, config.accumulation)
    rows = sharding.local_rows(mesh, size)
    instances = _instances(config, corpus, objective, "train", seq_length, config.seed)
    shape = size // config.accumulation, seq_length
    distributed.say(sharding.on_mesh(mesh, objective.backbone.without)(*shape))
    flops = objective.flops(size, seq_length)
    return loop.Phase(
        start=part.start,
        stop=part.stop,
        seq_length=seq_length,
        batch_size=size,
        flops=lambda _: flops,
        batches=functools.partial(
            train_batches, instances, size, workers=config.workers, rows=rows
        ),
        evaluation=functools.partial(
            held_out_batches, config, corpus, objective, seq_length, size, rows
        ),
        per_pass=lambda: instances.per_pass,
    )


def passes(phases: Sequence[loop.Phase]) -> str:
    """How often a run goes over its corpus, as `10,000 steps of 16 sequences: 3.2 passes ...`."""
    parts = []
    total = 0.0
    for phase in phases:
        steps = phase.stop - phase.start
        length = f" of {phase.seq_length} tokens" if len(phases) > 1 else ""
        parts.append(f"{steps:,} steps of {phase.batch_size:,} sequences{length}")
        total += steps * phase.batch_size / (phase.per_pass() if phase.per_pass else 1)
    shown = f"{total:.1f}" if total < 10 else f"{total:,.0f}"
    return f"{', then '.join(parts)}: {shown} passes over the corpus"


def held_out_batches(
    config: Any, corpus: Corpus, objective: Pretraining, seq_length: int, batch_size: int,
    rows: np.ndarray | None = None,
) -> list[Batch]:  # fmt: skip
    """Makes the held-out set, the same for every run on this corpus.

    rows: of each batch, None: all.
    """
    instances = _instances(config, corpus, objective, "held_out", seq_length, seed=0)
    return eval_batches(instances, batch_size, config.eval_instances, rows)


def _instances(
    config: Any, corpus: Corpus, objective: Pretraining, split: str, seq_length: int, seed: int
) -> Instances:
    family = family_of(config)
    options = family.layout_options(config)
    copies = family.dupe_factor(config) if split == "train" else None
    tokenizer = corpus.tokenizer
    tokenizer.template = family.template(tokenizer.vocabulary)
    return _made(
        corpus.splits[split], seq_length, seed, tokenizer.template, objective.layout,
        tuple(options.items()), copies,
    )  # fmt: skip


# So the held-out set is planned once a run, not at every evaluation.
@functools.lru_cache(maxsize=8)
def _made(
    split: Split, seq_length: int, seed: int, template: Template, layout: str,
    options: tuple[tuple[str, Any], ...], dupe_factor: int | None,
) -> Instances:  # fmt: skip
    return Instances(split, seq_length, seed, template, layout, dict(options), dupe_factor)


def _logged(batches: Callable[..., Any], path: Path) -> Callable[[int, int], Any]:
    return lambda start, stop: logged(batches(start, stop), start, path)


def _initial_params(config: Any, corpus: Corpus, trainer: Trainer) -> Any:
    """The parameters of the model `init_from`, on the mesh; it must have the same vocabulary."""
    source = open_model(config.init_from)
    if source.tokenizer.tokens != corpus.tokenizer.tokens:
        raise UserError(
            f"init_from={config.init_from} has another vocabulary than {corpus.path}: prepare the "
            "corpus with it (bert_jax.prepare --config.vocab=FOLDER of its vocabulary)"
        )
    if source.family != config.family:
        raise UserError(f"init_from={config.init_from} is of family={source.family}")
    for name in ("activation", "norm_epsilon", "causal"):  # what shapes do not show
        value = source.model.get(name, config.model[name])
        if value != config.model[name]:
            raise UserError(f"init_from={config.init_from} has {value} as its model.{name}")
    wanted = trainer.abstract_state["params"]
    params, new, unused = merge(wanted, source.params, config.init_from)
    if new:  # pre-training goes on with all of its heads or not at all
        without = "; --config.nsp=false trains without" if new == ["nsp_head"] else ""
        raise UserError(f"init_from={config.init_from} lacks {', '.join(new)}{without}")
    for note in [*source.notes, *(f"init_from: {name} is not used" for name in unused)]:
        distributed.say(note)
    return jax.device_put(params, jax.tree.map(lambda x: x.sharding, wanted))


def check_corpus(workdir: Path, corpus: Path) -> None:
    """Checks that a run is on this corpus, whose folder may have moved; what is in it decides.

    Raises: UserError: it is on another.
    """
    ours, theirs = (read_json(folder / "corpus.json") for folder in (workdir, corpus))
    for one, other in ((ours, theirs), (theirs, ours)):  # those of before have no digests
        one.setdefault("digests", other.get("digests"))
    if ours != theirs:
        raise UserError(f"{workdir} holds a run on another corpus than {corpus}")


def _prepare(config: Any, corpus: Corpus, workdir: Path) -> None:
    """Prepares the work directory, which also holds the description of the corpus."""

    def copy(folder: Path) -> None:
        write_whole(folder / "corpus.json", (corpus.path / "corpus.json").read_bytes())

    check = functools.partial(check_corpus, workdir, corpus.path)
    plain = config.to_dict()
    prepare_workdir(workdir, plain, MAY_CHANGE, corpus.tokenizer, copy, check, MAY_GROW)


if __name__ == "__main__":
    entry.run(main)
