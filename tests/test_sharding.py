"""The layout on devices: each trains as one does, and no activations move where none should.

Activations are made larger than any parameter, so a collective that moves them is seen by its size.
"""

import collections
import math
from types import SimpleNamespace
from typing import ClassVar

import jax
import numpy as np
import pytest
from taken_steps import difference, gradients, means, steps
from tiny_corpus import make_trainer, small_config

from bert_jax.common.errors import UserError
from bert_jax.objectives.base import Mean
from bert_jax.planning.program import read_program
from bert_jax.training import loop, sharding
from bert_jax.training.checkpoint import Checkpoints

ROWS, LENGTH, WIDTH, LAYERS = 32, 32, 32, 2
ACTIVATION = 4 * ROWS * LENGTH * WIDTH  # bytes of one [B, S, D]
AUTO = (jax.sharding.AxisType.Auto,) * 3


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, sharding.MESH_AXES, axis_types=AUTO, devices=devices)


def config_of(**changes):
    return small_config(
        batch_size=ROWS, seq_length=LENGTH, steps=20, model__width=WIDTH, model__heads=8,
        **{"model__layers": LAYERS} | changes,
    )  # fmt: skip


_COLLECTIVES: dict[tuple, list] = {}  # of programs that take seconds to compile


def compiled(corpus, *shape: int, **changes):
    """(trainer, collectives of its step) on a mesh of this shape."""
    trainer, phases = make_trainer(config_of(**changes), corpus, mesh_of(*shape))
    if (key := (shape, *changes.items())) not in _COLLECTIVES:
        batch = trainer.put(next(phases[0].batches(0, 1)), ROWS)
        program = trainer.lower(batch).compile()
        _COLLECTIVES[key] = read_program(program.as_text()).collectives
    return trainer, _COLLECTIVES[key]


def by_kind(collectives) -> dict[str, int]:
    """Bytes of each kind in a step."""
    total: collections.Counter[str] = collections.Counter()
    for one in collectives:
        total[one.kind] += one.times * one.bytes
    return dict(total)


def parameter_bytes(trainer, sharded_over: str | None = None) -> int:
    """Of all parameters, or of those sharded over a mesh axis."""
    leaves = jax.tree.leaves(trainer.abstract_state["params"])
    chosen = [x for x in leaves if sharded_over is None or sharded_over in x.sharding.spec]
    return sum(4 * x.size for x in chosen)


def tables(trainer):
    """Shapes of the token and position embeddings."""
    embeddings = trainer.abstract_state["params"]["encoder"]["embeddings"]
    return embeddings["token"], embeddings["position"]


def test_data_parallel_moves_the_gradients_once(corpus):
    trainer, collectives = compiled(corpus, 8, 1, 1)
    moved = by_kind(collectives)
    print(f"\ndata 8: {moved}, parameters {parameter_bytes(trainer)}")
    assert moved.keys() == {"all-reduce"}
    assert all(one.times == 1 for one in collectives if one.bytes > 100)
    # The table's gradient comes in two parts (input and output embeddings), the positions' only as
    # far as a sequence goes; besides, losses and counts.
    table, positions = tables(trainer)
    unused = 4 * WIDTH * (positions.shape[0] - LENGTH)
    expected = parameter_bytes(trainer) + 4 * table.size - unused
    assert 0 <= moved["all-reduce"] - expected < 100


def test_fsdp_gathers_parameters_and_no_activations(corpus):
    trainer, collectives = compiled(corpus, 1, 8, 1)
    moved = by_kind(collectives)
    sharded = parameter_bytes(trainer, "fsdp")
    print(f"\nfsdp 8: {moved}, parameters {parameter_bytes(trainer)}, sharded {sharded}")
    assert moved.keys() <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert all(one.times == 1 for one in collectives if one.bytes > 100)
    # Each once or, where the backward pass gathers again, twice.
    assert sharded <= moved["all-gather"] <= 2 * sharded
    largest = max(x.size for x in jax.tree.leaves(trainer.abstract_state["params"]))
    gathered = [one.bytes for one in collectives if one.kind == "all-gather"]
    assert 2 * 4 * largest < ACTIVATION and max(gathered) <= 4 * largest
    reduced = moved["all-reduce"] + moved.get("reduce-scatter", 0)
    assert reduced <= parameter_bytes(trainer) + 4 * tables(trainer)[0].size + 1000


def test_tensor_parallel_reduces_a_few_activations_a_layer(corpus):
    """After attention and feed-forward, forward and backward (Megatron-LM, arXiv 1909.08053).

    That would be four a layer and one for the split vocabulary; two more where the compiler sums
    the parts of query, key and value apart.
    """
    trainer, collectives = compiled(corpus, 1, 1, 4)
    moved = by_kind(collectives)
    print(f"\ntensor 4: {moved}, one activation {ACTIVATION}")
    assert tables(trainer)[0].sharding.spec == jax.P("tensor", "fsdp")  # the vocabulary is split
    assert moved.keys() == {"all-reduce"}  # of the logits nothing is gathered
    count = sum(one.times * (one.bytes // ACTIVATION) for one in collectives)
    assert 4 * LAYERS + 1 <= count <= 6 * LAYERS + 1


def test_a_mixed_mesh_moves_no_logits(corpus):
    trainer, collectives = compiled(corpus, 2, 2, 2)
    print(f"\n2 x 2 x 2: {by_kind(collectives)}")
    slots = trainer.objective.masking.slots(LENGTH)
    logits = 4 * (ROWS // 4) * slots * trainer.objective.backbone.vocab_size  # of a device's rows
    gathered = [c.bytes for c in collectives if c.kind in ("all-gather", "all-to-all")]
    assert max(gathered) < min(logits, ACTIVATION // 4)


def test_rows_of_a_process_are_those_on_its_devices():
    assert sharding.local_rows(mesh_of(4, 2, 1), 16).tolist() == list(range(16))
    with pytest.raises(UserError, match=r"batch_size=12 must divide by .* the 8 devices"):
        sharding.local_rows(mesh_of(4, 2, 1), 12)


def test_rows_and_whole_batches_become_the_same_array():
    mesh = mesh_of(2, 2, 2)
    rows = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}
    made = sharding.to_global(mesh, rows, 8)["tokens"]
    assert made.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(sharding.to_host(made), rows["tokens"])


def test_a_process_gives_the_rows_that_it_holds(monkeypatch):
    """As the second of two processes: its rows are counted from its first."""
    monkeypatch.setattr(sharding, "local_rows", lambda *_: np.arange(8, 16))
    monkeypatch.setattr(
        jax, "make_array_from_callback", lambda _shape, _sharding, rows: rows((slice(12, 14),))
    )
    held = np.arange(8, 16)
    assert sharding.to_global(mesh_of(8, 1, 1), held, 16).tolist() == [12, 13]
    assert sharding.to_global(mesh_of(8, 1, 1), np.arange(16), 16).tolist() == [12, 13]


def test_the_next_item_is_asked_for_before_one_is_used():
    events = []

    def made():
        for item in range(3):
            events.append(f"ask {item}")
            yield item

    for item in sharding.ahead(made()):
        events.append(f"use {item}")
    assert events == ["ask 0", "ask 1", "use 0", "ask 2", "use 1", "use 2"]
    assert list(sharding.ahead([])) == []


class Computation:
    """Stands in for an array that a device computes: counts those that are not finished."""

    unfinished: ClassVar[set[int]] = set()

    def __init__(self, number: int):
        self.number = number
        self.unfinished.add(number)

    def block_until_ready(self) -> "Computation":
        self.unfinished.discard(self.number)
        return self


@pytest.fixture(params=[(1, 2), (2, 1)], ids=["one process", "two"])
def most(request, monkeypatch) -> int:
    """In flight of those that do not depend on one another: one, where gloo could mix them up."""
    processes, most = request.param
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    return most


def test_no_more_than_a_few_computations_are_in_flight(most):
    started = []

    def start():
        for number in range(20):
            started.append(Computation(number))
            assert len(Computation.unfinished) <= most
            yield number, started[-1]

    for number, (index, one) in enumerate(sharding.ahead(start())):
        assert (index, one.number) == (number, number) and number not in Computation.unfinished
        assert len(started) == min(number + most, 20)
    assert number == 19 and not Computation.unfinished


def test_an_evaluation_starts_a_computation_a_batch_and_has_few_in_flight(most, monkeypatch):
    """To add means up on the devices would be many more, none of them waited for."""

    def done(leaf):
        mean = Mean(np.float32(1), np.float32(2))
        return mean if isinstance(leaf, Computation) else leaf

    def evaluate(_, number):
        assert len(Computation.unfinished) < most
        return {"loss": Computation(number)}

    objective = SimpleNamespace(metrics=())
    trainer = SimpleNamespace(
        evaluate_batch=evaluate, put=lambda batch, _: batch, objective=objective
    )
    phase = SimpleNamespace(evaluation=lambda: range(20), batch_size=1)
    monkeypatch.setattr(jax, "device_get", lambda tree: jax.tree.map(done, tree))
    assert loop.held_out_means(trainer, None, phase) == {"loss": 0.5}


# Each trains as one device does.


LAYOUTS = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]  # data, fsdp, tensor


@pytest.fixture(scope="module")
def on_one_device(corpus):
    """The gradients of the first batch, and the parameters and the window after 20 steps."""
    return layout_figures(*make_trainer(config_of(), corpus, mesh_of(1, 1, 1)))


def layout_figures(trainer, phases):
    state = steps(trainer, phases, 1)
    grads = gradients(state)
    state = steps(trainer, phases, 20, state)
    return grads, *jax.device_get((state["params"], state["window"]))


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_eight_devices_train_as_one(corpus, on_one_device, shape):
    """Data, fully sharded, tensor parallel and all three; dropout masks do not differ."""
    trainer, phases = make_trainer(config_of(), corpus, mesh_of(*shape))
    if shape[0] < 8:
        kernel = trainer.abstract_state["params"]["encoder"]["layer_0"]["feed_forward"]["inner"]
        assert not kernel["kernel"].sharding.is_fully_replicated
    grads, params, window = layout_figures(trainer, phases)
    expected_grads, expected_params, expected_window = on_one_device
    loss = {n: abs(means(window)[n] - value) for n, value in means(expected_window).items()}
    print(
        f"\n(data, fsdp, tensor) = {shape}, dropout on: largest "
        f"difference to one device: gradients {difference(grads, expected_grads):.1e}, after 20 "
        f"steps parameters {difference(params, expected_params):.1e}, metrics "
        f"{max(loss.values()):.1e}"
    )
    assert difference(grads, expected_grads) < 1e-5
    assert difference(params, expected_params) < 1e-5
    assert max(loss.values()) < 1e-5


def test_a_run_goes_on_with_other_devices(corpus, on_one_device, tmp_path):
    """Ten steps on eight devices, saved, ten on one: the same as twenty on one."""
    _, expected, _ = on_one_device
    trainer, phases = make_trainer(config_of(), corpus, mesh_of(2, 2, 2))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, steps(trainer, phases, 10))
    checkpoints.wait()
    trainer, phases = make_trainer(config_of(), corpus, mesh_of(1, 1, 1))
    _, state = checkpoints.restore(trainer.abstract_state)
    checkpoints.close()
    assert difference(steps(trainer, phases, 20, state)["params"], expected) < 1e-5


def test_scanning_and_recomputing_change_nothing(corpus, on_one_device):
    expected_grads, expected_params, _ = on_one_device
    config = config_of(model__scan_layers=True, model__remat=True)
    grads, params, _ = layout_figures(*make_trainer(config, corpus, mesh_of(1, 1, 1)))
    assert difference(grads, expected_grads) < 1e-5
    assert difference(params, expected_params) < 1e-5


def test_a_mesh_that_does_not_fit_is_a_user_error():
    names = ("data", "fsdp", "tensor")
    for sizes in [(3, 1, 1), (-1, -1, 1), (-1, 3, 1), (0, 1, 1), (16, 1, 1), (2, 2, 1)]:
        with pytest.raises(UserError, match="does not fit 8 devices"):
            sharding.make_mesh(dict(zip(names, sizes, strict=True)))
    made = sharding.make_mesh({"data": -1, "fsdp": 2, "tensor": 2})
    assert made.shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert made == mesh_of(2, 2, 2)


# Accumulation. One layer, as these are the most programs.


MESHES = [(8, 1, 1), (1, 8, 1), (4, 1, 2)]


@pytest.mark.parametrize("shape", MESHES)
def test_accumulation_crosses_the_network_once_a_step(corpus, shape):
    """Not once a micro-batch, and with dropout on; besides, losses and counts."""
    moved = {}
    for pieces in (2, 4):
        trainer, collectives = compiled(corpus, *shape, accumulation=pieces, model__layers=1)
        assert trainer.objective.backbone.hidden_dropout == 0.1
        over_rows = [one for one in collectives if one.devices == math.prod(shape[:2])]
        moved[pieces] = by_kind(over_rows)
        assert all(one.times == 1 for one in over_rows if one.bytes > 100), collectives
    print(f"\n{shape}: {moved}, parameters {parameter_bytes(trainer)}")
    assert moved[2] == moved[4]
    whole = parameter_bytes(trainer)
    sent = sum(size for kind, size in moved[4].items() if kind != "all-gather")
    assert sent < 1.1 * whole / shape[2] + 4 * tables(trainer)[0].size
    assert moved[4].get("all-gather", 0) <= parameter_bytes(trainer, "fsdp")


def test_accumulated_gradients_are_the_same_on_every_mesh(corpus):
    """With dropout on: masks are of places in the batch, not of places on a device."""
    first, states = None, []
    for shape in ((1, 1, 1), *MESHES, (2, 2, 2)):
        config = config_of(accumulation=2, model__layers=1)
        trainer, phases = make_trainer(config, corpus, mesh_of(*shape))
        first = first or sharding.to_host(trainer.init())
        places = jax.tree.map(lambda x: x.sharding, trainer.abstract_state)
        batch = trainer.put(next(phases[0].batches(0, 1)), ROWS)
        state, _ = trainer.step(jax.device_put(first, places), batch)
        states.append(sharding.to_host({n: state[n] for n in ("params", "opt_state", "window")}))
    assert len(jax.tree.leaves(states[0])) > 50
    for state in states[1:]:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), states[0], state
        )
