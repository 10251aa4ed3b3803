"""Compiles a pre-training config for a TPU slice without a TPU: does it fit, and what will it cost?

  python -m bert_jax.plan --config=configs/pretrain.py:size=large,seq=512 --topology=v5e:16x16
  python -m bert_jax.plan --config=... --topology=v5e:16x16 --slices=4 --output=plan.json
  python -m bert_jax.plan --config=... --topology=v4:4x4x8 --search

The step is the trainer's own, compiled on this machine's CPU by the real TPU compiler: that takes
`pip install 'jax[tpu]'` and minutes, but no corpus. Topologies are in chips: AxB of v2, v3, v5e and
v6e, AxBxC of v4, v5p and 7x. --slices joins several by the data-centre network; the data axis of
the mesh runs across them. --search finds the largest batch that fits, in powers of two, with and
without rematerialisation. launch/plan_table.sh fills a table over many slices.

Memory, collectives and FLOPs are those of the compiled program; activations are what its forward
pass leaves to its backward pass, temporaries everything else that comes and goes. Where it does not
fit, the compiler tells no kinds: both are in temporaries. Times are estimates, never compared with
a TPU:
- computing: the compiler's cycles, a loop's as often as it runs. They come close for large matrix
  products, and are up to five times too high for reductions and copies.
- unestimated: instructions for which it has no figure (gather, scatter, sort, Pallas kernels), as
  bytes over HBM bandwidth; listed in the output.
- communicating: collectives as rings along one axis of the slice, both ways; between slices, bytes
  over the network. Nothing is taken to overlap, although some of it will.
Hours are those of the steps alone: no compilation, evaluation or saving, no waiting for data.
"""

import dataclasses
import functools
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from bert_jax.common import entry
from bert_jax.common.command_line import CONFIG, OUTPUT, SLICES, TOPOLOGY, changed, read_config
from bert_jax.common.errors import UserError
from bert_jax.common.files import read_json, write_json
from bert_jax.common.outputs import check_output
from bert_jax.data.corpus import open_corpus
from bert_jax.data.instances import empty_batch
from bert_jax.data.template import Vocabulary
from bert_jax.families import build_objective, family_of
from bert_jax.objectives.base import Pretraining
from bert_jax.planning import tpu
from bert_jax.planning.program import Program, read_program
from bert_jax.planning.text import plan_text, search_text
from bert_jax.training import sharding
from bert_jax.training.config import stretches
from bert_jax.training.settings import PRETRAIN
from bert_jax.training.trainer import build_trainer

_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 30522, "Used where the config names no corpus.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch that fits.")

Plan = dict[str, Any]  # plain values; bytes and seconds, of one device where nothing else is said


def main() -> None:
    if CONFIG.value is None or not TOPOLOGY.value:
        raise UserError("both --config=configs/pretrain.py:... and --topology=v5e:16x16 are needed")
    config = read_config(CONFIG, PRETRAIN)
    output = check_output(Path(OUTPUT.value), _is_ours) if OUTPUT.value else None
    if config is None:
        raise UserError("only pre-training is planned: --config=configs/pretrain.py")
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here stays free
    family_of(config).settings.check(config, changed())
    if config.corpus and flags.FLAGS["vocab_size"].present:
        raise UserError("--vocab_size has no effect with corpus, which has its own vocabulary")
    if config.dtype == "auto":
        config.dtype = "bfloat16"
    target = tpu.open_slice(TOPOLOGY.value, SLICES.value)
    vocabulary = (
        open_corpus(config.corpus).tokenizer.vocabulary
        if config.corpus
        else stand_in(_VOCAB_SIZE.value)
    )
    objective = build_objective(config, vocabulary)
    find, as_text = (search, search_text) if _SEARCH.value else (plan, plan_text)
    result = find(config, objective, target)
    if output:
        write_json(output, result)
    print(as_text(result))


def _is_ours(path: Path) -> bool:
    """Says whether a file holds a plan, so that a new one may replace it."""
    try:
        return {"topology", "slices", "mesh"} <= read_json(path).keys()
    except UserError:
        return False


def stand_in(vocab_size: int) -> Vocabulary:
    """Makes a vocabulary of that size, of which a program depends on no more."""
    roles = ("pad", "unk", "cls", "sep", "mask")
    ids = {role: number for number, role in enumerate(roles)}
    return Vocabulary(vocab_size, ids, np.zeros(vocab_size, bool))


def plan(config: Any, objective: Pretraining, target: tpu.Slice) -> Plan:
    """The config as it is, each phase with its sequence length."""
    phases: list[Plan] = [
        {"start": part.start, "stop": part.stop}
        | compile_step(config, objective, target, part.seq_length, part.batch_size)
        for part in stretches(config)
    ]
    result = _described(config, target) | {
        "fits": all(phase["fits"] for phase in phases),
        "phases": phases,
    }
    if result["fits"]:
        steps = [(p["stop"] - p["start"], p["estimate"]["step_seconds"]) for p in phases]
        result["hours"] = sum(count * seconds for count, seconds in steps) / 3600
        result["chip_hours"] = result["hours"] * target.chips
    return result


def _described(config: Any, target: tpu.Slice) -> Plan:
    return {
        "topology": target.name,
        "slices": target.count,
        "chips": target.chips,
        "devices": len(target.devices),
        "mesh": dict(sharding.make_mesh(config.mesh, target.devices).shape),
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "jax": jax.__version__,
    }


def compile_step(
    config: Any,
    objective: Pretraining,
    target: tpu.Slice,
    seq_length: int,
    batch_size: int,
    how: str = "",
) -> Plan:
    """Compiles the trainer's step for global batches of this shape; how: to say meanwhile."""
    mesh = sharding.make_mesh(config.mesh, target.devices)
    sharding.check_batch(mesh, batch_size, config.accumulation)
    batch = abstract_batch(mesh, objective.layout, batch_size, seq_length)
    example = empty_batch(objective.layout, 1, seq_length)
    trainer = build_trainer(config, mesh, config.steps, objective, example)
    state = trainer.abstract_state
    known = {
        "parameters": device_bytes(state["params"]),
        "optimizer": device_bytes(state["opt_state"]),
        "batch": device_bytes(batch),
    }
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = batch_size // config.accumulation // shards
    print(f"compiling: {rows:,} rows of {seq_length} a device{how} ...", file=sys.stderr)
    lowered = trainer.lower(batch)
    begin = time.perf_counter()
    compiled = _compile(lowered)
    flops = objective.flops(batch_size, seq_length)
    result: Plan = {
        "seq_length": seq_length,
        "rows": rows,  # of a device, at a time
        "compile_seconds": time.perf_counter() - begin,
        "model_flops": flops,  # of a step, all devices
        "model_flops_per_token": flops / (batch_size * seq_length),
    }
    if isinstance(compiled, tuple):
        return result | {"fits": False, "memory": _memory(known, *compiled)}
    stats = compiled.memory_analysis()
    program = read_program(compiled.as_text())
    known |= {
        "program": stats.generated_code_size_in_bytes,
        "activations": program.activations,
    }
    needed = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes  # the new state takes the place of the old
        + stats.temp_size_in_bytes
        + known["program"]
    )
    tokens = batch_size * seq_length
    return result | {
        "fits": needed <= target.chip.memory,
        "memory": _memory(known, needed, target.chip.memory),
        "collectives": _by_kind(program),
        "unestimated": [dataclasses.asdict(kernel) for kernel in program.unestimated],
        "unknown_loops": program.unknown_loops,
        "estimate": estimate(
            program, target.chip, target.peak, flops / len(target.devices), tokens
        ),
    }


def _compile(lowered: Any) -> Any:
    """The compiled program; if it does not fit, (bytes needed, bytes there)."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (sizes := out_of_memory(str(error))) is None:
            raise
        return sizes


def abstract_batch(
    mesh: jax.sharding.Mesh, layout: str, batch_size: int, seq_length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch, as of `Instances.batch`."""
    rows = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        for name, x in empty_batch(layout, batch_size, seq_length).items()
    }


def device_bytes(tree: Any) -> int:
    """Bytes of one device's shards of a tree of shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def out_of_memory(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes there) by the compiler's message; None: it is of something else."""
    size = r"([\d.]+)([KMGT]?)"
    patterns = [rf"\({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm"]
    for pattern in patterns:
        if match := re.search(pattern, message):
            needed, needed_unit, there, there_unit = match.groups()
            units = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
            return (
                int(float(needed) * 1024 ** units[needed_unit]),
                int(float(there) * 1024 ** units[there_unit]),
            )
    return None


def _memory(known: Mapping[str, int], needed: int, available: int) -> Plan:
    """HBM by kind. temporaries: gradients, workspaces, and the padding of all arrays."""
    return {
        **known,
        "temporaries": needed - sum(known.values()),
        "needed": needed,
        "available": available,
        "free": available - needed,  # below 0: so much is missing
    }


def _by_kind(program: Program) -> Plan:
    """Collectives by kind: how many a step, of how large arrays, and what a device sends."""
    result: Plan = {}
    for one in program.collectives:
        total = result.setdefault(one.kind, {"count": 0, "bytes": 0, "sent": 0})
        total["count"] += one.times
        total["bytes"] += one.times * one.bytes
        total["sent"] += round(one.times * one.sent)
    return result


def estimate(
    program: Program, chip: tpu.Chip, peak: float, flops: float, tokens: int
) -> dict[str, float]:
    """Times of a step; see the module's docstring.

    Args:
      peak: FLOP/s of a device. flops: model FLOPs of a device. tokens: of all devices.
    """
    computing = program.cycles * chip.flops_per_cycle / peak
    unestimated = sum(kernel.bytes for kernel in program.unestimated) / chip.memory_bandwidth
    speed = {"send": chip.network / chip.devices}
    communicating = sum(
        one.times * one.sent / speed.get(one.kind, 2 * chip.link) for one in program.collectives
    )
    seconds = computing + unestimated + communicating
    return {
        "cycles": program.cycles,
        "computing_seconds": computing,
        "unestimated_seconds": unestimated,
        "communicating_seconds": communicating,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": flops / seconds / peak,
    }


def search(config: Any, objective: Pretraining, target: tpu.Slice) -> Plan:
    """The most rows a device holds at a time, at the longest sequence, by rematerialisation."""
    mesh = sharding.make_mesh(config.mesh, target.devices)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    sharding.check_batch(mesh, config.batch_size, config.accumulation)
    wanted = config.batch_size // config.accumulation // shards
    seq_length = max(part.seq_length for part in stretches(config))
    tries: list[Plan] = []

    def measure(remat: bool, rows: int) -> Plan:
        trial = config.copy_and_resolve_references()
        trial.accumulation = 1
        changed = objective.with_options(remat=remat)
        how = ", rematerialised" if remat else ""
        step = compile_step(trial, changed, target, seq_length, rows * shards, how)
        tries.append({"remat": remat, **step})
        return tries[-1]

    most = {
        name: most_rows(functools.partial(measure, remat), wanted)
        for name, remat in (("none", False), ("layers", True))  # the cheaper first
    }
    return _described(config, target) | {
        "wanted_rows": wanted,  # by the config
        "most_rows": most,
        "cheapest": next((name for name, rows in most.items() if rows >= wanted), None),
        "tries": tries,
    }


def most_rows(measure: Callable[[int], Plan], start: int) -> int:
    """The largest power of two that fits, 0 if not even 1 does.

    measure: compiles with so many rows. The first result, at about `start`, says where to look:
    memory beyond the state grows with the rows.
    """
    rows = 2 ** int(math.log2(start))
    results = {rows: measure(rows)}
    memory = results[rows]["memory"]
    fixed = memory["parameters"] + memory["optimizer"]
    room = (memory["available"] - fixed) / (memory["needed"] - fixed) * rows
    rows = 2 ** int(math.log2(max(room, 1)))
    while True:
        if rows not in results:
            results[rows] = measure(rows)
        more = rows * 2 if results[rows]["fits"] else rows // 2
        if more in results or not more:
            return max((rows for rows, result in results.items() if result["fits"]), default=0)
        rows = more


if __name__ == "__main__":
    entry.run(main)
