"""Runs of earlier versions mean what they meant; those of later ones are refused in one line."""

import json
import tarfile
from pathlib import Path

import pytest
import tiny_corpus
from flax.traverse_util import flatten_dict

from bert_jax.common import run_format
from bert_jax.common.errors import UserError
from bert_jax.families import encoder
from bert_jax.training.workdir import check_same
from configs import finetune, pretrain

RUNS = Path(__file__).parent / "fixtures" / "run_v1" / "runs.tar.xz"


def written(folder: Path, config: dict) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def plain(**changes) -> dict:
    return tiny_corpus.small_config().to_dict() | changes


@pytest.mark.parametrize(
    ("name", "made"), [("pretraining", pretrain.get_config), ("finetuning", finetune.get_config)]
)
def test_every_field_has_a_meaning_for_the_runs_of_the_first_format(name, made):
    """A new field of a config needs an entry in MEANT, or no earlier run could go on."""
    with tarfile.open(RUNS) as archive:
        stored = json.load(archive.extractfile(f"{name}/config.json"))
    known = flatten_dict(run_format.filled(stored, name), sep=".").keys()
    assert flatten_dict(made().to_dict(), sep=".").keys() <= known


def test_a_field_that_is_newer_than_a_run_has_the_value_of_then(tmp_path, monkeypatch):
    monkeypatch.setitem(run_format.MEANT, "model.embedding_width", 0)
    monkeypatch.setitem(run_format.MEANT, "speed", "slow")
    monkeypatch.setitem(run_format.MEANT, "elsewhere.speed", "slow")
    folder, model = written(tmp_path, plain()), plain()["model"]
    read = run_format.read_config(folder)
    assert read == plain(format=1, speed="slow", model=model | {"embedding_width": 0})
    check_same(folder, plain(speed="slow", model=model | {"embedding_width": 0}), ())
    for changed in ({"speed": "fast"}, {"model": model | {"embedding_width": 8}}):
        with pytest.raises(UserError, match=r"(speed was slow, is fast)|(width was 0, is 8)"):
            check_same(folder, plain(**{"speed": "slow", **changed}), ())


@pytest.mark.parametrize(
    ("change", "what"),
    [({"format": 99}, "format 99"), ({"flavour": 1}, "setting flavour"),
     ({"model": plain()["model"] | {"experts": 4}}, "setting model.experts")],
)  # fmt: skip
def test_a_run_of_a_newer_version_is_told(tmp_path, change, what):
    with pytest.raises(UserError, match=rf"made by a newer bert_jax than .* its {what}; use"):
        check_same(written(tmp_path, plain(**change)), plain(), ())


@pytest.mark.parametrize("number", ["1", True, 0, 1.5, None])
def test_a_format_that_cannot_be_is_told(tmp_path, number):
    with pytest.raises(UserError, match=r"config.json: format is .* whole number"):
        run_format.read_config(written(tmp_path, plain(format=number)))


def test_the_fields_of_a_model_are_told_by_name():
    model = plain()["model"]
    with pytest.raises(UserError, match=r"newer bert_jax than .* its setting model.experts"):
        encoder.backbone(model | {"experts": 4}, 100, "float32")
    del model["head_width"]
    with pytest.raises(UserError, match="the model section of the config lacks head_width"):
        encoder.backbone(model, 100, "float32")
