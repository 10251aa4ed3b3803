"""Reading compiled programs: what runs how often, with which estimate, FLOPs and bytes."""

import pytest

from bert_jax.planning.program import Collective, Kernel, read_program

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


def test_collectives_of_one_channel_count_one_by_one():
    """All of a `shard_map` have channel 1."""
    line = next(line for line in LOOPS.splitlines() if "all-reduce(" in line)
    more = line.replace("%r =", "%r2 =").replace("(f32[50]{0}, f32[30]{0}) all", "f32[50]{0} all")
    program = read_program(LOOPS.replace(line, f"{line}\n{more.replace('%g0, %g1', '%g0')}"))
    assert [one.bytes for one in program.collectives] == [4 * (50 + 30), 4 * 50]


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


# Operations.


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
