"""Planning: estimates of time and memory, the search, and one real compilation for a TPU."""

import json

import jax
import pytest
from tiny_corpus import one_device
from tpu_compiler import needs_compiler

from bert_jax import main, plan
from bert_jax.common.errors import UserError
from bert_jax.families import build_objective
from bert_jax.planning import tpu
from bert_jax.planning.program import Collective, Kernel, Program
from bert_jax.planning.text import plan_text, search_text
from bert_jax.training import metrics
from configs import pretrain

GIB = 2**30


def tiny_config(**changes):
    config = pretrain.get_config("size=tiny,seq=16")
    config.update_from_flattened_dict(
        {"batch_size": 32, "dtype": "bfloat16", "model.width": 32, "model.max_positions": 32}
        | changes
    )
    return config


# Estimates.


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


# The trainer's step.


@pytest.mark.parametrize("pairs", [True, False])
def test_the_abstract_batch_is_that_of_the_loader(corpus, pairs):
    config, mesh = tiny_config(nsp=pairs, pairs=pairs), one_device()
    objective = build_objective(config, corpus.tokenizer.vocabulary)
    (phase,) = main.build_phases(config, corpus, objective, mesh)
    real = next(phase.batches(0, 1))
    shapes = plan.abstract_batch(mesh, objective.layout, 32, 16)
    assert {n: (x.shape, x.dtype) for n, x in real.items()} == {
        n: (x.shape, x.dtype) for n, x in shapes.items()
    }


def test_state_and_gradients_of_a_step(monkeypatch):
    monkeypatch.setitem(metrics.PEAK_FLOPS, "cpu", 1e12)
    config = tiny_config(**{"dtype": "float32", "model.layers": 1})
    objective = build_objective(config, plan.stand_in(100))
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


def test_a_batch_of_the_short_phase_that_cannot_be_shared_out_is_told():
    config = tiny_config(**{"short_phase.share": 0.5, "short_phase.batch_size": 20})
    objective = build_objective(config, plan.stand_in(100))
    target = tpu.Slice("cpu", 1, tpu.CHIPS["v5e"], jax.devices()[:8])
    with pytest.raises(UserError, match=r"batch_size=20 must divide by .* the 8 devices"):
        plan.plan(config, objective, target)


def test_a_program_that_does_not_fit_is_a_result(monkeypatch):
    monkeypatch.setattr(plan, "_compile", lambda lowered: (20 * GIB, 16 * GIB))
    config = tiny_config(**{"model.layers": 1})
    objective = build_objective(config, plan.stand_in(100))
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
    objective = build_objective(config, plan.stand_in(100))
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
    objective = build_objective(config, plan.stand_in(100))
    limits = {False: 20, True: 70}  # rows of a device

    def compile_step(config, objective, target, seq_length, batch_size, how):
        assert (seq_length, config.accumulation) == (512, 1)  # the longest needs the most memory
        rows, limit = batch_size // 8, limits[objective.backbone.remat]
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
