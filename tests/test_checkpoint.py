"""Checkpoints: what was saved comes back to the bit, on any devices, or the one before does."""

import errno
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpus
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.common.errors import Restart, UserError
from bert_jax.training import seal, sharding
from bert_jax.training.checkpoint import Checkpoints, check_fit, fingerprint, load_params
from bert_jax.training.workdir import prepare_workdir

# Orbax leaves coroutines behind when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step: int, mesh=None):
    """A state of several types and shapes that differs from step to step."""
    rng = np.random.default_rng(step)
    values = {
        "step": np.int32(step),
        "params": {
            "kernel": rng.normal(size=(16, 24)).astype(np.float32),
            "half": jnp.asarray(rng.normal(size=(8,)), jnp.bfloat16),
            "odd": np.array([np.nan, np.inf, -0.0, 1e-42], np.float32),
        },
        "opt_state": (rng.normal(size=(16, 24)).astype(np.float32), np.int32(step)),
    }
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh or mesh_of(1), spec(x))), values
    )


def spec(x) -> PartitionSpec:
    return PartitionSpec("fsdp", "tensor") if x.ndim == 2 else PartitionSpec()


def mesh_of(devices: int) -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,) * 3
    shape = (1, devices // 2, 2) if devices > 1 else (1, 1, 1)
    return jax.make_mesh(
        shape, sharding.MESH_AXES, axis_types=auto, devices=jax.devices()[:devices]
    )


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def save(folder: Path, *steps: int, mesh=None, keep: int = 2):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, state(step, mesh))
    checkpoints.wait()
    checkpoints.close()


def restore(folder: Path, wanted=None, read_only: bool = False):
    checkpoints = Checkpoints(folder, read_only=read_only)
    try:
        return checkpoints.restore(wanted)
    finally:
        checkpoints.close()


def data_files(folder: Path) -> list[Path]:
    """The files that hold arrays, the largest first."""
    files = [f for f in (folder / "state").rglob("*") if f.is_file() and "/d/" in str(f)]
    return sorted(files, key=lambda f: -f.stat().st_size)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Checkpoints 1 and 2, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    save(folder, 1, 2)
    return folder


@pytest.fixture
def folder(two, tmp_path) -> Path:
    shutil.copytree(two, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_round_trip_is_exact_and_the_newest_wins(folder):
    step, restored = restore(folder, abstract(state(0)))
    assert step == 2
    assert bits(restored) == bits(state(2))
    assert jax.tree.structure(restored) == jax.tree.structure(state(2))


def test_an_empty_folder_holds_nothing(tmp_path):
    assert restore(tmp_path / "checkpoints", abstract(state(0))) is None


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_stay(tmp_path, keep):
    save(tmp_path / "checkpoints", 3, 5, 6, 10, keep=keep)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep)
    assert checkpoints.steps == [3, 5, 6, 10][-keep:]
    checkpoints.close()


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 4)])
def test_restoring_on_another_number_of_devices(tmp_path, before, after):
    save(tmp_path / "checkpoints", 4, mesh=mesh_of(before))
    wanted = abstract(state(0, mesh_of(after)))
    step, restored = restore(tmp_path / "checkpoints", wanted)
    assert step == 4
    assert bits(restored) == bits(state(4))
    kernel = restored["params"]["kernel"]
    assert kernel.sharding == wanted["params"]["kernel"].sharding
    assert len(kernel.sharding.device_set) == after


def test_parameters_alone(folder):
    step, restored = restore(folder)
    assert step == 2
    assert restored.keys() == {"params"}
    assert bits(restored) == bits({"params": state(2)["params"]})
    wanted = {"params": abstract(state(0, mesh_of(8)))["params"]}
    assert bits(restore(folder, wanted)[1]) == bits(restored)


def test_another_model_is_named_leaf_by_leaf(folder):
    other = abstract(state(0))
    other["params"]["kernel"] = jax.ShapeDtypeStruct((16, 32), jnp.float32)
    other["params"]["more"] = other["params"].pop("half")
    before = listing(folder)
    with pytest.raises(UserError) as error:
        restore(folder, other)
    text = str(error.value)
    assert "params/kernel: (16, 24) there, (16, 32) here" in text
    assert "params/half: (8,) there, absent here" in text
    assert "params/more: absent there, (8,) here" in text
    assert "odd" not in text
    assert listing(folder) == before  # it is no damage: nothing is moved


def test_a_long_list_of_differences_is_cut():
    wanted = {str(i): np.zeros(i) for i in range(20)}
    with pytest.raises(UserError, match=r"of another model: .*; and 12 more$"):
        check_fit({}, wanted, "here")


def truncated(checkpoint: Path) -> None:
    largest = data_files(checkpoint)[0]
    os.truncate(largest, largest.stat().st_size // 2)


def emptied(checkpoint: Path) -> None:
    for file in data_files(checkpoint):
        os.truncate(file, 0)


def without_data(checkpoint: Path) -> None:
    for file in data_files(checkpoint):
        file.unlink()


def flipped(checkpoint: Path) -> None:
    """One byte in the middle of the data."""
    largest = data_files(checkpoint)[0]
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x40
    largest.write_bytes(data)


def zeroed(checkpoint: Path) -> None:
    """A hole, as a file system leaves it after a power cut: the size is right."""
    largest = data_files(checkpoint)[0]
    data = bytearray(largest.read_bytes())
    half = len(data) // 2
    data[half : half + 64] = bytes(64)
    largest.write_bytes(data)


def without_metadata(checkpoint: Path) -> None:
    for file in checkpoint.rglob("*"):
        if file.is_file() and "METADATA" in file.name.upper():
            file.unlink()


def without_state(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "state")


DAMAGES = [truncated, emptied, without_data, flipped, zeroed, without_metadata, without_state]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_falls_back_to_the_checkpoint_before(folder, damage, capfd):
    damage(folder / "2")
    step, restored = restore(folder, abstract(state(0)))
    assert step == 1
    assert bits(restored) == bits(state(1))
    said = capfd.readouterr().err
    assert "warning: checkpoint 2 is damaged" in said
    assert "falling back to the one before" in said
    aside = folder.parent / "damaged_checkpoints" / "2"
    assert str(aside) in said
    assert aside.is_dir()
    assert not (folder / "2").exists()
    save(folder, 2)  # its place is free for the run that goes on
    assert restore(folder, abstract(state(0)))[0] == 2
    damage(folder / "2")
    assert restore(folder, abstract(state(0)))[0] == 1
    assert {path.name for path in aside.parent.iterdir()} == {"2", "2-1"}


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EIO, "Input/output error"), OSError),
        (
            jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out: task 1 is silent"),
            jax.errors.JaxRuntimeError,
        ),
    ],
)
def test_what_is_no_damage_moves_nothing(folder, error, raised, monkeypatch):
    """A disk that is away, a process that is gone: the checkpoint may be sound."""

    def fail(*_):
        if raised is jax.errors.JaxRuntimeError:
            monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise error

    monkeypatch.setattr(Checkpoints, "_load", fail)
    before = listing(folder)
    with pytest.raises(raised):
        restore(folder, abstract(state(0)))
    assert listing(folder) == before
    assert not (folder.parent / "damaged_checkpoints").exists()


def test_what_may_not_be_read_is_no_damage(folder, monkeypatch):
    """TensorStore's errors do not tell a file that is not allowed from a damaged one."""
    without_data(folder / "2")
    before, opened = listing(folder), Path.open

    def refuse(path, *arguments, **options):
        if path.is_relative_to(folder / "2"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        restore(folder, abstract(state(0)))
    monkeypatch.undo()
    assert listing(folder) == before


@pytest.mark.parametrize("begun", [False, True])
def test_another_process_that_moves_a_damaged_checkpoint_away_is_no_error(
    folder, monkeypatch, begun
):
    """Before this one looks into its files, or while it does: both start again."""
    opened = Path.open

    def move() -> None:
        shutil.move(folder / "2", folder.parent / "damaged_checkpoints" / "2")

    def fail(*_):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        if begun:
            monkeypatch.setattr(Path, "open", vanish)
        else:
            move()
        raise ValueError("its description cannot be read")

    def vanish(path, *arguments, **options):
        if (folder / "2") in path.parents and path.exists():
            move()
        return opened(path, *arguments, **options)

    (folder.parent / "damaged_checkpoints").mkdir()
    monkeypatch.setattr(Checkpoints, "_load", fail)
    with pytest.raises(Restart, match="checkpoint 2 is damaged"):
        restore(folder, abstract(state(0)))
    monkeypatch.undo()
    assert [path.name for path in (folder.parent / "damaged_checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_seen_when_the_parameters_alone_are_read(folder, damage, capfd):
    damage(folder / "2")
    before = listing(folder)
    step, restored = restore(folder, read_only=True)
    assert step == 1
    assert bits(restored) == bits({"params": state(1)["params"]})
    assert "checkpoint 2 is damaged" in capfd.readouterr().err
    assert listing(folder) == before


def test_all_damaged_is_a_user_error(folder):
    flipped(folder / "1")
    truncated(folder / "2")
    for _ in range(2):  # and not from the start the second time
        with pytest.raises(UserError, match=r"all checkpoints are damaged"):
            restore(folder, abstract(state(0)))


def test_a_save_that_was_cut_off_is_ignored_and_cleaned(folder):
    """What SIGKILL leaves in the middle of a save: a folder that was never renamed."""
    cut_off = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", cut_off)
    without_metadata(cut_off)
    assert restore(folder, read_only=True)[0] == 2
    assert cut_off.exists()  # not ours to clean: the run may be saving right now
    assert restore(folder, abstract(state(0)))[0] == 2
    assert not cut_off.exists()


def test_reading_only_changes_nothing(folder):
    before = listing(folder.parent)
    assert restore(folder, read_only=True)[0] == 2
    assert listing(folder.parent) == before


def test_reading_only_makes_no_folder(tmp_path):
    with pytest.raises(UserError, match="no checkpoints at"):
        restore(tmp_path / "checkpoints", read_only=True)
    assert not (tmp_path / "checkpoints").exists()


def test_saving_the_next_does_not_wait_for_the_reader_of_the_last(tmp_path):
    """Donated buffers: what was saved is what was there when `save` was called."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    value = {"params": {"kernel": jnp.zeros((512, 512))}}
    for step in (1, 2):
        checkpoints.save(step, value)
        value = change(value)
    checkpoints.wait()
    assert np.asarray(checkpoints.restore(abstract(value))[1]["params"]["kernel"]).max() == 1
    checkpoints.close()


def test_many_saves_leave_no_threads_and_no_open_files(tmp_path):
    """A long run makes a thousand, and may have 1,024 files open."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    held = []
    for step in range(8):
        checkpoints.save(step, state(step))
        checkpoints.wait()
        held.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    checkpoints.close()
    threads, files = np.transpose(held)
    assert threads[-1] <= threads[1] and files[-1] <= files[1]


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.1, 0.9, 0.3, 0.2], [2, 4], 2),
        ([0.1, 0.2, 0.3, 0.9], [4], 4),
        ([0.5, 0.5, 0.5, 0.1], [3, 4], 3),  # alike: the later
        ([float("nan"), -0.2, float("nan"), float("nan")], [2, 4], 2),
        ([0.3, None, 0.9, None], [3, 4], 3),  # saved without an evaluation
        ([None, None, None, None], [4], 4),
    ],
)
def test_the_best_scored_stays_and_can_be_loaded(tmp_path, scores, kept, best):
    """With resumption in between; a run goes on from the newest all the same."""
    for step, score in enumerate(scores, 1):
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
        checkpoints.save(step, state(step), score)
        checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert checkpoints.steps == kept
    assert checkpoints.restore(abstract(state(1)))[0] == 4
    checkpoints.close()
    assert bits(load_params(tmp_path, best=True)) == bits(state(best)["params"])


# Every file of a checkpoint


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """Checkpoints 1 and 2 with scores, to be copied and damaged; 1 is the best."""
    folder = tmp_path_factory.mktemp("scored") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step, score in ((1, 0.9), (2, 0.3)):
        checkpoints.save(step, state(step), score)
    checkpoints.wait()
    checkpoints.close()
    return folder


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def changed(data: bytes) -> bytes:
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"x"


HARM = {
    "removed": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(cut(path.read_bytes())),
    "changed": lambda path: path.write_bytes(changed(path.read_bytes())),
    "other JSON": lambda path: path.write_bytes(b"[1, null]"),
}


@pytest.mark.parametrize(("harm", "sealed"), [*((h, True) for h in HARM), ("cut", False)])
def test_damage_to_any_file_of_a_checkpoint_is_no_obstacle(scored, tmp_path, harm, sealed):
    """The run goes on from it if it is sound all the same, else from the one before."""
    names = [path.relative_to(scored) for path in (scored / "2").rglob("*") if path.is_file()]
    for number, name in enumerate(sorted(names)):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(scored, folder)
        if not sealed:  # as checkpoints of before, or of a run that was killed just then
            for step in ("1", "2"):
                (folder / step / "digests.json").unlink()
            if name.name == "digests.json":
                continue
        HARM[harm](folder / name)
        looked = listing(folder)
        assert Checkpoints(folder, read_only=True).restore(best=True)[0] == 1, name
        assert listing(folder) == looked
        step, found = restore(folder, abstract(state(0)))
        assert bits(found) == bits(state(step)), name
        if sealed and name.name in ("metrics", "_METADATA", "_CHECKPOINT_METADATA"):
            assert step == 1, name


def test_a_score_that_was_changed_is_damage(scored, tmp_path):
    """Else another checkpoint would be the best."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(scored, folder)
    for step in ("1", "2"):
        (folder / step / "digests.json").unlink()
    path = folder / "1" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.9", "0.1", 1))
    assert Checkpoints(folder, read_only=True).by_score() == [2]


def test_scores_that_are_no_numbers_are_not_stored(tmp_path):
    """JSON has none for them."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state(1), float("nan"))
    checkpoints.close()
    assert not (tmp_path / "checkpoints" / "1" / "metrics").exists()


# Read back


def test_the_fingerprint_of_the_host_is_that_of_the_device():
    tree = state(5)
    for name, part in tree.items():
        ours = [seal._fingerprint(np.asarray(leaf)) for leaf in jax.tree.leaves(part)]
        assert ours == fingerprint(tree)[name].tolist()


@pytest.mark.parametrize("lost", ["data", "bits"])
def test_what_cannot_be_read_back_is_told_at_the_first_save(tmp_path, monkeypatch, lost):
    """And not at the end of the training."""
    if lost == "data":
        arrays = seal.check_arrays

        def lose(checkpoint, *arguments):
            without_data(checkpoint)
            return arrays(checkpoint, *arguments)

        monkeypatch.setattr(seal, "check_arrays", lose)
    else:
        monkeypatch.setattr(seal, "_fingerprint", lambda _: 1)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state(1))
    with pytest.raises(UserError, match=r"just written to .*checkpoints cannot be read back \("):
        checkpoints.save(2, state(2))
    checkpoints.close()


NAMES = [
    "[old]", "a[1]", "a]b", "a*b", "a?b", "{x}", "a b", " lead", "trail ", "q'x", 'q"x', "p%20s%s",
    "new\nline", "한글 ünï", "-rf", "~x", "dots...", "h#a&$HOME;", "a:b", "x" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_have_any_name(tmp_path, name):
    """Also one above it. The libraries below take some characters for patterns."""
    folder = tmp_path / name / "run" / "checkpoints"
    save(folder, 3)
    step, found = restore(folder, abstract(state(0)))
    assert step == 3
    assert bits(found) == bits(state(3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gs:", "ends with a colon"),
        ("a\\b", "has a backslash"),
        (os.fsdecode(b"\xff"), "not UTF-8"),
    ],
)
def test_a_name_that_cannot_be_is_told_before_anything_is_written(tmp_path, name, message):
    folder = tmp_path / name / "run"
    with pytest.raises(UserError, match=message):
        prepare_workdir(folder, {}, (), tiny_corpus.tokenizer())
    with pytest.raises(UserError, match=message):
        Checkpoints(folder / "checkpoints")
    assert not folder.exists()


@pytest.mark.parametrize("name", ["_METADATA", "metrics/metrics", "d/0a1b", "digests.json"])
def test_a_pipe_in_the_place_of_a_file_of_a_checkpoint_is_never_waited_for(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{Path(name).name} is a pipe or a device"):
        seal.check_files(tmp_path)
