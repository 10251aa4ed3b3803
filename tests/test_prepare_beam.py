"""prepare --runner: what Beam's workers make is, byte for byte, what the process pool makes."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from random_text import digests, random_text, text_config

from bert_jax.common.errors import UserError
from bert_jax.preparing import beam, units
from bert_jax.preparing.build import prepare

ROOT = Path(__file__).parents[1]


@pytest.fixture
def runner():
    """The runner inside of this process; DirectRunner first tries to download another one."""
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install apache-beam")
    return beam.Beam("FnApiRunner")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with two files of input; a unit is 10 kB."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(units, "SMALLEST_UNIT", 10_000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(random_text(150))
    (tmp_path / "in" / "b.txt").write_text(random_text(150, seed=1))
    return tmp_path


def test_same_documents_counts_and_bytes_as_the_pool(folder, runner):
    corpora = [
        prepare(text_config("in/*.txt"), Path(out), quiet=True, beam=where)  # relative paths too
        for out, where in (("pool", None), ("beam", runner))
    ]
    pool, beamed = (corpus.info for corpus in corpora)
    assert beamed == pool
    assert len(beamed["splits"]["train"]["shards"]) > 5
    for name, split in corpora[0].splits.items():
        assert split.document_ends.tolist() == corpora[1].splits[name].document_ends.tolist()
    assert digests(folder / "beam") == digests(folder / "pool")


def test_what_one_left_unfinished_the_other_goes_on_with(folder, runner, monkeypatch):
    close = units.UnitWriter.close

    def full_disk(self, notes):
        if self._folder.name == "unit-00003":
            raise OSError(28, "No space left on device")
        close(self, notes)

    with monkeypatch.context() as patch:
        patch.setattr(units.UnitWriter, "close", full_disk)
        with pytest.raises(UserError, match=r"^FnApiRunner failed: .*No space left"):
            prepare(text_config("in/*.txt"), Path("out"), quiet=True, beam=runner)
    finished = list((folder / "out" / ".partial").glob("unit-*"))
    assert finished and not any("00003" in path.name for path in finished)
    prepare(text_config("in/*.txt"), Path("out"), quiet=True)
    prepare(text_config("in/*.txt"), Path("other"), quiet=True)
    assert digests(folder / "out") == digests(folder / "other")


def test_a_mistake_in_the_input_is_told_as_by_the_pool(folder, runner, capfd):
    (folder / "in" / "b.txt").write_bytes(b"Good.\n\nbad \xff byte.\n")
    said = []
    for out, where in (("pool", None), ("beam", runner)):
        with pytest.raises(UserError, match=r"b\.txt:3: invalid UTF-8 \(byte 11\);") as error:
            prepare(text_config("in/*.txt"), Path(out), quiet=True, beam=where)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "Traceback" not in capfd.readouterr().err


def test_an_output_that_a_worker_cannot_see(folder, runner, monkeypatch):
    make = functools.partial(beam._make, job=folder / "elsewhere" / "job")
    monkeypatch.setattr(beam, "_make", lambda task, job: make(task))
    with pytest.raises(UserError, match=r"elsewhere.*must be on a file system that all workers"):
        prepare(text_config("in/*.txt"), Path("out"), quiet=True, beam=runner)
    monkeypatch.setattr(beam, "_make", lambda task, job: None)
    with pytest.raises(UserError, match=r"FnApiRunner ended without sample-00000\.txt in .*again"):
        prepare(text_config("in/*.txt"), Path("out"), quiet=True, beam=runner)


def test_two_tries_of_one_unit(tmp_path):
    output, job = tmp_path / "unit-00000", tmp_path / "job-1"
    job.mkdir()
    tries = []

    def unit(given, path):
        path.mkdir()
        (path / "unit.json").write_text(given)
        tries.append(path)
        if len(tries) == 1:  # meanwhile another worker makes all of it
            beam._make((unit, given, output), job)

    beam._make((unit, "text", output), job)
    assert len(set(tries)) == 2
    beam._make((unit, "text", output), job)  # and a third, when it is there
    assert len(tries) == 2
    assert (output / "unit.json").read_text() == "text"


def test_a_worker_of_a_job_that_is_over_leaves_nothing(tmp_path):
    def unit(given, path):
        path.write_text(given)
        (tmp_path / "job-1").rename(tmp_path / "gone")  # its driver was started again

    (tmp_path / "job-1").mkdir()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            beam._make((unit, "old", tmp_path / "output"), tmp_path / "job-1")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("NoRunner", "", r"^--runner=NoRunner: Unexpected pipeline runner: .*FlinkRunner"),
        ("FnApiRunner", "--direct_num_workers=x", r"^--beam_options: argument --direct_num_w.*'x'"),
        ("FnApiRunner", "--experiments='a", r"^--runner=FnApiRunner: No closing quotation"),
    ],
)
def test_wrong_runners_and_options(runner, capfd, name, options, message):
    with pytest.raises(UserError, match=message) as error:
        beam.Beam(name, options)
    assert "\n" not in str(error.value)
    assert "usage:" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--runner=DirectRunner", "error: --runner needs Apache Beam: pip install apache-beam "),
        ("--beam_options=--region=R", "error: --beam_options needs --runner"),
    ],
)
def test_without_beam(tmp_path, flag, message):
    command = (
        "import sys; sys.modules['apache_beam'] = None\n"
        "from bert_jax.common import entry; from bert_jax import prepare\n"
        "entry.run(prepare.main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "--config=configs/prepare.py", f"--out={tmp_path}/o", flag],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
