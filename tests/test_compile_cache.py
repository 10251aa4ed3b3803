"""Compiled programs: kept per user, bounded, found by later starts, never in work directories."""

import os
import stat
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_tasks import make_config

from bert_jax import finetune
from bert_jax.training import compile_cache
from bert_jax.training.compile_cache import keep_programs, trim


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A user's cache folder, with JAX as it is before anything is said of a cache."""
    before = {
        name: jax.config.values[name]
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "bert_jax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def counted():
    """Counts what is asked of the cache, and what is found there."""
    names = ("compile_requests_use_cache", "cache_hits")
    counts = dict.fromkeys(names, 0)

    def count(event: str, **_: object) -> None:
        if (name := event.rsplit("/", 1)[-1]) in counts:
            counts[name] += 1

    jax.monitoring.register_event_listener(count)
    yield counts
    jax.monitoring.unregister_event_listener(count)


def test_programs_are_kept_per_user(home):
    keep_programs()
    jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
    (machine,) = (entry for entry in home.iterdir() if entry.is_dir())
    assert list(machine.glob("jit__lambda*-cache"))
    assert not stat.S_IMODE(home.stat().st_mode) & 0o077  # what lies there is executed


def test_a_given_folder_is_taken_as_it_is(home, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "mine")
    assert not home.exists()


def test_a_home_that_cannot_be_written_is_told_and_gone_without(home, capsys):
    home.parent.parent.mkdir()
    home.parent.write_text("a file where the folder would be")
    keep_programs()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    said = capsys.readouterr().err
    assert said.startswith("compiled programs are not kept for later starts (")
    assert said.count("\n") == 1 and "JAX_COMPILATION_CACHE_DIR=FOLDER" in said


def test_a_folder_that_others_can_write_is_not_used(home, capsys):
    home.mkdir(parents=True)
    home.chmod(0o777)
    keep_programs()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert f"others can write to {home}" in capsys.readouterr().err


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    for age, name in enumerate(("newest", "middle", "oldest")):
        path = tmp_path / f"machine-{age}" / f"jit_{name}-cache"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 500))  # used, and made
    trim(tmp_path, 200)
    assert {path.name for path in tmp_path.glob("*/*")} == {"jit_newest-cache", "jit_middle-cache"}
    trim(tmp_path, 0)
    assert not list(tmp_path.glob("*/*"))


def test_the_kept_programs_are_bounded(home, monkeypatch):
    keep_programs()
    jax.jit(lambda x: x * 5 + 1)(2.0).block_until_ready()
    assert list(home.glob("*/*-cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compile_cache, "MOST_BYTES", 10)
    keep_programs()
    assert not list(home.glob("*/*-cache"))


def test_a_second_fine_tuning_in_any_folder_compiles_nothing(
    trained, data, tmp_path, home, counted
):
    """In-process, after all that JAX remembers of programs was forgotten."""
    keep_programs()
    for number, name in enumerate(("one", "another place")):
        jax.clear_caches()
        counted.update(dict.fromkeys(counted, 0))
        config = make_config(trained, data=str(data / "classification"), epochs=0.1)
        folder = tmp_path / name
        folder.mkdir()
        finetune.finetune(config, folder / "run")
        assert not (folder / "run" / "compiled").exists()
        assert counted["compile_requests_use_cache"] > 5
        missed = counted["compile_requests_use_cache"] - counted["cache_hits"]
        assert (missed == 0) == (number == 1), (name, counted)


def test_programs_in_a_work_directory_are_not_loaded(trained, data, tmp_path, home, capsys):
    """Whoever sent the folder could have put anything there."""
    config = make_config(trained, data=str(data / "classification"), epochs=0.04)
    run = tmp_path / "run"
    finetune.finetune(config, run)
    assert "compiled" not in capsys.readouterr().err
    (run / "compiled").mkdir()
    (run / "results.json").unlink()
    finetune.finetune(config, run)
    assert not list((run / "compiled").iterdir())
    said = capsys.readouterr().err
    assert said.count(f"{run}/compiled is not used any more and may be deleted") == 1
