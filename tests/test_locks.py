"""One process works in a folder at a time, where the file system can tell."""

import errno
import os

import pytest

from bert_jax.common import locks
from bert_jax.common.errors import UserError
from bert_jax.common.locks import locked
from bert_jax.preparing import build
from bert_jax.training.workdir import alone_in, claimed


@pytest.fixture(autouse=True)
def first_warning():
    locks._warn.cache_clear()


def answers(number: int):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


def test_a_second_one_is_told(tmp_path):
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with locked(tmp_path / "lock") as again:
        assert again
    with alone_in(tmp_path), pytest.raises(UserError, match="another run is at work in"):
        alone_in(tmp_path).__enter__()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("use", [alone_in, build._claimed, lambda p: claimed(p / "lock")])
def test_a_file_system_without_locks_is_told_and_work_goes_on(
    tmp_path, capfd, monkeypatch, number, use
):
    monkeypatch.setattr(locks.fcntl, "flock", answers(number))
    for _ in range(2):
        with use(tmp_path):
            pass
    assert capfd.readouterr().err.count("without locks: nothing keeps a second process") == 1


def test_a_system_without_the_module_is_the_same_case(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locked(tmp_path / "lock") as mine:
        assert mine
    assert "without locks" in capfd.readouterr().err


def test_another_error_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.fcntl, "flock", answers(errno.EIO))
    with pytest.raises(OSError, match="Input/output error") as caught, locked(tmp_path / "lock"):
        pass
    assert caught.value.filename == str(tmp_path / "lock")
