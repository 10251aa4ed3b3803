"""A run that an earlier version began goes on as it would have gone on then."""

import json
import shutil
import tarfile
from pathlib import Path

import earlier_runs
import numpy as np
import pytest
import tiny_corpus
from test_metrics import events, told

from bert_jax.inference.loading import load
from bert_jax.training import sharding

FOLDER = Path(__file__).parent / "fixtures" / "run_v1"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The runs as they were left; relative paths lead to their corpus and data."""
    with tarfile.open(FOLDER / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharding, "make_mesh", lambda _: tiny_corpus.one_device())
    return Path()


@pytest.mark.parametrize("name", earlier_runs.RUNS)
def test_a_run_of_the_first_format_ends_with_the_bits_of_then(folder, name):
    """On a machine like the one it was begun on; on another, the last bits may be others."""
    expected = json.loads((FOLDER / "expected.json").read_text())
    alike = expected["machine"] == earlier_runs.machine()
    earlier_runs.RUNS[name](folder, folder / name)
    with np.load(folder / f"{name}.npz") as arrays:
        then = dict(arrays)
    now = earlier_runs.parameters(folder / name)
    assert now.keys() == then.keys()
    for key in then:
        if alike:
            assert now[key].tobytes() == then[key].tobytes(), key
        np.testing.assert_allclose(now[key], then[key], rtol=1e-4, atol=1e-5, err_msg=key)
    lines = earlier_runs.metrics(folder / name)
    assert [line.keys() for line in lines] == [line.keys() for line in expected[name]]
    for line, other in zip(lines, expected[name], strict=True):
        assert line == (other if alike else pytest.approx(other, rel=1e-4)), line["step"]
    # Those of then were written by another library.
    assert sorted(x[:2] for x in events(folder / name / "events")) == sorted(told(folder / name))


@pytest.mark.parametrize("name", earlier_runs.RUNS)
def test_a_model_of_the_first_format_can_be_used(folder, name):
    shutil.move(folder / name, folder / "elsewhere")
    model = load(folder / "elsewhere")
    assert model.embed(["the old ship sees the harbor"]).shape == (1, 16)
