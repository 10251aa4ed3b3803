"""Collectives of compiled programs: in every notation once each, of which devices and bytes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from bert_jax.planning.program import Collective, read_program


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
