"""The pre-training step as the TPU compiler sees it, compiled without a TPU: what costs how much.

  python -m benchmarks.tpu_step --size=base --seq_length=128 --rows=256 --topology=v5e:2x2
  python -m benchmarks.tpu_step --size=mini --figure_c --peer
  python -m benchmarks.tpu_step --config=configs/pretrain.py:size=base,seq=512 --rows=32 \
      --config.model.remat=true

The trainer's own step, in bfloat16, and with --peer that of BertForPreTraining in Flax, which
takes pip install 'transformers<5': by part of the model and kind of operation, in million cycles
of a device. No figure is a time.

  A  the compiler's estimates. Fair for large matrix products, three to five times too high for
     reductions, copies and small batched products; none for gathers, scatters, sorts, random bits
     of the hardware's generator, and Pallas kernels.
  C  (--figure_c, which takes several times as long) of each operation the longest of three: the
     instructions of its final schedule, loops as often as they run; its bytes over HBM bandwidth;
     its matrix products at the peak. As if nothing ever waited; a loop whose length the schedule
     does not tell counts once.
  A+ (with C, if there are Pallas kernels) A, and C of the kernels.

An operation is all that the compiler fused. It counts as of the part that its matrix product is
from, without one as of that of its last instruction, though it may hold work of others. Tables,
and one JSON line.
"""

import dataclasses
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from benchmarks.our_step import VOCAB_SIZE
from benchmarks.provenance import provenance
from bert_jax import plan
from bert_jax.common import entry
from bert_jax.common.command_line import CONFIG, TOPOLOGY
from bert_jax.common.errors import UserError
from bert_jax.data.instances import empty_batch
from bert_jax.families import build_objective
from bert_jax.objectives.base import Pretraining
from bert_jax.planning import tpu
from bert_jax.planning.program import Operation, read_program
from bert_jax.training import sharding
from bert_jax.training.settings import PRETRAIN
from bert_jax.training.trainer import build_trainer
from configs import pretrain

_SIZE = flags.DEFINE_string("size", "base", "Size of the model, where no --config is given.")
_SEQ_LENGTH = flags.DEFINE_integer("seq_length", 128, "Tokens of a row, likewise.", lower_bound=8)
_ROWS = flags.DEFINE_integer("rows", 256, "Rows of a device, at a time.", lower_bound=1)
_FIGURE_C = flags.DEFINE_bool("figure_c", False, "Also figure C.")
_PEER = flags.DEFINE_bool("peer", False, "Also the peer.")

_KINDS = ("product", "kernel", "lookup", "reduction", "copy", "elementwise")
_MOVES = {  # opcodes that only move data
    "copy", "transpose", "reshape", "bitcast", "slice", "concatenate", "pad", "broadcast", "iota",
    "convert", "bitcast-convert", "reverse", "dynamic-slice", "dynamic-update-slice", "fusion",
    "parameter", "constant", "tuple", "get-tuple-element",
}  # fmt: skip
_PARTS = {  # of the model, by op_name, ours or the peer's; the first that fits
    "embeddings": r"/embeddings/",
    "norms": r"_norm/|/layer/.*/LayerNorm/",
    "attention": r"/attention/",
    "feed forward": r"/(feed_forward|intermediate|output)/",
    "residual, dropout": r"/layer[_/]\d+/|/Block/|/encoder/|jvp\(Encoder\)",
    "sentence pairs": r"\((Pooler|Classifier)\)|/pooler/|/seq_relationship/",
    "masking": r"\(vmap\(",
    "MLM head, losses": r"jvp\(",
    "optimizer": r"^jit\(_?step\)/",
}


def kind_of(operation: Operation) -> str:
    """A column of the table, by what is in the operation."""
    opcodes = operation.opcodes
    if opcodes & {"convolution", "dot"}:
        return "product"
    if opcodes == {"custom-call"}:
        return "kernel"
    if opcodes & {"gather", "scatter", "sort", "custom-call"}:
        return "lookup"
    if opcodes & {"reduce", "reduce-window"}:
        return "reduction"
    return "copy" if opcodes <= _MOVES else "elementwise"


def part_of(operation: Operation) -> str:
    """A row of the table."""
    found = (part for part, pattern in _PARTS.items() if re.search(pattern, operation.source))
    return next(found, "unnamed")


# Figure C


def write_schedules(folder: str) -> None:
    """Has the compiler write the final schedules of all to come; its library is not loaded yet."""
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={folder} "
        "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=^final_bundles$"
    )


def read_schedules(folder: str) -> dict[str, int]:
    """Instructions by operation; the files of the folder are gone afterwards."""
    found = {}
    for path in Path(folder).iterdir():
        if match := re.fullmatch(r"\d+-(.+)-\d+-final_bundles.txt", path.name):
            found[match[1]] = issued(path.read_text(encoding="utf-8"))
        path.unlink()
    return found


def issued(text: str) -> int:
    """Instructions (of the whole core, one a cycle) that run by the text of a final schedule.

    A line of it is ` 0x1f LB: >> { ... }`: an address, LB where the body of a loop begins, a `>`
    for each loop around it (which the last lines of a block may lack), and what is done.
    """
    pattern = r"^ *(?:0x)?[0-9a-f]+ +([A-Z]{2})? *:( *>*) (\{[^}]*(?:\}[^}\n]+)*)"
    lines = re.findall(pattern, text, re.MULTILINE)
    depths = [marks.count(">") for _, marks, _ in lines]
    for i in reversed(range(1, len(lines))):  # a loop is entered at its LB only
        depths[i - 1] = max(depths[i - 1], depths[i] - (lines[i][0] == "LB"))
    loops = [_Loop()]  # the whole, and the loops around a line

    def leave(depth: int) -> None:
        while len(loops) > depth + 1:
            loop = loops.pop()
            loops[-1].count += loop.count * loop.times

    for depth, (label, _, line) in zip(depths, lines, strict=True):
        leave(depth - (label == "LB"))
        loops += [_Loop() for _ in range(depth + 1 - len(loops))]
        loops[-1].read(line)
    leave(0)
    return loops[0].count


@dataclasses.dataclass
class _Loop:
    """One in a schedule; pipelined, it goes round once more for each stage after the first."""

    count: int = 0  # instructions of one round
    rounds: int = 1
    stages: int = 0  # after the first
    bounds: int = 0  # rounds that do all, given where it copies from or to HBM

    def read(self, line: str) -> None:
        self.count += 1
        for stage in re.findall(r"iteration index, stage = (\d+)", line):
            self.stages = max(self.stages, int(stage))
        if match := re.search(r"\niteration_bounds: \(([\d, ]+)\)", line):
            self.bounds = math.prod(int(n) for n in match[1].split(","))
        if match := re.search(r"scmp\.ge\.s32\.totalorder [^/;]*?(\d+) /\* loop exit test", line):
            self.rounds = int(match[1])

    @property
    def times(self) -> int:
        given = self.rounds - 2 <= self.bounds <= self.rounds
        return max(self.bounds if given else self.rounds - self.stages, 1)


def longest(
    operations: Sequence[Operation], instructions: Mapping[str, int], target: tpu.Slice
) -> dict[str, float]:
    """Figure C of each operation, each time; A where there is no schedule of it."""
    clock = target.peak / target.chip.flops_per_cycle
    # What does the same is scheduled once, under the name of one.
    twins = {x.twin: instructions[x.name] for x in operations if x.name in instructions}
    return {
        x.name: max(
            instructions.get(x.name, twins.get(x.twin, x.cycles or 0)),
            x.bytes / target.chip.memory_bandwidth * clock,
            x.flops / target.chip.flops_per_cycle,
        )
        for x in operations
    }


# The steps


def our_step(config: Any, objective: Pretraining, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The trainer's own."""
    batch = plan.abstract_batch(mesh, objective.layout, config.batch_size, config.seq_length)
    example = empty_batch(objective.layout, 1, config.seq_length)
    trainer = build_trainer(config, mesh, config.steps, objective, example)
    return trainer.lower(batch)


def peer_step(config: Any, objective: Pretraining, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """That of `transformers`: logits at all positions, a padding mask, threefry, erf."""
    try:
        from transformers import BertConfig, FlaxBertForPreTraining
    except ImportError:
        raise UserError("--peer takes pip install 'transformers<5'") from None
    c: Any = objective.backbone
    sizes = BertConfig(
        vocab_size=c.vocab_size, hidden_size=c.width, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, intermediate_size=c.feed_forward,
        max_position_embeddings=c.max_positions, hidden_dropout_prob=c.hidden_dropout,
        attention_probs_dropout_prob=c.attention_dropout,
    )  # fmt: skip
    model = FlaxBertForPreTraining(sizes, dtype=jnp.dtype(c.dtype), _do_init=False)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        inputs = batch["tokens"], batch["mask"], batch["segments"]
        words, pairs = model(*inputs, params=params, dropout_rng=key, train=True).to_tuple()
        entropy = optax.softmax_cross_entropy_with_integer_labels
        predicted = batch["labels"] >= 0
        each = entropy(words.astype(jnp.float32), jnp.maximum(batch["labels"], 0)) * predicted
        pair = entropy(pairs.astype(jnp.float32), batch["pair_label"])
        return each.sum() / predicted.sum() + pair.mean()

    def step(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    ids = plan.abstract_batch(mesh, "pairs", config.batch_size, config.seq_length)
    batch = {name: ids[name] for name in ("tokens", "segments", "pair_label")}
    batch |= {"mask": ids["tokens"], "labels": ids["tokens"]}
    params = model.params_shape_tree
    state = jax.eval_shape(transform.init, params)
    params, state, key = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)),
        (params, state, jax.eval_shape(lambda: jax.random.key(0))),
    )
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch, key)


def report(name: str, lowered: Any, target: tpu.Slice, folder: str) -> dict[str, Any]:
    """Compiles a step, prints its tables, and returns them; UserError if it does not fit."""
    print(f"compiling {name} for {target.name} ...", file=sys.stderr)
    begin = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if sizes := plan.out_of_memory(str(error)):
            needed, there = (size / 2**30 for size in sizes)
            raise UserError(f"{name} needs {needed:.2f} of {there:.2f} GiB: fewer --rows") from None
        raise
    text = compiled.as_text()
    result: dict[str, Any] = {
        "compile_seconds": time.perf_counter() - begin,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "random_bits": re.findall(r" = (.*?) rng(?:-bit-generator)?\(", text),
    }
    program = read_program(text)
    operations = program.operations
    figures = {"A": {x.name: float(x.cycles or 0) for x in operations}}
    if instructions := read_schedules(folder):
        figures["C"] = longest(operations, instructions, target)
        kernels = [x.name for x in operations if kind_of(x) == "kernel" and x.cycles is None]
        if kernels:
            figures["A+"] = figures["A"] | {kernel: figures["C"][kernel] for kernel in kernels}
    for figure, cycles in figures.items():
        table = {part: dict.fromkeys(_KINDS, 0.0) for part in [*_PARTS, "unnamed", "all"]}
        for x in operations:
            for part in (part_of(x), "all"):
                table[part][kind_of(x)] += x.times * cycles[x.name] / 1e6
        print(f"\n| {name}, {figure} | {' | '.join(_KINDS)} | all |\n|---|{'---:|' * 7}")
        for part, row in table.items():
            row["all"] = sum(row.values())
            print(f"| {part} | {' | '.join(f'{n:.2f}' for n in row.values())} |")
        result[figure] = table
    print(f"\ntemporaries: {result['temporaries'] / 1e9:.2f} GB")
    print(f"generators of random bits: {', '.join(result['random_bits']) or 'none'}")
    for kernel in program.unestimated:
        print(f"not in A: {kernel.times:,} {kernel.kind}, {kernel.bytes / 1e6:,.1f} MB")
    for loop in program.unknown_loops:
        print(f"counted once, being of unknown length: {loop}")
    unestimated = [dataclasses.asdict(kernel) for kernel in program.unestimated]
    return result | {"unestimated": unestimated, "unknown_loops": program.unknown_loops}


def main() -> None:
    """Compiles and counts."""
    jax.config.update("jax_platforms", "cpu")
    config = CONFIG.value or pretrain.get_config(f"size={_SIZE.value},seq={_SEQ_LENGTH.value}")
    if not PRETRAIN.describes(config):
        raise UserError("only pre-training is counted: --config=configs/pretrain.py")
    PRETRAIN.check(config)
    if config.dtype == "auto":
        config.dtype = "bfloat16"
    objective = build_objective(config, plan.stand_in(VOCAB_SIZE))
    steps = {"ours": our_step} | ({"peer": peer_step} if _PEER.value else {})
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if _FIGURE_C.value:
            write_schedules(folder)
        target = tpu.open_slice(TOPOLOGY.value or "v5e:2x2")
        mesh = sharding.make_mesh(config.mesh, target.devices)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        config.batch_size = _ROWS.value * shards * config.accumulation
        lowered = {name: step(config, objective, mesh) for name, step in steps.items()}
        for name, one in lowered.items():
            results[name] = report(name, one, target, folder)
    length = config.seq_length
    flops = objective.flops(config.batch_size, length)
    ideal = flops / len(target.devices) / target.chip.flops_per_cycle / 1e6
    print(f"\nour model's FLOPs at the peak: {ideal:.1f} million cycles")
    for figure in [figure for figure in ("A", "A+", "C") if figure in results["ours"]]:
        totals = [result.get(figure, result["A"])["all"]["all"] for result in results.values()]
        ratio = f"; ratio {totals[0] / totals[1]:.3f}" if _PEER.value else ""
        print(f"{figure}: {', '.join(f'{n:.1f}' for n in totals)}{ratio}")
    facts = {"topology": target.name, "rows": _ROWS.value, "seq_length": length, "ideal": ideal}
    facts |= {"dtype": config.dtype, "model": config.model.to_dict(), "results": results}
    print(json.dumps(provenance("tpu_step") | facts))


if __name__ == "__main__":
    entry.run(main)
