"""TPU slices: what names one, its devices and links, and the table of chips."""

import importlib.util

import jax
import numpy as np
import pytest
from tpu_compiler import needs_compiler

from bert_jax.common.errors import UserError
from bert_jax.planning import tpu
from bert_jax.training import metrics, sharding


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


def test_the_clocks_of_the_table_are_those_published():
    target = {"v2": 0.70, "v3": 0.94, "v4": 1.05, "v5e": 1.5, "v5p": 1.75}  # GHz
    peaks = {"v2": 22.5e12, "v3": 61.5e12, "v4": 275e12, "v5e": 197e12, "v5p": 459e12}
    for kind, clock in target.items():
        rate = peaks[kind] / tpu.CHIPS[kind].flops_per_cycle
        assert rate / 1e9 == pytest.approx(clock, rel=0.02), kind
