"""Planning: slices, reading of compiled programs, estimates, and one real compilation for a TPU."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny_corpus import one_device

from bert_jax import main, metrics, plan, sharding, tpu
from bert_jax.errors import UserError
from bert_jax.plan_text import plan_text, search_text
from bert_jax.program import Collective, Kernel, Program, read_program
from configs import pretrain

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'"
)
GIB = 2**30


def tiny_config(**changes):
    config = pretrain.get_config("size=tiny,seq=16")
    config.update_from_flattened_dict(
        {"batch_size": 32, "dtype": "bfloat16", "model.width": 32, "model.max_positions": 32}
        | changes
    )
    return config


# Slices


@pytest.mark.parametrize(
    ("text", "kind", "shape", "chips"),
    [
        ("v2:2x2", "v2", (2, 2), 4),
        ("v3:32x32", "v3", (32, 32), 1024),
        ("v4:2x2x1", "v4", (2, 2, 1), 4),
        ("v5e:16x16", "v5e", (16, 16), 256),
        ("V5P:8x8x16", "v5p", (8, 8, 16), 1024),
        ("v6e:1x1", "v6e", (1, 1), 1),
        ("tpu7x:2x2x1", "7x", (2, 2, 1), 4),
    ],
)
def test_topologies_are_in_chips(text, kind, shape, chips):
    assert tpu.parse_topology(text) == (kind, shape)
    assert np.prod(shape) == chips <= tpu.CHIPS[kind].most_chips


@pytest.mark.parametrize(
    "text", ["v5e", "v5e:16", "v5e:3x5", "v5e:0x2", "v5e:4x4x4", "v4:4x4", "v4:1x1x1", "v9:2x2", ""]
)
def test_what_is_no_slice_is_answered_by_the_valid_forms(text):
    with pytest.raises(UserError, match=r"no TPU slice .*; valid: KIND:AxB .*v4:4x4x8") as error:
        tpu.parse_topology(text)
    assert "\n" not in str(error.value)


def test_a_slice_larger_than_any_is_several():
    with pytest.raises(UserError, match=r"over the 256 chips .* v5e; .*--slices"):
        tpu.parse_topology("v5e:32x32")


def test_without_the_compiler_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'jax\[tpu\]=={jax.__version__}'$"):
        tpu.open_slice("v5e:2x2")


@needs_compiler
def test_only_the_data_axis_runs_across_slices():
    target = tpu.open_slice("v5e:2x4", 2)
    assert (len(target.devices), target.chips, target.peak) == (16, 16, 197e12)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 4, "tensor": 2}, target.devices)
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh.data=1 must divide by the 2 slices"):
        sharding.make_mesh({"data": 1, "fsdp": 16, "tensor": 1}, target.devices)


@needs_compiler
@pytest.mark.parametrize(
    ("topology", "devices"), [("v3:2x2", 8), ("v4:2x2x1", 4), ("v5e:1x1", 1), ("7x:2x2x2", 16)]
)
def test_devices_are_cores_or_chips_by_generation(topology, devices):
    target = tpu.open_slice(topology)
    assert len(target.devices) == devices
    assert target.peak == metrics.peak_flops(target.devices[0])


# Reading programs

LOOPS = """\
HloModule step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%lookup (table: f32[1000,4], rows: s32[6]) -> f32[6,4] {
  %table = f32[1000,4]{1,0} parameter(0)
  %rows = s32[6]{0} parameter(1)
  ROOT %gather = f32[6,4]{1,0} gather(%table, %rows), slice_sizes={1,4}
}

%inner_condition (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %limit = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner (j: s32[]) -> s32[] {
  %j = s32[] parameter(0)
  %x = bf16[100]{0:T(128)(2,1)} constant({...})
  %y = bf16[100]{0:T(128)(2,1)} fusion(%x), kind=kLoop, calls=%f, backend_config={"window_config":{"estimated_cycles":"10"}}
  %sorted.7 = bf16[100]{0} sort(%y), dimensions={0}, to_apply=%less_than
  ROOT %next = s32[] add(%j, %j)
}

%f (p: bf16[100]) -> bf16[100] {
  ROOT %p = bf16[100]{0} parameter(0)
}

%outer (k: s32[]) -> s32[] {
  %k = s32[] parameter(0)
  %g = (f32[50]{0}, /*index=1*/f32[30]{0}) custom-call(%k), custom_call_target="tpu_custom_call"
  %g0 = f32[50]{0} get-tuple-element(%g), index=0
  %g1 = f32[30]{0} get-tuple-element(%g), index=1
  %r = (f32[50]{0}, f32[30]{0}) all-reduce(%g0, %g1), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %while.2 = s32[] while(%k), condition=%inner_condition, body=%inner
}

%outer_condition (l: s32[]) -> pred[] {
  ROOT %l = pred[] constant(true)
}

ENTRY %main (t: f32[1000,4], ids: s32[6], n: s32[]) -> s32[] {
  %t = f32[1000,4]{1,0} parameter(0)
  %ids = s32[6]{0} parameter(1)
  %n = s32[] parameter(2)
  %gather_fusion.3 = f32[6,4]{1,0} fusion(%t, %ids), kind=kCustom, calls=%lookup
  %c = f32[6,4]{1,0} copy(%gather_fusion.3), backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %while.1 = s32[] while(%n), condition=%outer_condition, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    program = read_program(LOOPS)
    assert program.cycles == 7 + 5 * 3 * 10
    assert program.collectives == (Collective("all-reduce", 5, 4 * (50 + 30), 4),)
    assert program.unknown_loops == ()


def test_what_has_no_estimate_is_listed_with_its_bytes():
    # The sort reads and writes 100 bf16; the kernel writes 80 f32 and reads one s32; the lookup
    # reads 6 rows of 4 f32, not 1,000, and 6 s32.
    assert set(read_program(LOOPS).unestimated) == {
        Kernel("sort", 5 * 3, 5 * 3 * 400),
        Kernel("tpu_custom_call", 5, 5 * 324),
        Kernel("gather_fusion", 1, 96 + 96 + 24),
    }


def test_a_loop_of_unknown_length_is_named_and_counts_once():
    program = read_program(LOOPS.replace('"known_trip_count"', '"unknown"'))
    assert program.unknown_loops == ("while.1",)
    assert program.cycles == 7 + 3 * 10


def test_operations_are_what_takes_time():
    operations = {x.name: x for x in read_program(LOOPS).operations}
    assert {name: (x.times, x.cycles) for name, x in operations.items()} == {
        "gather_fusion.3": (1, None), "c": (1, 7), "g": (5, None), "y": (15, 10),
        "sorted.7": (15, None), "next": (15, None),
    }  # fmt: skip
    assert operations["gather_fusion.3"].opcodes == {"fusion", "parameter", "gather"}
    assert operations["gather_fusion.3"].bytes == 96 + 96 + 24


def operations_of(lines, called=""):
    text = f"HloModule m\n\n{called}ENTRY %main (x: f32[]) -> f32[] {{\n"
    return read_program(text + "".join(f"  {line}\n" for line in lines) + "}\n").operations


@pytest.mark.parametrize(
    ("left", "right", "result", "rest", "flops"),
    [
        ("[8,16]", "[16,32]", "[8,32]", "dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
        # Weights' gradient: rows are summed over.
        ("[8,16]", "[8,32]", "[16,32]", "dim_labels=fb_io->bf", 2 * 8 * 16 * 32),
        # Rows and heads are the products of a batch: q·k of 8 rows, 2 heads, 4 positions, width 64.
        (
            "[8,4,2,64]", "[8,4,2,64]", "[8,2,4,4]",
            "window={size=8x2 stride=7x1 lhs_dilate=8x2}, dim_labels=0b1f_0o1i->01bf",
            2 * (8 * 2) * 4 * 4 * 64,
        ),
        # Heads are summed over, by the window ...
        (
            "[8,4,2,64]", "[16,2,64,1]", "[8,4,16,1]",
            "window={size=1x2}, dim_labels=0b1f_o1i0->0bf1",
            2 * (8 * 4) * (2 * 64) * 16,
        ),
        # ... or are columns of the result.
        (
            "[8,4,16,1]", "[2,64,16,1]", "[8,4,2,64]",
            "window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
            2 * (8 * 4) * 16 * (2 * 64),
        ),
    ],
)  # fmt: skip
def test_flops_of_matrix_products(left, right, result, rest, flops):
    (product,) = operations_of(
        [
            f"%l = bf16{left}{{}} parameter(0)",
            f"%r = bf16{right}{{}} parameter(1)",
            f"ROOT %p = f32{result}{{}} convolution(%l, %r), {rest}",
        ]
    )
    assert product.flops == flops


def test_bytes_are_those_that_pass_between_memory_and_core():
    lines = [
        "%a = f32[100]{0:T(128)} parameter(0)",
        "%made = f32[100]{0:T(128)S(1)} negate(%a)",
        "%s = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%a)",
        "%brought = f32[100]{0:T(128)S(1)} copy-done(%s)",
        "%seen = f32[10,10]{1,0:T(8,128)S(1)} bitcast(%brought)",
        "ROOT %sum = f32[100]{0:T(128)} add(%made, %seen)",
    ]
    assert {x.name: x.bytes for x in operations_of(lines)} == {"made": 400, "sum": 400 + 400}


def test_what_is_written_into_a_part_of_an_array_counts_as_that_part():
    called = """%f (p: f32[50,10], q: f32[1,10], i: s32[]) -> f32[50,10] {
  %p = f32[50,10]{1,0} parameter(0)
  %q = f32[1,10]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[50,10]{1,0} dynamic-update-slice(%p, %q, %i)
}

"""
    lines = [
        "%a = f32[50,10]{1,0} parameter(0)",
        "%b = f32[1,10]{1,0} parameter(1)",
        "%n = s32[] parameter(2)",
        "ROOT %r = f32[50,10]{1,0} fusion(%a, %b, %n), kind=kLoop, calls=%f",
    ]
    assert [x.bytes for x in operations_of(lines, called)] == [2 * (40 + 4)]


def test_a_fusion_is_from_where_its_matrix_product_is_and_has_twins():
    called = "".join(
        f"""%f{i} (p: f32[8,16], q: f32[16,32]) -> f32[8,32] {{
  %p = f32[8,16]{{1,0}} parameter(0)
  %q = f32[16,32]{{1,0}} parameter(1)
  %c = f32[8,32]{{1,0}} convolution(%p, %q), dim_labels=bf_io->bf, metadata={{op_name="layer_{i}/dot"}}
  ROOT %t = f32[8,32]{{1,0}} {last}(%c)
}}

"""  # noqa: E501
        for i, last in enumerate(["tanh", "tanh", "negate"])
    )
    lines = [
        "%a = f32[8,16]{1,0} parameter(0)",
        "%b = f32[16,32]{1,0} parameter(1)",
        *(
            f"%y{i} = f32[8,32]{{1,0}} fusion(%a, %b), kind=kOutput, calls=%f{i}, "
            'metadata={op_name="layer_9/tanh"}'
            for i in range(3)
        ),
    ]
    first, second, third = operations_of(lines, called)
    assert [x.source for x in (first, second, third)] == [f"layer_{i}/dot" for i in range(3)]
    assert first.twin == second.twin != third.twin
    assert first.flops == 2 * 8 * 16 * 32


TRAINING = """\
HloModule step, is_scheduled=true, num_partitions=1

%f (p: f32[100]) -> f32[100] {
  ROOT %p = f32[100]{0} parameter(0)
}

ENTRY %main (w: f32[100]) -> f32[100] {
  %w = f32[100]{0} parameter(0)
  %kept = bf16[100]{0:T(128)(2,1)} fusion(%w), kind=kLoop, calls=%f, metadata={op_name="jit(_step)/jvp(Encoder)/layer_0/dot_general"}
  %view = bf16[10,10]{1,0} bitcast(%kept)
  %pair = (f32[20]{0}, f32[30]{0}) fusion(%kept), kind=kLoop, calls=%f, metadata={op_name="jit(_step)/jvp(Encoder)/layer_0/exp"}
  %half = f32[20]{0} get-tuple-element(%pair), index=0
  %other = f32[30]{0} get-tuple-element(%pair), index=1
  %in_core = f32[50]{0:S(1)} fusion(%other), kind=kLoop, calls=%f, metadata={op_name="jit(_step)/jvp(Encoder)/layer_1/exp"}
  %again = f32[60]{0} fusion(%w), kind=kLoop, calls=%f, metadata={op_name="jit(_step)/transpose(jvp(Encoder))/rematted_computation/exp"}
  %gradient = f32[100]{0} fusion(%view, %half, %in_core, %again), kind=kLoop, calls=%f, metadata={op_name="jit(_step)/transpose(jvp(Encoder))/layer_0/mul"}
  ROOT %next = f32[100]{0} fusion(%w, %gradient, %other), kind=kLoop, calls=%f, metadata={op_name="jit(_step)/add"}
}
"""  # noqa: E501


def test_activations_are_what_the_backward_pass_reads_of_the_forward_pass():
    assert read_program(TRAINING).activations == 2 * 100 + 4 * 20


def communicating(line, called=""):
    text = "HloModule m, replica_count=1, num_partitions=8\n\n" + called
    text += "ENTRY %main (x: f32[64]) -> f32[64] {\n  %x = f32[64]{0} parameter(0)\n"
    return read_program(text + f"  {line}\n}}\n").collectives


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", 4),
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("{}", 8),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['a'=4,'b'=1,'c'=2] {'a','b'}", 4),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'a','b':(1)2}", 4),
    ],
)
def test_groups_in_every_notation(groups, devices):
    line = f"ROOT %r = f32[64]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%sum"
    assert communicating(line) == (Collective("all-reduce", 1, 256, devices),)


def test_an_asynchronous_collective_is_one():
    lines = """%s = (f32[64]{0}, f32[256]{0}) all-gather-start(%x), channel_id=3, replica_groups=[2,4]<=[8]
  ROOT %d = f32[256]{0} all-gather-done(%s)"""  # noqa: E501
    assert communicating(lines) == (Collective("all-gather", 1, 1024, 4),)


def test_one_spread_over_several_fusions_is_one():
    called = "".join(
        f"%part{i} (p: f32[64]) -> f32[256] {{\n  %p = f32[64]{{0}} parameter(0)\n"
        "  ROOT %g = f32[256]{0} all-gather(%p), channel_id=9, replica_groups=[2,4]<=[8]\n}\n\n"
        for i in range(3)
    )
    lines = "\n  ".join(f"%y{i} = f32[256]{{0}} fusion(%x), calls=%part{i}" for i in range(3))
    assert communicating(lines, called) == (Collective("all-gather", 1, 1024, 4),)


def test_a_send_with_the_channel_of_a_collective_counts_too():
    lines = """%g = f32[256]{0} all-gather(%x), channel_id=5, replica_groups=[2,4]<=[8]
  %t = token[] after-all()
  %s = (f32[64]{0}, u32[], token[]) send(%x, %t), channel_id=5
  ROOT %d = token[] send-done(%s), channel_id=5"""
    assert communicating(lines) == (
        Collective("all-gather", 1, 1024, 4),
        Collective("send", 1, 256, 1),
    )


def test_a_sum_of_which_each_device_keeps_a_part_is_a_reduce_scatter():
    called = """%all-reduce-scatter.1 (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  %r = f32[64]{0} all-reduce(%p), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %s = f32[16]{0} dynamic-slice(%r), dynamic_slice_sizes={16}
}

"""
    line = "ROOT %y = f32[16]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    assert communicating(line, called) == (Collective("reduce-scatter", 1, 256, 4),)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 7 / 8 * 800),
        ("all-gather", 7 / 8 * 800),
        ("reduce-scatter", 7 / 8 * 800),
        ("all-to-all", 7 / 8 * 800),
        ("collective-permute", 800),
    ],
)
def test_bytes_that_a_device_of_a_ring_sends(kind, sent):
    assert Collective(kind, 3, 800, 8).sent == sent


@pytest.mark.parametrize(
    ("collective", "kind", "size"),
    [
        (lambda x: jax.lax.psum(x, "all"), "all-reduce", 4 * 1000),
        (lambda x: jax.lax.all_gather(x, "all"), "all-gather", 8 * 4 * 1000),
        (lambda x: jax.lax.psum_scatter(x, "all", tiled=True), "reduce-scatter", 4 * 1000),
        (lambda x: jax.lax.ppermute(x, "all", [(0, 1)]), "collective-permute", 4 * 1000),
    ],
)
@pytest.mark.parametrize("turns", [1, 6])
def test_collectives_of_compiled_programs(collective, kind, size, turns):
    mesh = jax.make_mesh((8,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(x):  # float32[1000] on each device
        def body(total, i):
            return total + collective(x * i).sum(), None

        return jax.lax.scan(body, jnp.float32(0), jnp.arange(turns, dtype=jnp.float32))[0][None]

    mapped = jax.shard_map(step, mesh=mesh, in_specs=P("all"), out_specs=P("all"), check_vma=False)
    compiled = jax.jit(mapped).lower(jnp.zeros(8 * 1000)).compile()
    found = read_program(compiled.as_text()).collectives
    assert {(one.kind, one.bytes) for one in found} == {(kind, size)}
    assert sum(one.times for one in found) == turns


# Estimates


def test_times_are_those_of_the_chip():
    program = Program(
        cycles=1_000_000,
        collectives=(
            Collective("all-reduce", 2, 8_000_000, 4),
            Collective("send", 1, 3_100_000, 1),
        ),
        unestimated=(Kernel("sort", 1, 819_000_000),),
        unknown_loops=(),
    )
    # A v5e runs 131,072 FLOP a cycle and 197e12 a second.
    got = plan.estimate(program, tpu.CHIPS["v5e"], 197e12, flops=4e11, tokens=1_000)
    assert got["computing_seconds"] == pytest.approx(1e6 * 131072 / 197e12)
    assert got["unestimated_seconds"] == pytest.approx(1e-3)
    # Twice 2·3/4·8 MB over two links of 50 GB/s; 3.1 MB over a network of 3.1 GB/s.
    assert got["communicating_seconds"] == pytest.approx(24e6 / 100e9 + 1e-3)
    seconds = sum(got[f"{n}_seconds"] for n in ("computing", "unestimated", "communicating"))
    assert got["step_seconds"] == pytest.approx(seconds)
    assert got["mfu"] == pytest.approx(4e11 / seconds / 197e12)
    assert got["tokens_per_second"] == pytest.approx(1_000 / seconds)


def test_two_cores_of_a_chip_share_its_network():
    program = Program(0, (Collective("send", 1, 3_100_000, 1),), (), ())
    got = plan.estimate(program, tpu.CHIPS["v3"], 61.5e12, 1.0, 1)
    assert got["step_seconds"] == pytest.approx(2e-3)


def test_the_clocks_of_the_table_are_those_published():
    target = {"v2": 0.70, "v3": 0.94, "v4": 1.05, "v5e": 1.5, "v5p": 1.75}  # GHz
    peaks = {"v2": 22.5e12, "v3": 61.5e12, "v4": 275e12, "v5e": 197e12, "v5p": 459e12}
    for kind, clock in target.items():
        rate = peaks[kind] / tpu.CHIPS[kind].flops_per_cycle
        assert rate / 1e9 == pytest.approx(clock, rel=0.02), kind


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (47.25G) exceeds available HBM (15.75G).",
            (int(47.25 * GIB), int(15.75 * GIB)),
        ),
        ("memory space hbm. Used 1.5T of 31.25G hbm.", (1536 * GIB, int(31.25 * GIB))),
        ("... (512.0M) exceeds available HBM (256M) ...", (GIB // 2, GIB // 4)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", None),
    ],
)
def test_out_of_memory_is_read_from_the_message(message, sizes):
    assert plan.out_of_memory(message) == sizes


@pytest.mark.parametrize("limit", [0, 1, 7, 8, 100, 5000])
@pytest.mark.parametrize("start", [1, 6, 64])
def test_search_finds_the_largest_power_of_two(limit, start):
    tried = []

    def measure(rows):
        tried.append(rows)
        memory = {"parameters": 30, "optimizer": 70, "needed": 100 + 10 * rows}
        return {"fits": rows <= limit, "memory": memory | {"available": 100 + 10 * limit + 5}}

    best = plan.most_rows(measure, start)
    assert best == max((2**n for n in range(20) if 2**n <= limit), default=0)
    assert len(tried) == len(set(tried)) <= 4


def test_hours_are_those_of_the_whole_schedule(monkeypatch):
    config = pretrain.get_config("size=base,seq=512,phases=true")
    seconds = {128: 0.036, 512: 0.18}
    monkeypatch.setattr(
        plan,
        "compile_step",
        lambda config, objective, target, length, rows: {
            "fits": True,
            "estimate": {"step_seconds": seconds[length]},
        },
    )
    target = tpu.Slice("v3:2x2", 1, tpu.CHIPS["v3"], jax.devices()[:8])
    result = plan.plan(config, None, target)
    assert [(p["start"], p["stop"]) for p in result["phases"]] == [(0, 900_000), (900_000, 10**6)]
    assert result["hours"] == pytest.approx(9 + 5)
    assert result["chips"] == 4  # of two devices each
    assert result["chip_hours"] == pytest.approx(4 * 14)


# The trainer's step


@pytest.mark.parametrize("pairs", [True, False])
def test_the_abstract_batch_is_that_of_the_loader(corpus, pairs):
    config, mesh = tiny_config(nsp=pairs, pairs=pairs), one_device()
    objective = main.build_objective(config, corpus.tokenizer)
    (phase,) = main.build_phases(config, corpus, objective, mesh)
    real = next(phase.batches(0, 1))
    shapes = plan.abstract_batch(mesh, 32, 16, pairs)
    assert {n: (x.shape, x.dtype) for n, x in real.items()} == {
        n: (x.shape, x.dtype) for n, x in shapes.items()
    }


def test_state_and_gradients_of_a_step(monkeypatch):
    monkeypatch.setitem(metrics.PEAK_FLOPS, "cpu", 1e12)
    config = tiny_config(**{"dtype": "float32", "model.layers": 1})
    objective = main.build_objective(config, plan.stand_in_tokenizer(100))
    target = tpu.Slice("cpu", 1, tpu.CHIPS["v5e"], jax.devices()[:8])
    result = plan.plan(config, objective, target)
    (phase,) = result["phases"]
    memory = phase["memory"]
    # D 32, F 128, V 100: embeddings, a layer, head, pooler and classifier of sentence pairs.
    layer = 4 * (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32) + 4 * 32
    parameters = (100 + 32 + 2) * 32 + 64 + layer + (32 * 32 + 32 + 64 + 100)
    parameters += 32 * 32 + 32 + 32 * 2 + 2
    assert memory["parameters"] == 4 * parameters
    assert memory["optimizer"] == 2 * 4 * parameters + 2 * 4  # and the counts of two schedules
    assert memory["batch"] == 4 * (4 * (16 + 16 + 1 + 2 + 1 + 1))  # 4 rows a device
    # Gradients: those of the token table come from two places and are reduced in each; positions
    # past the sequence have none. Sum and count of loss and accuracy of words and of pairs.
    reduced = parameters + 100 * 32 - (32 - 16) * 32 + 2 * 2 * 2
    assert phase["collectives"]["all-reduce"]["bytes"] == 4 * reduced
    assert phase["model_flops_per_token"] * 32 * 16 == phase["model_flops"]
    assert (result["fits"], result["devices"], phase["rows"]) == (True, 8, 4)
    json.dumps(result)
    assert "hours" in plan_text(result)


def test_a_program_that_does_not_fit_is_a_result(monkeypatch):
    monkeypatch.setattr(plan, "_compile", lambda lowered: (20 * GIB, 16 * GIB))
    config = tiny_config(**{"model.layers": 1})
    objective = main.build_objective(config, plan.stand_in_tokenizer(100))
    target = tpu.Slice("cpu", 1, tpu.CHIPS["v5e"], jax.devices()[:8])
    result = plan.plan(config, objective, target)
    assert not result["fits"] and "hours" not in result
    memory = result["phases"][0]["memory"]
    kinds = ("parameters", "optimizer", "batch", "temporaries")
    assert sum(memory[kind] for kind in kinds) == memory["needed"] == 20 * GIB
    assert memory["free"] == -4 * GIB
    assert "NO, missing 4.00 of 16.00 GiB" in plan_text(result)


@needs_compiler
def test_a_real_compilation_for_a_slice():
    config = tiny_config(**{"model.scan_layers": True, "model.layers": 3})
    objective = main.build_objective(config, plan.stand_in_tokenizer(100))
    target = tpu.open_slice("v5e:2x2")
    result = plan.plan(config, objective, target)
    (phase,) = result["phases"]
    assert phase["fits"] and result["chips"] == 4
    assert phase["unknown_loops"] == ()
    assert phase["estimate"]["cycles"] > 3 * phase["model_flops"] / 4 / 131072  # far from the peak
    assert 0 < phase["estimate"]["mfu"] < 1
    assert phase["collectives"]["all-reduce"]["count"] > 3  # one a layer, in the loop


@pytest.mark.parametrize(
    ("batch_size", "cheapest", "advice"),
    [
        (8 * 16, "none", "16 rows a device fit without rematerialisation"),
        (8 * 64, "layers", "64 rows a device fit with --config.model.remat=true"),
        (8 * 128, None, "128 rows a device do not fit: raise --config.accumulation"),
    ],
)
def test_search_says_what_to_do(monkeypatch, batch_size, cheapest, advice):
    config = pretrain.get_config("size=tiny,seq=512,phases=true")
    config.batch_size = batch_size
    objective = main.build_objective(config, plan.stand_in_tokenizer(100))
    limits = {False: 20, True: 70}  # rows of a device

    def compile_step(config, objective, target, seq_length, batch_size):
        assert (seq_length, config.accumulation) == (512, 1)  # the longest needs the most memory
        rows, limit = batch_size // 8, limits[objective.encoder.remat]
        memory = {"parameters": 1, "optimizer": 2, "needed": 3 + rows, "available": 3 + limit}
        memory["free"] = limit - rows
        return {"rows": rows, "fits": rows <= limit, "memory": memory}

    monkeypatch.setattr(plan, "compile_step", compile_step)
    target = tpu.Slice("v6e:2x4", 1, tpu.CHIPS["v6e"], jax.devices()[:8])
    result = plan.search(config, objective, target)
    assert result["most_rows"] == {"none": 16, "layers": 64}
    assert result["cheapest"] == cheapest
    assert config.batch_size == batch_size and not config.model.remat  # the config stays
    assert advice in search_text(result)
    json.dumps(result)
