"""Nothing is overwritten or removed that a command did not make, whatever its name is."""

import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from golden_models import GOLDEN

from bert_jax import features, plan
from bert_jax.common.errors import UserError
from bert_jax.common.files import write_whole
from bert_jax.common.outputs import check_folder, check_output, check_report
from bert_jax.data.corpus import PARTIAL
from bert_jax.inference.loading import Model
from bert_jax.preparing.build import prepare
from bert_jax.tasks import glue
from bert_jax.training.workdir import prepare_workdir
from bert_jax.weights import hugging_face
from bert_jax.weights.opening import open_model
from bert_jax.weights.store import save_model
from configs import prepare as prepare_config


def pipe(path):
    os.mkfifo(path)


def device(path):
    """A null device of our own, in the scratch folder; only root can make one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")


SPECIAL = {"pipe": pipe, "device": device}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with what its file holds."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


# Files.


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("link", [False, True])
def test_special_files_are_no_outputs(kind, link, tmp_path):
    path = tmp_path / "output.csv"
    SPECIAL[kind](path)
    if link:
        (tmp_path / "link.csv").symlink_to(path)
        path = tmp_path / "link.csv"
    before = os.stat(path)
    with pytest.raises(UserError, match="is a device or another special file"):
        check_output(path, lambda path: True)
    with pytest.raises(UserError, match="is a device or another special file"):
        write_whole(path, "x")  # also where nothing was checked before
    assert os.stat(path) == before and not [*tmp_path.glob(".*")]


def test_an_input_is_no_output_by_any_of_its_names(tmp_path, monkeypatch):
    texts = tmp_path / "texts.txt"
    texts.write_text("a")
    (tmp_path / "link").symlink_to("texts.txt")
    os.link(texts, tmp_path / "hard")
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ["texts.txt", "./texts.txt", str(texts), "link", "hard", "folder/texts.txt"]
    for name in names:
        with pytest.raises(UserError, match="is the input itself; name another"):
            check_output(Path(name), lambda path: True, [texts])
        with pytest.raises(UserError, match="exists and holds something else"):
            check_output(Path(name))
    assert texts.read_text() == "a"


def test_places_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("a")
    (tmp_path / "circle").symlink_to("circle")
    for name, message in (
        ("", "is a folder"),
        ("file/out", "is not a folder|Not a directory"),
        ("circle", "cannot be written"),
        ("x" * 300, "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            check_output(tmp_path / name)


def test_links_and_empty_files_are_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there" / "new")
    assert check_output(tmp_path / "link") == (tmp_path / "there" / "new").resolve()
    (tmp_path / "empty").touch()
    assert check_output(tmp_path / "empty") == (tmp_path / "empty").resolve()


# Commands that write one file.


@pytest.fixture(scope="module")
def model():
    opened = open_model(GOLDEN / "encoder")
    return Model(opened.body("float32").backbone, opened.params, opened.tokenizer)


def test_features_replace_features_alone(model, tmp_path):
    texts = tmp_path / "texts.npz"
    texts.write_text("she sat\n")
    with pytest.raises(UserError, match="is the input itself"):
        features.write_features(model, texts, texts, [-1])
    other = tmp_path / "other.npz"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("vectors.npy", "precious")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="holds something else"):
        features.write_features(model, texts, other, [-1])
    assert contents(tmp_path) == before
    for layers in ([-1], [0, 1]):  # the second over the first
        shape = features.write_features(model, texts, tmp_path / "out.npz", layers)
        assert shape[1] == len(layers)


def test_plans_and_submissions_replace_their_own_alone(tmp_path):
    path = tmp_path / "a.json"
    for content, ours in (
        ("[]", False),
        ("precious", False),
        ('{"a": 1}', False),
        ('{"topology": "v5e:2x2", "slices": 1, "mesh": {}}', True),
    ):
        path.write_text(content)
        assert plan._is_ours(path) == ours
    (tmp_path / "RTE.tsv").write_text("index\tprediction\n")
    path.write_text("precious")
    with pytest.raises(UserError, match=r"--out=.*holds something else"):
        glue.zip_submission([tmp_path], path)
    assert path.read_text() == "precious"


# Folders.


@pytest.mark.parametrize("write", [save_model, hugging_face.write])
@pytest.mark.parametrize("end", [".tmp", ".partial", ".unfinished", "~", ".bak"])
def test_converting_leaves_what_is_beside_it(write, end, tmp_path):
    beside = tmp_path / f"out{end}"
    beside.mkdir()
    (beside / "precious").write_text("x")
    write(tmp_path / "out", open_model(GOLDEN / "encoder"))
    assert (beside / "precious").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out", beside.name])


def test_a_run_does_not_begin_among_files_of_others(tmp_path):
    """Also where they are called as its own are."""
    tokenizer = open_model(GOLDEN / "encoder").tokenizer

    def write(folder):
        (folder / "task.json").write_text("ours")

    def start(folder):
        prepare_workdir(folder, {"seed": 0}, (), tokenizer, write)

    for name, text in (
        ("tokenizer/tokenizer.json", "{}"),
        ("tokenizer/precious/x", "x"),
        ("tokenizer", "x"),
        ("task.json", "theirs"),
        ("corpus.json", "theirs"),
        ("task.json.tmp", "theirs"),
        ("tokenizer.tmp/x", "x"),
    ):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        before = contents(folder)
        if ".tmp" in name or name in ("corpus.json", "tokenizer/precious/x"):
            start(folder)  # nothing of ours is called so
            assert (folder / name).read_text() == text
            continue
        with pytest.raises(UserError, match="is not empty and holds no run"):
            start(folder)
        assert contents(folder) == before
    # What a start of the same command left, it takes up.
    start(tmp_path / "run")
    after = contents(tmp_path / "run")
    for left in (["tokenizer"], ["task.json"], ["tokenizer", "task.json"], []):
        again = tmp_path / f"again {left}"
        again.mkdir()
        for name in left:
            copy = shutil.copytree if name == "tokenizer" else shutil.copy
            copy(tmp_path / "run" / name, again / name)
        (again / ".x.0123.unfinished").mkdir()
        start(again)
        assert {**contents(again)} == {**after, ".x.0123.unfinished": None}


def test_tables_of_other_programs_stay(tmp_path):
    names, keys = ("sweep.json", "sweep.md", "sweep.png"), ("settings", "best_run")
    check_report(tmp_path, names, keys)
    for name in names:
        (tmp_path / name).write_text('{"settings": []}')
        with pytest.raises(UserError, match=f"{name} was not made by this command"):
            check_report(tmp_path, names, keys)
        (tmp_path / name).unlink()
    (tmp_path / "sweep.json").write_text(json.dumps(dict.fromkeys(keys)))
    (tmp_path / "sweep.md").write_text("")
    check_report(tmp_path, names, keys)


def test_prepare_does_not_remove_what_looks_like_its_products(tmp_path):
    """A folder in which a run was killed before it wrote any; then somebody put files there."""
    (tmp_path / "text").write_text("One sentence. Another.\n\nA second document.\n")
    out = tmp_path / "out"
    (out / PARTIAL).mkdir(parents=True)
    (out / PARTIAL / "plan.json").write_text("{}")
    config = prepare_config.get_config("source=text")
    config.input = str(tmp_path / "text")
    for name in ("tokenizer/precious", "index/precious", "corpus-a.array_record-b", "x.json.tmp"):
        path = out / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
        with pytest.raises(UserError, match=r"out holds .*, which this corpus would overwrite"):
            prepare(config, out)
        assert path.read_text() == "precious"
        shutil.rmtree(path.parent) if path.parent != out else path.unlink()


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_are_no_folders(kind, tmp_path):
    SPECIAL[kind](tmp_path / "special")
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for name in ("special", "file", "file/below", "special/below", "circle"):
        with pytest.raises(UserError, match=r"--workdir=.*(is not a folder|cannot be a folder)"):
            check_folder(tmp_path / name)
    assert check_folder(tmp_path / "new" / "run") == tmp_path / "new" / "run"
    assert not (tmp_path / "new").exists()
