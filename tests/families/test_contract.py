"""What every family must show: one test over all of them, and over one that is invented here.

Each property is one function that takes a family, with a debug size; what a family cannot do, it
says in one line. The equality with a second implementation is in `test_model`, `test_objective`
and `test_hugging_face`, by the goldens that `GOLDENS` names.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import invented
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpus
import tiny_tasks

import bert_jax
from bert_jax import main
from bert_jax.common.errors import UserError
from bert_jax.data.instances import empty_batch
from bert_jax.data.template import Vocabulary
from bert_jax.families import FAMILIES, build_objective
from bert_jax.families.base import Family
from bert_jax.training import loop, sharding
from bert_jax.training.checkpoint import load_params
from bert_jax.weights import hugging_face, opening, store

HERE = Path(__file__).parent
GOLDENS = {"bert": "bert_erf"}  # of each family in tests/golden
LOSSES = HERE / "losses.json"  # of twenty steps, by family; `python tests/families/losses.py`
TASKS = ("classification", "tagging", "answering", "choice")
pytestmark = pytest.mark.slow


@pytest.fixture(params=[*FAMILIES.values(), invented.FAMILY], ids=lambda family: family.name)
def family(request, monkeypatch) -> Iterator[Family]:
    monkeypatch.setitem(FAMILIES, request.param.name, request.param)
    return request.param


def debug_config(family: Family, **changes):
    """The config of a run of seconds, dropout on."""
    return tiny_corpus.small_config(f"family={family.name}", **changes)


def bits(tree) -> dict[str, bytes]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def trained(family: Family, corpus, workdir: Path, mesh=None, **changes) -> list[dict]:
    """Trains, and gives the lines of metrics.jsonl without their times."""
    config = debug_config(family, **changes)
    corpus.tokenizer.save(workdir / "tokenizer")
    (workdir / "config.json").write_text(json.dumps(config.to_dict() | {"format": 2}))
    trainer, phases = tiny_corpus.make_trainer(config, corpus, mesh)
    loop.run(trainer, phases, tiny_corpus.make_schedule(config), workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in line.items() if name != "time"} for line in lines]


@pytest.fixture
def pretrained(family, corpus, tmp_path) -> Path:
    """Work directory of a run of twelve steps."""
    trained(family, corpus, tmp_path / "run")
    return tmp_path / "run"


def test_every_family_has_a_golden_and_a_page(family):
    if family is invented.FAMILY:
        return
    root = HERE.parents[1]
    assert (root / "tests" / "golden" / f"{GOLDENS[family.name]}.npz").exists()
    assert family.source and family.size in family.sizes
    assert family.parameters.keys() == family.sizes.keys()


def test_parameters_of_every_published_size(family):
    ids = {role: number for number, role in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    vocabulary = Vocabulary(family.vocabulary, ids, np.zeros(family.vocabulary, bool))
    for size, count in family.parameters.items():
        config = main_config(f"family={family.name},size={size}")
        objective = build_objective(config, vocabulary)
        shapes = jax.eval_shape(
            objective.init, jax.random.key(0), empty_batch(objective.layout, 1, 8)
        )
        assert sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes))) == count, size


def main_config(arg: str):
    from configs import pretrain

    return pretrain.get_config(arg)


def test_losses_of_twenty_steps(family, corpus, tmp_path):
    """As they were when the family came in: a change of what it computes shows."""
    lines = trained(family, corpus, tmp_path / "run", steps=20, log_every=1, eval_every=20)
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    expected = json.loads(LOSSES.read_text())[family.name]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_run_that_was_stopped_ends_with_the_same_bits(family, corpus, tmp_path, monkeypatch):
    """Dropout on; the program ends after a step, before anything else is written."""
    whole = trained(family, corpus, tmp_path / "whole")
    real = loop.metrics_lib.MetricsLog.write

    def dies(log, step, split, metrics, time):
        if step > 6:
            raise KeyboardInterrupt
        real(log, step, split, metrics, time)

    with monkeypatch.context() as patch:
        patch.setattr(loop.metrics_lib.MetricsLog, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(family, corpus, tmp_path / "run")
    assert trained(family, corpus, tmp_path / "run") == whole
    ends = (load_params(tmp_path / name) for name in ("whole", "run"))
    one, other = map(bits, ends)
    assert one == other


def test_eight_devices_train_as_one(family, corpus, tmp_path):
    config = debug_config(family)
    mesh = sharding.make_mesh(config.mesh)
    assert mesh.size == 8
    one = trained(family, corpus, tmp_path / "one", steps=4, log_every=2, eval_every=4)
    many = trained(family, corpus, tmp_path / "many", mesh, steps=4, log_every=2, eval_every=4)
    for ours, theirs in zip(one, many, strict=True):
        assert ours.pop("split") == theirs.pop("split")
        assert ours == pytest.approx(theirs, rel=2e-5)


def test_weights_go_out_and_come_back_to_the_bit(family, pretrained, tmp_path):
    model = opening.open_model(pretrained)
    assert model.family == family.name
    store.save_model(tmp_path / "copy", model)
    again = opening.open_model(tmp_path / "copy")
    assert again.family == family.name and bits(again.params) == bits(model.params)
    if family.names is None:
        with pytest.raises(UserError, match=f"family={family.name} has no other format"):
            hugging_face.write(tmp_path / "out", model)
        return
    hugging_face.write(tmp_path / "out", model)
    back = hugging_face.read(tmp_path / "out")
    assert back.family == family.name and bits(back.params) == bits(model.params)
    hugging_face.write(tmp_path / "second", back)
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.usefixtures("on_first_device")
@pytest.mark.parametrize("task", TASKS)
def test_it_is_fine_tuned_on_every_family_of_tasks(family, pretrained, data, tmp_path, task):
    """A few steps; the model is stored with its task, and what it predicts has a form."""
    results = tiny_tasks.run(pretrained, data, tmp_path / "tuned", task, epochs=0.1)
    assert results["steps"] >= 1
    model = opening.open_model(tmp_path / "tuned")
    assert model.family == family.name and model.task is not None
    assert model.tokenizer.template == family.template(model.tokenizer.vocabulary)
    opened = bert_jax.load(tmp_path / "tuned")
    if task == "classification":
        assert opened.classify(["the captain of the ship"])


def test_what_it_can_be_used_for(family, pretrained):
    model = bert_jax.load(pretrained)
    vectors = model.embed(["the captain of the ship", ("a song", "a ship")])
    assert vectors.shape == (2, model.backbone.width) and np.isfinite(vectors).all()
    mask = model.tokenizer.tokens[model.tokenizer.mask_id]
    if "mlm_head" in model.params:
        [guesses] = model.fill_mask(f"the {mask} of the ship")
        assert len(guesses) == 5
    else:
        with pytest.raises(UserError, match="no masked-LM head"):
            model.fill_mask(f"the {mask} of the ship")


def test_the_template_is_that_of_the_family(family, corpus):
    """In the batches of pre-training and in the features of tasks alike."""
    vocabulary = corpus.tokenizer.vocabulary
    template = family.template(vocabulary)
    pair = template.join([7, 8], [9])
    assert pair["tokens"].tolist() == [
        *template.before, 7, 8, *template.between, 9, *template.after,
    ]  # fmt: skip
    config = debug_config(family)
    objective = build_objective(config, vocabulary)
    (phase,) = main.build_phases(config, corpus, objective, tiny_corpus.one_device())
    batch = next(phase.batches(0, 1))
    real = [row[:n].tolist() for row, n in zip(batch["tokens"], batch["lengths"], strict=True)]
    assert all(tuple(row[: len(template.before)]) == template.before for row in real)
    assert all(tuple(row[-len(template.after) :]) == template.after for row in real)
    assert batch.keys() == empty_batch(objective.layout, 1, 32).keys()


def test_depths_of_parameters_and_new_top_layers(family, corpus):
    config = debug_config(family)
    backbone = build_objective(config, corpus.tokenizer.vocabulary).backbone
    batch = empty_batch("blocks", 1, 8)
    inputs = main_inputs(batch)
    params, fresh = (nn.unbox(backbone.init(jax.random.key(n), inputs)) for n in (0, 1))
    paths = [tuple(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)]
    depths = {backbone.depth_of(path) for path in paths}
    assert min(depths) == 0 and max(depths) <= backbone.layers
    try:
        made, names = backbone.reinit(params, fresh, 1)
    except UserError as error:
        assert "reinit_layers" in str(error)
        return
    changed = {name for name in params if bits(made[name]) != bits(params[name])}
    assert changed == set(names) and changed


def main_inputs(batch):
    from bert_jax.models.backbone import Inputs

    return Inputs.of({name: jnp.asarray(value) for name, value in batch.items()})


def test_what_cannot_be_is_one_line(family):
    config = debug_config(family)
    config.model.heads = 3
    with pytest.raises(UserError, match=r"width=16 does not divide by model\.heads=3"):
        build_objective(config, Vocabulary(50, {"pad": 0, "cls": 2, "sep": 3, "mask": 4}))
    with pytest.raises(UserError, match="config argument 'siz' is unknown"):
        main_config(f"family={family.name},siz=3")
    with pytest.raises(UserError, match="family 'bertt' is unknown; known: "):
        main_config("family=bertt")
    config = debug_config(family)
    config.seq_length = 65
    with pytest.raises(UserError, match=r"seq_length=65 is over model\.max_positions=64"):
        family.settings.check(config)


def test_no_other_room_knows_a_family():
    """No string is a family's name outside families/, and nothing imports one's file."""
    import ast

    package = HERE.parents[1] / "bert_jax"
    found = []
    for path in package.rglob("*.py"):
        if path.parent.name == "families":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in FAMILIES:
                found.append(f"{path.name}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "bert_jax.families":
                found += [f"{path.name}: {a.name}" for a in node.names if a.name in FAMILIES]
    assert found == []


def test_a_family_is_one_file():
    """The invented one is all of it, and nothing of the package knows it."""
    assert len((HERE / "invented.py").read_text().splitlines()) < 230
    assert invented.FAMILY.name not in FAMILIES
